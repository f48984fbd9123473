"""What comes out of a search: a record of each trial, a table of all, and the flagfile."""

import dataclasses
import json
from pathlib import Path

from ad_keras.runs.config import Config
from ad_keras.runs.folder import write_atomically
from ad_keras.tuning.config import TuneConfig

FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"
UNTUNED = 0
"""Number of the trial that has the flags as they were given."""

_RECORD = "result.json"
_NOT_IN_FLAGFILES = {
    "data_dir",
    "hold_out",
    "strategy",
    "run_dir",
    "saved_model_dir",
    "overwrite",
}
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial of a search.

    Attributes:
        number: from 0.
        status: `FINISHED`, `FAILED` or `UNFINISHED`.
        values: of the flags that are varied.
        epochs: that it was, or is to be, trained for.
        continues: number of the trial whose training it continues, if any.
        scores: accuracy by probe, 0 to 1; empty unless finished.
        seconds: that it took; if it was interrupted, since it was continued.
        message: why it failed.
    """

    number: int
    status: str
    values: dict[str, float]
    epochs: int
    continues: int | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    message: str | None = None

    def save(self, folder: Path) -> None:
        """Writes the record.

        Args:
            folder: of the trial.
        """
        write_atomically(folder / _RECORD, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Trial | None":
        """Reads the record of a trial; None if it has none, or none that can be read.

        Args:
            folder: of the trial.
        """
        try:
            return cls(**json.loads((folder / _RECORD).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


@dataclasses.dataclass(frozen=True)
class Results:
    """The trials of a search so far.

    Attributes:
        flags: of the search.
        trials: by number.
    """

    flags: TuneConfig
    trials: tuple[Trial, ...]

    @property
    def ranking(self) -> list[Trial]:
        """The finished trials, best first."""
        finished = [trial for trial in self.trials if trial.status == FINISHED]
        return sorted(finished, key=lambda trial: -trial.scores[self.flags.objective])

    @property
    def flagfile(self) -> Path:
        """Where the best trial's flags are written."""
        return self.flags.run_path / f"tuned_{self.flags.name}.flags"

    def write(self) -> None:
        """Writes `trials.json`, `trials.md` and, if a trial is finished, the flagfile."""
        folder = self.flags.run_path
        text = json.dumps([dataclasses.asdict(trial) for trial in self.trials], indent=1)
        write_atomically(folder / "trials.json", text + "\n")
        write_atomically(folder / "trials.md", self._markdown())
        if self.ranking:
            write_atomically(self.flagfile, self._flagfile())

    def summary(self) -> str:
        """The best trials and the untuned flags, for the terminal."""
        best = self.ranking[:_SHOWN]
        best += [trial for trial in self.ranking[_SHOWN:] if trial.number == UNTUNED]
        counts = [sum(trial.status == status for trial in self.trials) for status in _STATUSES]
        counted = ", ".join(
            f"{count} {status}" for count, status in zip(counts, _STATUSES, strict=True) if count
        )
        lines = [("trial", *_TITLES.values(), "epochs", "flags")]
        for trial in best:
            scores = [f"{trial.scores[name]:.1%}" for name in _TITLES]
            flags = "untuned" if trial.number == UNTUNED else " ".join(as_flags(trial.values))
            lines.append((str(trial.number), *scores, str(trial.epochs), flags))
        widths = [max(map(len, column)) for column in list(zip(*lines, strict=True))[:-1]]
        return "\n".join(
            [
                f"Accuracy on held-out training images, best first ({counted})",
                *("  ".join([*map(str.rjust, line, widths), line[-1]]) for line in lines),
            ]
        )

    def _markdown(self) -> str:
        names = self.flags.varied
        heads = ["trial", "status", *_TITLES.values(), "epochs", "seconds"]
        lines = [
            f"# Trials of a search on {self.flags.dataset}",
            "",
            f"Best first by {self.flags.objective}: accuracy on the tenth of the training images "
            "that no trial was trained on. "
            f"Trial {UNTUNED} has the untuned flags.",
            "",
            "| " + " | ".join([*heads, *(f"`{name}`" for name in names)]) + " |",
            "|---" * (len(heads) + len(names)) + "|",
        ]
        rest = [trial for trial in self.trials if trial.status != FINISHED]
        for trial in [*self.ranking, *rest]:
            number = str(trial.number)
            if trial.number == UNTUNED:
                number += " (untuned)"
            if trial.continues is not None:
                number += f" (continues {trial.continues})"
            scores = [f"{trial.scores[name]:.1%}" if trial.scores else "-" for name in _TITLES]
            seconds = "-" if trial.seconds is None else f"{trial.seconds:.0f}"
            cells = [number, trial.status, *scores, str(trial.epochs), seconds]
            cells += [_text(trial.values[name]) for name in names]
            lines.append("| " + " | ".join(cells) + " |")
        failed = [trial for trial in rest if trial.status == FAILED]
        if failed:
            lines += ["", "Why trials failed:", ""]
            lines += [f"- {trial.number}: {trial.message}" for trial in failed]
        return "\n".join(lines) + "\n"

    def _flagfile(self) -> str:
        flags, best = self.flags, self.ranking[0]
        objective = flags.objective
        untuned = [trial for trial in self.ranking if trial.number == UNTUNED]
        command = f"python -m ad_keras.train --flagfile={self.flagfile}"
        if flags.data_dir:
            command += f" --data_dir={flags.data_dir}"
        compared = (
            f"# {_TITLES[objective]} on held-out training images {best.scores[objective]:.1%}"
        )
        compared += f" after {best.epochs} epochs"
        if untuned and best.number != UNTUNED:
            compared += (
                f" (untuned flags: {untuned[0].scores[objective]:.1%} after {untuned[0].epochs})"
            )
        plain = Config()
        config = flags.training(**best.values)
        changed = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(Config)
            if field.name not in _NOT_IN_FLAGFILES
            and getattr(config, field.name) != getattr(plain, field.name)
        }
        lines = [
            f"# Tuned for {flags.dataset}: trial {best.number} of {len(self.trials)} by "
            f"ad_keras.tune ({flags.tuner}, seed {flags.seed}).",
            f"# {command}",
            f"{compared}.",
            *as_flags(changed),
        ]
        return "\n".join(lines) + "\n"


_STATUSES = (FINISHED, FAILED, UNFINISHED)
_TITLES = {"probe": "linear probe", "ridge_probe": "ridge probe"}


def as_flags(values: dict) -> list[str]:
    """Values as they stand on a command line.

    Args:
        values: by flag.
    """
    return [
        f"--{'' if value else 'no'}{name}"
        if isinstance(value, bool)
        else f"--{name}={_text(value)}"
        for name, value in values.items()
    ]


def _text(value) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)
