"""What comes out of a search: the trials as their runs tell of them, a table, and the flagfile."""

import dataclasses
import json
import statistics
from pathlib import Path

from ad_keras.errors import RunError
from ad_keras.runs.config import Config
from ad_keras.runs.folder import read_history, write_atomically
from ad_keras.tuning.config import TuneConfig

UNTUNED = 0
"""Number of the trial that has the flags as they were given."""

SEEDS = 3
"""How many seeds the best trials are trained with, from the search's own on."""

PROBES = {"ridge_probe": "ridge probe", "probe": "linear probe"}
"""What a trial is scored by, and its name for people."""

FAILURE = "failure.txt"
"""File of a run that failed, which says why."""

_NOT_IN_FLAGFILES = ["data_dir", "hold_out", "strategy", "run_dir", "saved_model_dir", "overwrite"]
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial of a search.

    Attributes:
        number: from 0.
        values: of the flags that are varied.
        epochs: of training.
        runs: folders of its runs by seed, that of the search first.
    """

    number: int
    values: dict[str, float]
    epochs: int
    runs: dict[int, str]

    @property
    def scores(self) -> dict[int, dict[str, float]]:
        """By seed, of runs that are finished by now: accuracy by probe, 0 to 1."""
        ends = {seed: read_history(Path(run)) for seed, run in self.runs.items()}
        ends = {seed: history.get(str(self.epochs), {}) for seed, history in ends.items()}
        names = {name: f"{name}/validation_accuracy" for name in PROBES}
        return {
            seed: {name: end[key] for name, key in names.items()}
            for seed, end in ends.items()
            if end.keys() >= set(names.values())
        }

    @property
    def failures(self) -> dict[int, str]:
        """By seed, why runs failed."""
        files = {seed: Path(run, FAILURE) for seed, run in self.runs.items()}
        scores = self.scores
        return {
            seed: file.read_text().strip()
            for seed, file in files.items()
            if seed not in scores and file.exists()
        }

    def mean(self, probe: str) -> float:
        """The mean score of its finished runs by one of `PROBES`."""
        return statistics.mean(score[probe] for score in self.scores.values())


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
    def finished(self) -> list[Trial]:
        """The trials whose first run is finished, best first by this run."""
        seed, objective = self.flags.seed, self.flags.objective
        finished = [trial for trial in self.trials if seed in trial.scores]
        return sorted(finished, key=lambda trial: -trial.scores[seed][objective])

    @property
    def finalists(self) -> list[Trial]:
        """The trials to train with other seeds: the best of those that differ."""
        distinct = {}
        for trial in self.finished:
            distinct.setdefault(tuple(trial.values.values()), trial)
        return list(distinct.values())[: self.flags.retrain]

    @property
    def ranking(self) -> list[Trial]:
        """The finished trials, best first; those with a score for each seed lead, by their mean.

        Without finalists, or while these have runs to go, the first run of each trial counts alone.
        """
        finalists = self.finalists
        done = all(len(trial.scores) + len(trial.failures) == SEEDS for trial in finalists)
        if not (finalists and done):
            return self.finished
        complete = [trial for trial in self.finished if len(trial.scores) == SEEDS]
        complete.sort(key=lambda trial: -trial.mean(self.flags.objective))
        return complete + [trial for trial in self.finished if trial not in complete]

    @property
    def flagfile(self) -> Path:
        """Where the best trial's flags are written."""
        return self.flags.run_path / f"tuned_{self.flags.name}.flags"

    def require_one(self) -> None:
        """Raises a RunError if no trial is finished."""
        if not self.finished:
            failures = [message for trial in self.trials for message in trial.failures.values()]
            raise RunError(
                f"no trial worked, see {self.flags.run_path / 'trials.md'}. The last: "
                f"{failures[-1] if failures else 'there was none'}."
            )

    def write(self) -> None:
        """Writes `trials.json`, `trials.md` and, if a trial is finished, the flagfile."""
        folder = self.flags.run_path
        told = [
            {**dataclasses.asdict(trial), "scores": trial.scores, "failures": trial.failures}
            for trial in self.trials
        ]
        write_atomically(folder / "trials.json", json.dumps(told, indent=1) + "\n")
        write_atomically(folder / "trials.md", self._markdown())
        if self.finished:
            write_atomically(self.flagfile, self._flagfile())

    def summary(self) -> str:
        """The best trials and the untuned flags, for the terminal."""
        ranking = self.ranking
        best = [t for place, t in enumerate(ranking) if place < _SHOWN or t.number == UNTUNED]
        rows = [self._heads, *map(self._cells, best)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
        lines = ["  ".join([*map(str.rjust, row, widths), row[-1]]) for row in rows]
        return "\n".join([self._title, *lines])

    @property
    def _title(self) -> str:
        failed = sum(self.flags.seed in trial.failures for trial in self.trials)
        return (
            f"{PROBES[self.flags.objective].capitalize()} on held-out training images, best first "
            f"({len(self.finished)} finished, {failed} failed)"
        )

    @property
    def _heads(self) -> list[str]:
        seeds = [f"seed {self.flags.seed + offset}" for offset in range(SEEDS)]
        return ["trial", *seeds, "mean", "deviation", PROBES[self._other], "epochs", "flags"]

    @property
    def _other(self) -> str:
        return next(probe for probe in PROBES if probe != self.flags.objective)

    def _cells(self, trial: Trial) -> list[str]:
        scores, cells = trial.scores, dict.fromkeys(self._heads, "")
        cells |= {f"seed {seed}": "failed" for seed in trial.failures}
        accuracy = {seed: score[self.flags.objective] for seed, score in scores.items()}
        cells |= {f"seed {seed}": f"{share:.1%}" for seed, share in accuracy.items()}
        if len(scores) == SEEDS:
            cells["mean"] = f"{statistics.mean(accuracy.values()):.1%}"
            cells["deviation"] = f"{statistics.stdev(accuracy.values()):.1%}"
        if scores:
            cells[PROBES[self._other]] = f"{trial.mean(self._other):.1%}"
        untuned = "(untuned) " if trial.number == UNTUNED else ""
        told = untuned + " ".join(as_flags(trial.values))
        cells |= {"trial": str(trial.number), "epochs": str(trial.epochs), "flags": told}
        return list(cells.values())

    def _markdown(self) -> str:
        ranking = self.ranking
        rest = [trial for trial in self.trials if trial not in ranking]
        rows = [self._heads, ["---"] * len(self._heads), *map(self._cells, ranking + rest)]
        failures = [
            f"- trial {trial.number} with seed {seed} failed: {message}"
            for trial in self.trials
            for seed, message in trial.failures.items()
        ]
        lines = [
            f"# Trials of a search on {self.flags.dataset}",
            f"\n{self._title}. No trial was trained on the tenth of the training images that "
            f"scores it. Trial {UNTUNED} has the untuned flags. Trials with a mean were trained "
            "again with other seeds.\n",
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
        return "\n".join(lines + [""] * bool(failures) + failures) + "\n"

    def _flagfile(self) -> str:
        flags, best = self.flags, self.ranking[0]

        def told(trial: Trial) -> str:
            of = f"mean of {len(trial.scores)} seeds" if len(trial.scores) > 1 else "one seed"
            return f"{trial.mean(flags.objective):.1%} after {trial.epochs} epochs, {of}"

        untuned = [trial for trial in self.finished if trial.number == UNTUNED != best.number]
        plain, config = dataclasses.asdict(Config()), flags.training(**best.values)
        changed = {
            name: value
            for name, value in dataclasses.asdict(config).items()
            if name not in _NOT_IN_FLAGFILES and value != plain[name]
        }
        lines = [
            f"# Tuned for {flags.dataset}: trial {best.number} of {len(self.trials)} by "
            f"ad_keras.tune ({flags.tuner}, seed {flags.seed}).",
            f"# python -m ad_keras.train --flagfile={self.flagfile}"
            + (f" --data_dir={flags.data_dir}" if flags.data_dir else ""),
            f"# {PROBES[flags.objective]} on held-out training images: {told(best)}"
            + "".join(f" (untuned flags: {told(trial)})" for trial in untuned),
            *as_flags(changed),
        ]
        return "\n".join(lines) + "\n"


def as_flags(values: dict) -> list[str]:
    """Values by flag, as they stand on a command line."""
    texts = {name: ",".join(v) if isinstance(v, tuple) else v for name, v in values.items()}
    return [
        f"--{'' if value else 'no'}{name}" if isinstance(value, bool) else f"--{name}={value}"
        for name, value in texts.items()
    ]
