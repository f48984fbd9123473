"""What a reproduction is told."""

import dataclasses
import difflib
from pathlib import Path

from ad_keras.cli import flag
from ad_keras.errors import UsageError
from ad_keras.evaluation.config import EvaluateConfig
from ad_keras.evaluation.published import LINEAR_SEPARABILITY
from ad_keras.runs.config import CONDITIONS, Config

PHASES = Config().phases


@dataclasses.dataclass(frozen=True)
class ReproduceConfig:
    """Trains the missing runs of the paper's conditions, measures all, and writes one report.

    Raises:
        UsageError: one line that names the flag, its value, and what it may be.
    """

    dataset: str = flag("synth_digits", "Data", "data set with labels, as for training")
    data_dir: str | None = flag(
        None, "Data", "folder of prepared TensorFlow Datasets (default: ~/tensorflow_datasets)"
    )
    image_size: int = flag(32, "Data", "side of the images in pixels: 32, 64 or 128")
    train_examples: int = flag(0, "Data", "number of training images to use (0: all)")

    conditions: tuple[str, ...] = flag(
        tuple(LINEAR_SEPARABILITY["cifar10"]),
        "Runs",
        f"conditions to compare, of {', '.join(CONDITIONS)}",
    )
    seeds: tuple[str, ...] = flag(
        ("0",), "Runs", "seeds; each condition has a run for each. Several give standard errors"
    )
    epochs: int = flag(50, "Runs", "passes over the training images")
    equal_updates: bool = flag(
        False,
        "Runs",
        "train conditions without a phase for more epochs, so that their encoders are updated as "
        "often as the full model's",
    )
    batch_size: int = flag(64, "Runs", "images of a mini-batch")
    latent_dim: int = flag(256, "Runs", "size of the latent")
    base_filters: int = flag(64, "Runs", "filters of the first block; each next doubles them")
    precision: str = flag(
        "float32", "Runs", "precision of the networks in training", ("float32", "mixed_bfloat16")
    )
    probe_every: int = flag(1, "Runs", "epochs between the probes of Figure 4")
    dream_every: int = flag(1, "Runs", "epochs between pictures of dreams in TensorBoard (0: none)")

    num_dreams: int = flag(
        10_000, "Measurements", "number of dreams of each kind that are compared with real images"
    )
    probe_seeds: int = flag(
        5, "Measurements", "number of seeds of the paper's probe, which is noisy"
    )
    features: str = flag(
        "classifier",
        "Measurements",
        "features in which dreams are compared: of a classifier, trained once on the same data, or "
        "of Inception v3",
        ("classifier", "inception"),
    )
    inception_weights: str | None = flag(
        None,
        "Measurements",
        "file of Inception's weights, without its last layer (default: a download)",
    )

    runs_dir: str = flag(
        "runs",
        "Folders",
        "folder of the runs <data set>[-<condition>][-equal_updates][-seed<N>]; the full model and "
        "seed 0 are not named. Finished runs are reused, others continue",
    )
    saved_models_dir: str = flag("saved_models", "Folders", "folder of the exported networks")
    results_dir: str | None = flag(
        None,
        "Folders",
        "folder of finished runs, each with flags.json, history.json and results.json: report on "
        "them, train and measure nothing, ignore the flags above",
    )
    output_dir: str | None = flag(
        None,
        "Folders",
        "folder of report.html, report.md and pictures/ (default: --results_dir, or "
        "runs/<data set>-report)",
    )
    cache_dir: str = flag(
        "~/.cache/ad_keras", "Folders", "folder of the classifier and the features of real images"
    )
    dry_run: bool = flag(
        False, "Folders", "train nothing; say what would be trained and how long it would take"
    )

    def __post_init__(self):
        for name in self.conditions:
            if name not in CONDITIONS:
                near = difflib.get_close_matches(name, CONDITIONS, n=2) or list(CONDITIONS)
                raise UsageError(
                    f"--conditions={name} is not a condition. Did you mean {' or '.join(near)}?"
                )
        for seed in self.seeds:
            if not (seed.isascii() and seed.isdigit()):
                raise UsageError(f"--seeds={seed} is not possible: seeds are whole numbers from 0.")
        for name, values in (("conditions", self.conditions), ("seeds", self.seed_numbers)):
            if not values:
                raise UsageError(f"--{name} is empty: name at least one.")
            if len(set(values)) < len(values):
                shown = ",".join(map(str, values))
                raise UsageError(f"--{name}={shown} names one of them twice.")
        # These check the other values.
        self.run_config(self.conditions[0], self.seed_numbers[0])
        self.evaluate_config("checked")

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """The seeds as numbers."""
        return tuple(map(int, self.seeds))

    @property
    def report_path(self) -> Path:
        """The folder of the report."""
        if self.output_dir or self.results_dir:
            return Path(self.output_dir or self.results_dir).expanduser()
        kind = "-equal_updates" if self.equal_updates else ""
        return Path(self.runs_dir).expanduser() / f"{self._plain_name('full', 0)}{kind}-report"

    def run_config(self, condition: str, seed: int) -> Config:
        """The training run of a condition and a seed, in its folder.

        Args:
            condition: of `ad_keras.runs.config.CONDITIONS`.
            seed: of the run.
        """
        name = self._plain_name(condition, seed)
        return Config(
            **self._shape(condition, seed),
            run_dir=str(Path(self.runs_dir) / name),
            saved_model_dir=str(Path(self.saved_models_dir) / name),
        )

    def evaluate_config(self, run_dir: str) -> EvaluateConfig:
        """How a run is measured.

        Args:
            run_dir: folder of the run.
        """
        own = {"run_dir": (run_dir,), "output_dir": None}
        return EvaluateConfig(**self._shared(EvaluateConfig) | own)

    def _plain_name(self, condition: str, seed: int) -> str:
        """What training calls the run by itself, and the seed, which it leaves out."""
        config = Config(**self._shape(condition, seed))
        name = config.run_path.name + ("-equal_updates" if config.epochs != self.epochs else "")
        return f"{name}-seed{seed}" if seed else name

    def _shape(self, condition: str, seed: int) -> dict:
        shape = self._shared(Config) | {"seed": seed, **CONDITIONS[condition]}
        if self.equal_updates:
            updates = len(CONDITIONS[condition].get("phases", PHASES))  # of a mini-batch
            shape["epochs"] = round(self.epochs * len(PHASES) / updates)
        return shape

    def _shared(self, kind: type) -> dict:
        """The flags that another command has too."""
        names = {field.name for field in dataclasses.fields(kind)}
        return {name: value for name, value in vars(self).items() if name in names}
