"""What a reproduction is told."""

import dataclasses
from pathlib import Path

from ad_keras.cli import flag, require_known, same_flag
from ad_keras.errors import UsageError
from ad_keras.evaluation.config import EvaluateConfig
from ad_keras.evaluation.published import LINEAR_SEPARABILITY
from ad_keras.runs.config import CONDITIONS, Config

PHASES = Config().phases

_RUNS = "Runs"


@dataclasses.dataclass(frozen=True)
class ReproduceConfig:
    """Trains the missing runs of the paper's conditions, measures all, and writes one report.

    Raises:
        UsageError: one line that names the flag, its value, and what it may be.
    """

    dataset: str = flag("synth_digits", "Data", "data set with labels, as for training")
    data_dir: str | None = same_flag(Config, "data_dir", "Data")
    image_size: int = same_flag(Config, "image_size", "Data")
    train_examples: int = same_flag(Config, "train_examples", "Data")

    conditions: tuple[str, ...] = flag(
        tuple(LINEAR_SEPARABILITY["cifar10"]),
        _RUNS,
        f"conditions to compare, of {', '.join(CONDITIONS)}",
    )
    seeds: tuple[str, ...] = flag(
        ("0",), _RUNS, "seeds; each condition has a run for each. Several give standard errors"
    )
    epochs: int = same_flag(Config, "epochs", _RUNS)
    equal_updates: bool = flag(
        False,
        _RUNS,
        "train conditions without a phase for more epochs, so that their encoders are updated as "
        "often as the full model's",
    )
    network: str = same_flag(Config, "network", _RUNS)
    latent_dim: int = same_flag(Config, "latent_dim", _RUNS)
    base_filters: int = same_flag(Config, "base_filters", _RUNS)
    batch_size: int = same_flag(Config, "batch_size", _RUNS)
    encoder_learning_rate: float = same_flag(Config, "encoder_learning_rate", _RUNS)
    generator_learning_rate: float = same_flag(Config, "generator_learning_rate", _RUNS)
    schedule: str = same_flag(Config, "schedule", _RUNS)
    warmup_epochs: float = same_flag(Config, "warmup_epochs", _RUNS)
    clip_norm: float = same_flag(Config, "clip_norm", _RUNS)
    average_weights: float = same_flag(Config, "average_weights", _RUNS)
    precision: str = same_flag(Config, "precision", _RUNS)
    probe_every: int = flag(1, _RUNS, "epochs between the probes of Figure 4")
    dream_every: int = flag(1, _RUNS, "epochs between pictures of dreams in TensorBoard (0: none)")

    num_dreams: int = same_flag(EvaluateConfig, "num_dreams", "Measurements")
    probe_seeds: int = same_flag(EvaluateConfig, "probe_seeds", "Measurements")
    features: str = same_flag(EvaluateConfig, "features", "Measurements")
    inception_weights: str | None = same_flag(EvaluateConfig, "inception_weights", "Measurements")

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
        "folder of report.html, report.md and pictures/ (default: --results_dir, or in --runs_dir "
        "<data set>[-equal_updates]-report)",
    )
    cache_dir: str = same_flag(EvaluateConfig, "cache_dir", "Folders")
    dry_run: bool = flag(
        False, "Folders", "train nothing; say what would be trained and how long it would take"
    )

    def __post_init__(self):
        require_known(self, "conditions", CONDITIONS)
        for seed in self.seeds:
            if not (seed.isascii() and seed.isdigit()):
                raise UsageError(f"--seeds={seed} is not possible: seeds are whole numbers from 0.")
        for name, values in (("conditions", self.conditions), ("seeds", self.seed_numbers)):
            if not values:
                raise UsageError(f"--{name} is empty: name at least one.")
            if len(set(values)) < len(values):
                shown = ",".join(map(str, values))
                raise UsageError(f"--{name}={shown} names one of them twice.")
        if self.dry_run and self.results_dir:
            raise UsageError(
                "--dry_run says what would be trained, but --results_dir trains nothing: leave one "
                "of them out."
            )
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
        """The training run of one of `CONDITIONS` and a seed, in its folder."""
        name = self._plain_name(condition, seed)
        return Config(
            **self._shape(condition, seed),
            run_dir=str(Path(self.runs_dir) / name),
            saved_model_dir=str(Path(self.saved_models_dir) / name),
        )

    def evaluate_config(self, run_dir: str) -> EvaluateConfig:
        """How the run in a folder is measured."""
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
