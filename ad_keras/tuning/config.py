"""What a search is told."""

import dataclasses
from pathlib import Path

from ad_keras.cli import flag, require, require_known
from ad_keras.errors import UsageError
from ad_keras.runs.config import RUN_ONLY, Config
from ad_keras.tuning.space import SPACE

_TRAINING, _RUN, _SEARCH = "Training", "Run", "Search"

MAY_CHANGE = RUN_ONLY | {"hold_out", "max_trials", "retrain", "tuner_dir"}
"""Flags that a continued search may change: no finished trial depends on them."""


@dataclasses.dataclass(frozen=True)
class TuneConfig(Config):
    """Searches flags of training that maximise a probe on held-out training images."""

    epochs: int = flag(
        50, _TRAINING, "epochs in the flagfile that comes out; trials have --epochs_per_trial"
    )
    hold_out: bool = flag(False, _TRAINING, "no effect: every trial holds images out")
    run_dir: str | None = flag(None, _RUN, "not for a search: use --tuner_dir")
    saved_model_dir: str | None = flag(None, _RUN, "not for a search: trials export nothing")
    overwrite: bool = flag(False, _RUN, "delete the search in --tuner_dir and begin anew")
    dream_every: int = flag(1, _RUN, "value in the flagfile; trials draw no pictures")
    probe_every: int = flag(1, _RUN, "value in the flagfile; trials are probed at their end")

    tuner: str = flag(
        "bayesian", _SEARCH, "how trials are chosen", ("random", "bayesian", "hyperband")
    )
    max_trials: int = flag(
        30,
        _SEARCH,
        "number of trials, trial 0 with your values included; a higher one continues a search",
    )
    epochs_per_trial: int = flag(
        5,
        _SEARCH,
        "epochs of a trial. hyperband: of the longest; others have a third, a ninth, ...",
    )
    search: tuple[str, ...] = flag(
        ("all",),
        _SEARCH,
        f"flags to vary: all that have an effect, or a list of {', '.join(SPACE)}",
    )
    objective: str = flag(
        "ridge_probe",
        _SEARCH,
        "accuracy to maximise: the ridge probe, or the paper's linear probe, which is noisy and "
        "rewards the latents' scale",
        ("ridge_probe", "probe"),
    )
    retrain: int = flag(
        3,
        _SEARCH,
        "train this many best trials again with two other seeds each; the highest mean wins "
        "(0: none)",
    )
    tuner_dir: str | None = flag(
        None, _SEARCH, "folder of trials and results (default: runs/tune-<data set>[-<condition>])"
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("run_dir", "saved_model_dir"):
            allowed = "left out: a search has its own folder, --tuner_dir"
            require(self, name, not getattr(self, name), allowed)
        require(self, "strategy", self.strategy != "multi_worker", "another: workers search alone")
        for name in ("max_trials", "epochs_per_trial"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "retrain", self.retrain >= 0, "0 or more")
        shortest = 1 if self.tuner == "hyperband" else self.epochs_per_trial
        allowed = f"below the epochs of the shortest trial ({shortest})"
        require(self, "warmup_epochs", self.warmup_epochs < shortest, allowed)
        # A trial that hyperband lets go on would jump from a short cosine's end into a longer one.
        constant = self.tuner != "hyperband" or self.schedule == "constant"
        require(self, "schedule", constant, "constant with --tuner=hyperband")
        require(self, "search", bool(self.search), f"all, or a list of {', '.join(SPACE)}")
        require_known(self, "search", ["all", *SPACE])
        for name in self.search:
            if name != "all" and not SPACE[name].plays_a_role(self):
                raise UsageError(f"--search={name} plays no role: its part or loss is not used.")

    @property
    def name(self) -> str:
        """The data set, and the condition if it is not the full model."""
        return super().run_path.name

    @property
    def run_path(self) -> Path:
        """The folder of the search."""
        return Path(self.tuner_dir) if self.tuner_dir else Path("runs") / f"tune-{self.name}"

    @property
    def varied(self) -> list[str]:
        """The flags that are varied, in the order of the space."""
        if "all" in self.search:
            return [name for name, entry in SPACE.items() if entry.plays_a_role(self)]
        return [name for name in SPACE if name in self.search]

    def training(self, **changes) -> Config:
        """The flags of training: those of this search with some of them changed."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(Config)}
        return Config(**{**shared, **changes})
