"""What a training run is told: one frozen dataclass, which the flags fill and every run saves."""

import dataclasses
import json
import math
from pathlib import Path

from ad_keras.cli import flag, require, require_known
from ad_keras.data import short_name

CONDITIONS = {
    "full": {},
    "no_memory_mix": {"mix_recent": 1.0, "mix_memories": 1.0},
    "no_rem": {
        "phases": ("wake", "nrem"),
        "external_weight": 0.0,
        "wake_noise_variance": 0.5,
        "recovery_weight": 0.5,
    },
    "no_nrem": {"phases": ("wake", "rem")},
    "wake_only": {"phases": ("wake",), "external_weight": 0.0, "wake_noise_variance": 0.5},
    "rem_noise_only": {"mix_memories": 0.0},
    "rem_mix_only": {"mix_memories": 1.0},
    "rem_before_nrem": {"phases": ("wake", "rem", "nrem")},
    "nrem_mixed": {"nrem_memories": "mixed"},
}
"""The paper's conditions: what each changes of the full model. `flags/` has a file for each."""

PERTURBATIONS = (
    *("occlusion", "crop", "shift", "rotation", "flip", "colour", "grey", "blur", "noise"),
)
"""What `--perturbation` and `--glimpse` may name; a class of `ad_keras.pad` each."""

_OF_PERTURBATIONS = {
    "occlusion": "occlusion_min occlusion_max tile_min tile_max mask_per",
    "crop": "crop_area",
    "colour": "colour_strength",
}
_AGREEMENTS = ("distance", "contrast", "vicreg", "coding_rate")

_DATA, _NETWORKS, _TRAINING, _RUN = "Data", "Networks", "Training", "Run"
_PHASES = "Phases (defaults: the paper's full model)"
_PARTS = "Parts (defaults: the paper's)"


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains perturbed and adversarial dreaming (PAD) on a data set and exports its encoder.

    Raises:
        UsageError: one line that names the flag, its value, and what it may be.
    """

    dataset: str = flag(
        "synth_digits",
        _DATA,
        "svhn, cifar10, mnist, fashion_mnist; synth_digits or synth_digits/50k (generated); or a "
        "folder of images, train/<class>/*.png or .jpg",
    )
    data_dir: str | None = flag(
        None, _DATA, "folder of prepared TensorFlow Datasets (default: ~/tensorflow_datasets)"
    )
    image_size: int = flag(32, _DATA, "side of the images in pixels: 32, 64 or 128")
    train_examples: int = flag(0, _DATA, "number of training images to use (0: all)")

    network: str = flag("paper", _NETWORKS, "kind of encoder and generator", ("paper", "residual"))
    latent_dim: int = flag(256, _NETWORKS, "size of the latent")
    base_filters: int = flag(64, _NETWORKS, "filters of the first block; later ones double them")

    phases: tuple[str, ...] = flag(
        ("wake", "nrem", "rem"), _PHASES, "which phases run on a mini-batch, in this order"
    )
    reconstruction_weight: float = flag(1.0, _PHASES, "weight of the reconstruction loss in wake")
    kl_weight: float = flag(1.0, _PHASES, "weight of the divergence from the prior in wake")
    external_weight: float = flag(
        1.0, _PHASES, "weight of the discriminator's loss in wake: images are external (0: none)"
    )
    wake_noise_variance: float = flag(
        0.0, _PHASES, "variance of noise on the latents, before wake reconstructs"
    )
    recovery_weight: float = flag(1.0, _PHASES, "weight of the recovery loss in NREM")
    nrem_memories: str = flag(
        "single", _PHASES, "NREM replays single memories or REM's mixtures", ("single", "mixed")
    )
    occlusion_min: float = flag(0.0, _PHASES, "lowest probability of occluding a tile")
    occlusion_max: float = flag(1.0, _PHASES, "highest probability of occluding a tile")
    tile_min: int = flag(1, _PHASES, "smallest side of a tile in pixels")
    tile_max: int = flag(8, _PHASES, "largest side of a tile in pixels")
    mask_per: str = flag("batch", _PHASES, "one occlusion mask per", ("batch", "image"))
    internal_weight: float = flag(1.0, _PHASES, "weight of the adversarial loss in REM")
    mix_recent: float = flag(0.5, _PHASES, "share of the newer memory against the older (lambda)")
    mix_memories: float = flag(0.5, _PHASES, "share of memories against noise (lambda')")

    hippocampus: str = flag(
        "last_batch",
        _PARTS,
        "what is remembered: the last mini-batch; the newest latents (episodic) or a sample of all "
        "(reservoir), recalled at random; or the newest, recalled by likeness (associative)",
        ("last_batch", "episodic", "reservoir", "associative"),
    )
    hippocampus_capacity: int = flag(4096, _PARTS, "latents that are kept, unless last_batch")
    mixing: str = flag(
        "convex",
        _PARTS,
        "how REM mixes: the paper's sum; that scaled to the prior's variance; each component from "
        "one source; or the mean of three older memories",
        ("convex", "variance_preserving", "component", "many_memories"),
    )
    perturbation: tuple[str, ...] = flag(
        ("occlusion",),
        _PARTS,
        f"what NREM does to dreams, in this order: some of {', '.join(PERTURBATIONS)}",
    )
    glimpse: tuple[str, ...] = flag(
        (), _PARTS, "perturbations of waking images whose latents shall agree (none: no glimpses)"
    )
    crop_area: float = flag(0.2, _PARTS, "smallest share of an image that a crop shows")
    colour_strength: float = flag(0.4, _PARTS, "largest relative change of colours")
    recovery: str = flag("distance", _PARTS, "NREM's loss between latents", _AGREEMENTS)
    agreement: str = flag("contrast", _PARTS, "the loss between glimpses' latents", _AGREEMENTS)
    agreement_weight: float = flag(1.0, _PARTS, "weight of the agreement loss in wake")
    views: int = flag(2, _PARTS, "views of each image or dream to compare; distance ignores it")
    temperature: float = flag(0.2, _PARTS, "temperature of the contrast loss")
    decorrelation_weight: float = flag(
        0.0, _PARTS, "weight of covariances between latent dimensions (0: none)"
    )
    adversary: str = flag(
        "minimax",
        _PARTS,
        "the discriminator's losses",
        ("minimax", "non_saturating", "hinge", "least_squares"),
    )
    gradient_penalty_weight: float = flag(
        0.0, _PARTS, "gamma of the R1 penalty on the discriminator in wake (0: none)"
    )

    epochs: int = flag(50, _TRAINING, "passes over the training images")
    batch_size: int = flag(64, _TRAINING, "images of a mini-batch; an incomplete one is dropped")
    encoder_learning_rate: float = flag(2e-4, _TRAINING, "learning rate of the encoder's Adam")
    generator_learning_rate: float = flag(2e-4, _TRAINING, "learning rate of the generator's Adam")
    schedule: str = flag(
        "constant", _TRAINING, "course of the learning rates over --epochs", ("constant", "cosine")
    )
    warmup_epochs: float = flag(0.0, _TRAINING, "epochs in which the learning rates rise from 0")
    clip_norm: float = flag(
        0.0, _TRAINING, "largest norm of a network's gradient in a phase (0: no limit)"
    )
    average_weights: float = flag(
        0.0, _TRAINING, "decay of averaged weights, to probe and export (0: none)"
    )
    beta_1: float = flag(0.5, _TRAINING, "decay of Adam's momentum")
    beta_2: float = flag(0.999, _TRAINING, "decay of Adam's second moment")
    precision: str = flag(
        "float32", _TRAINING, "precision of the networks", ("float32", "mixed_bfloat16")
    )
    seed: int = flag(0, _TRAINING, "seed of weights, order of images, noise and masks")
    hold_out: bool = flag(
        False, _TRAINING, "do not train on the tenth of the training images that scores the probe"
    )

    strategy: str = flag(
        "auto",
        _RUN,
        "devices that share a mini-batch: one, all GPUs of this machine, those of all workers in "
        "TF_CONFIG, or a TPU's. auto takes the workers or GPUs that it finds",
        ("auto", "one_device", "mirrored", "multi_worker", "tpu"),
    )
    deterministic: bool = flag(
        False,
        _RUN,
        "repeat results bit for bit on GPUs: slower kernels, no XLA. Set it for the whole run. "
        "CPUs do not need it",
    )
    run_dir: str | None = flag(
        None, _RUN, "folder of the run (default: runs/<data set>[-<condition>])"
    )
    saved_model_dir: str | None = flag(
        None, _RUN, "folder of the exported networks (default: saved_models/<name of the run>)"
    )
    overwrite: bool = flag(False, _RUN, "delete the run in --run_dir and begin anew")
    checkpoint_every: int = flag(500, _RUN, "steps between checkpoints")
    log_every: int = flag(50, _RUN, "steps between losses in TensorBoard")
    dream_every: int = flag(1, _RUN, "epochs between pictures of dreams (0: none)")
    probe_every: int = flag(1, _RUN, "epochs between linear probes (0: only first and last)")

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, float):
                require(self, name, math.isfinite(value), "a finite number")
        counts = ("latent_dim", "base_filters", "epochs", "tile_min", "hippocampus_capacity")
        for name in (*counts, "checkpoint_every", "log_every"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "views", self.views >= 2, "at least 2")
        rates = ("encoder_learning_rate", "generator_learning_rate")
        for name in ("agreement_weight", "temperature", *rates):
            require(self, name, getattr(self, name) > 0, "above 0")
        require(self, "crop_area", 0 < self.crop_area <= 1, "above 0 and at most 1")
        require(self, "perturbation", bool(self.perturbation), "at least one perturbation")
        for name in ("perturbation", "glimpse"):
            require_known(self, name, PERTURBATIONS)
        if self.hippocampus != "last_batch":
            enough = self.hippocampus_capacity >= self.batch_size
            allowed = f"at least --batch_size ({self.batch_size})"
            require(self, "hippocampus_capacity", enough, allowed)
        weights = ("kl_weight", "decorrelation_weight", "external_weight", "wake_noise_variance")
        others = ("train_examples", "seed", "dream_every", "probe_every")
        for name in (*weights, "gradient_penalty_weight", "clip_norm", *others):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        require(self, "seed", self.seed < 2**63, "a number of 64 bits")
        require(self, "batch_size", self.batch_size >= 2, "at least 2: one image has no variance")
        require(self, "image_size", self.image_size in (32, 64, 128), "32, 64 or 128")
        for name in ("reconstruction_weight", "recovery_weight", "internal_weight"):
            require(self, name, getattr(self, name) > 0, "above 0; --phases leaves a phase out")
        penalised = self.external_weight > 0 or not self.gradient_penalty_weight
        require(self, "gradient_penalty_weight", penalised, "0 with --external_weight=0")
        warm = 0 <= self.warmup_epochs < self.epochs
        require(self, "warmup_epochs", warm, f"0 or more, and below --epochs ({self.epochs})")
        for name in ("beta_1", "beta_2", "average_weights"):
            require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        shares = ("mix_recent", "mix_memories", "occlusion_min", "occlusion_max", "colour_strength")
        for name in shares:
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for high, low in (("occlusion_max", "occlusion_min"), ("tile_max", "tile_min")):
            least = getattr(self, low)
            require(self, high, getattr(self, high) >= least, f"no less than --{low} ({least})")
        first, *others = self.phases or ("",)
        orderly = first == "wake" and sorted(others) in ([], ["nrem"], ["rem"], ["nrem", "rem"])
        allowed = "'wake', then 'nrem' and 'rem' once each in any order, or without one of them"
        require(self, "phases", orderly, allowed)

    @property
    def condition(self) -> str:
        """Which of the paper's conditions this is, or `custom`."""
        model = [f for f in dataclasses.fields(Config) if f.metadata["group"] in (_PHASES, _PARTS)]
        for condition, changes in CONDITIONS.items():
            if all(getattr(self, f.name) == changes.get(f.name, f.default) for f in model):
                return condition
        return "custom"

    @property
    def without_effect(self) -> list[str]:
        """Of each flag that is not its default but changes nothing here, what it needs."""
        nrem, rem = ("nrem" in self.phases), ("rem" in self.phases)
        mixes = rem or (nrem and self.nrem_memories == "mixed")
        shown = {*self.glimpse, *(self.perturbation if nrem else ())}
        compared = {*[self.agreement] * bool(self.glimpse), *[self.recovery] * nrem}
        needs = {
            "agreement agreement_weight": (self.glimpse, "--glimpse"),
            "recovery perturbation nrem_memories recovery_weight": (nrem, "nrem in --phases"),
            "internal_weight": (rem, "rem in --phases"),
            "mixing mix_recent mix_memories hippocampus": (mixes, "REM, or NREM of mixed memories"),
            "hippocampus_capacity": (
                mixes and self.hippocampus != "last_batch",
                "REM, or NREM of mixed memories, and another --hippocampus",
            ),
            "adversary": (rem or self.external_weight, "rem in --phases or --external_weight"),
            "temperature": ("contrast" in compared, "contrast as --recovery or --agreement"),
            "views": (compared - {"distance"}, "a --recovery or --agreement that compares views"),
        }
        for part, names in _OF_PERTURBATIONS.items():
            needs[names] = (part in shown, f"{part} in --perturbation or --glimpse")
        return [
            f"--{name} has no effect here: it needs {needed}."
            for names, (used, needed) in needs.items()
            for name in names.split()
            if not used and getattr(self, name) != getattr(Config, name)
        ]

    @property
    def run_path(self) -> Path:
        """The folder of the run."""
        if self.run_dir:
            return Path(self.run_dir).expanduser()
        name = short_name(self.dataset)
        return Path("runs") / (name if self.condition == "full" else f"{name}-{self.condition}")

    @property
    def export_path(self) -> Path:
        """The folder of the exported networks."""
        if self.saved_model_dir:
            return Path(self.saved_model_dir).expanduser()
        return Path("saved_models") / self.run_path.resolve().name

    def to_json(self) -> str:
        """The flags as they are saved beside a run."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: if the text is not the flags of a run of this version.
        """
        try:
            values = json.loads(text)
            if not values:
                raise ValueError("not the flags of a run: there are none")
            unknown = [name for name in values if name not in cls.__dataclass_fields__]
            if unknown:
                told = " and ".join(f"--{name}" for name in unknown)
                raise ValueError(f"of another version of ad_keras, with {told}")
            lists = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
            return cls(**values | lists)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not the flags of a run ({error})") from error


RUN_ONLY = frozenset({"data_dir", "epochs"}) | {
    field.name for field in dataclasses.fields(Config) if field.metadata["group"] == _RUN
}
"""Flags that a continued run may change: no weight at a given step depends on them, except for
rounding, which other devices do differently, and for `epochs` with a cosine schedule."""
