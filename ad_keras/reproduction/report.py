"""The report of runs that were trained and measured: as one web page, and as Markdown."""

import base64
import collections
import dataclasses
import functools
import io
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import pandas as pd
import tensorflow as tf

from ad_keras import data
from ad_keras.errors import RunError, UsageError, first_line
from ad_keras.evaluation import plots, report
from ad_keras.evaluation.plots import readable
from ad_keras.evaluation.published import SEEDS, differences, sample
from ad_keras.evaluation.suite import OF_DREAMS
from ad_keras.measures import statistics
from ad_keras.reproduction import findings
from ad_keras.reproduction.config import PHASES
from ad_keras.reproduction.findings import AREA, FIRST, LOST, NOT_MEASURED, Finding
from ad_keras.runs import pictures
from ad_keras.runs.checkpoints import Checkpoints
from ad_keras.runs.config import CONDITIONS, RUN_ONLY, Config
from ad_keras.runs.folder import load_config, read_history, write_atomically
from ad_keras.runs.restore import READOUTS, epochs_behind, of_test_images, restore_run

_PAPER = (
    "A reproduction of Deperrois, Petrovici, Senn and Jordan, Learning cortical representations "
    "through perturbed and adversarial dreaming, eLife 2022;11:e76384."
)
_TESTS = (
    "One comparison for each claim, at 5 %. Differences between conditions are judged by Welch's "
    "test, those of the same runs at two times by the paired t-test, claims of no effect by two "
    "one-sided tests against the margin (TOST). Figures are mean ± standard error (seeds)."
)
_NOT_COUNTED = "These are not counted among the claims."
_REST = {
    statistics.CONTRADICTED: "contradicted",
    statistics.UNDECIDED: "undecided",
    statistics.ONE_SEED: "not judged for want of seeds",
    NOT_MEASURED: "not measured",
}
_READOUTS = {**READOUTS, "knn": ""}
_LOSSES = {
    ("wake", "reconstruction_loss"): "Wake: reconstruction",
    ("wake", "kl_loss"): "Wake: divergence from the prior",
    ("wake", "external_loss"): "Wake: images called external",
    ("nrem", "recovery_loss"): "NREM: recovery",
    ("rem", "internal_loss"): "REM: dreams called internal",
}
_curves = functools.partial(plots.curves, order=list(CONDITIONS))
_PICTURES = ("dreams_epoch_*", "fid", "separability", "occlusion", "pca", "distances", "losses")
_SHOWN_CLASSES = 4  # of the maps, as in the paper
_MEMORIES = 10  # columns of a sheet of dreams
_SEED = 0  # of their choice, occlusions and noise


class Run(NamedTuple):
    """What a run's folder says; `history` may be empty, and `results` None."""

    folder: Path
    config: Config
    history: dict
    results: dict | None

    @property
    def name(self) -> str:
        """Condition and seed, for people."""
        return f"{readable(self.config.condition)}, seed {self.config.seed}"

    @property
    def epochs_of_full_model(self) -> int:
        """In which its encoder is updated as often: once in each phase of a mini-batch."""
        return round(self.config.epochs * len(self.config.phases) / len(PHASES))


class Table(NamedTuple):
    """Lines of cells."""

    caption: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG with its file's name, without suffix, and what it shows."""

    name: str
    caption: str
    png: bytes


class Section(NamedTuple):
    """A part of the report."""

    title: str
    texts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads `flags.json`, `history.json` and `results.json` of runs of one data set.

    Args:
        folders: of the runs; nothing else in them is needed.

    Returns:
        The runs, in the order of the paper's conditions and of the seeds.

    Raises:
        UsageError: if a file cannot be read, or the runs differ in more than condition and seed,
            or not in these.
    """
    runs = [
        Run(folder, load_config(folder), read_history(folder), _read_results(folder))
        for folder in folders
    ]
    changed = {name for changes in CONDITIONS.values() for name in changes}
    for run in runs:
        if run.config.condition not in CONDITIONS:
            raise UsageError(f"the run in {run.folder} is of none of the paper's conditions.")
        if run.results and not run.results["class_names"]:
            raise UsageError(
                f"{run.folder} was measured on images without labels, which the paper's "
                "measurements need."
            )
        before, now = (dataclasses.asdict(each.config) for each in (runs[0], run))
        for name in sorted(set(now) - changed - RUN_ONLY - {"seed"}):
            if before[name] != now[name]:
                raise UsageError(
                    f"{runs[0].folder} and {run.folder} are of other settings: --{name} is "
                    f"{before[name]} and {now[name]}. Report on them one by one."
                )
    places = list(CONDITIONS)
    runs.sort(key=lambda run: (places.index(run.config.condition), run.config.seed))
    for one, other in itertools.pairwise(runs):
        if one.name == other.name:
            raise UsageError(f"{one.folder} and {other.folder} are of the same condition and seed.")
    return runs


def write_report(
    runs: Sequence[Run], folder: Path, command: str, failed: Sequence[str] = ()
) -> None:
    """Writes `report.html`, `report.md` and its `pictures/`.

    Dreams are only drawn where there are a run's checkpoints.

    Args:
        runs: as `read_runs` gives them; those that were not measured are named and left out.
        folder: of the report.
        command: the command line that made it.
        failed: what to say of runs that could not be trained or measured.

    Raises:
        UsageError: if no run was measured.
    """
    sections = _Report(runs, failed).sections()
    title = f"Perturbed and adversarial dreaming on {data.short_name(runs[0].config.dataset)}"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for name in _PICTURES:  # of an earlier report
        for old in (folder / "pictures").glob(f"{name}.png"):
            old.unlink()
    for picture in (picture for section in sections for picture in section.pictures):
        (folder / "pictures" / f"{picture.name}.png").write_bytes(picture.png)
    write_atomically(folder / "report.md", _markdown(title, sections, command))
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    page.filters["base64"] = lambda png: base64.b64encode(png).decode()
    text = page.get_template("report.html").render(title=title, sections=sections, command=command)
    write_atomically(folder / "report.html", text + "\n")


class _Report:
    """What the report says and shows, of runs that were measured after the same epoch."""

    def __init__(self, runs: Sequence[Run], failed: Sequence[str]) -> None:
        # Whether conditions were given epochs by their numbers of updates.
        different = len({run.config.epochs for run in runs}) > 1
        self.equal = different and len({run.epochs_of_full_model for run in runs}) == 1
        epochs = collections.Counter(self._epoch(run) for run in runs if run.results)
        if not epochs:
            raise UsageError(
                f"none of the {len(runs)} runs was measured: no results.json is there."
            )
        # The epoch of most runs; of two that are as common, the later.
        self.at = max(epochs, key=lambda epoch: (epochs[epoch], epoch))
        self.runs = [r for r in runs if r.results and self._epoch(r) == self.at]
        self.axis = "epochs of the full model with as many updates" if self.equal else "epochs"
        others = [run.name for run in runs if run not in self.runs]
        self.left_out = [*failed, *(f"{name} (not measured at epoch {self.at})" for name in others)]
        self.seeds = collections.Counter(run.config.condition for run in self.runs)
        self.chance = report.chance(self.runs[0].results)
        # Of the networks in whose features dreams were compared, where they were.
        features = {r.name: r.results["features"] for r in self.runs if "features" in r.results}
        digests = {name: network.get("weights") for name, network in features.items()}
        counted = collections.Counter(digests.values())
        shared = max(counted, key=counted.get, default=None)
        named = (features[name]["name"] for name in digests if digests[name] == shared)
        self.features = next(named, None)
        # How each metric was measured, of most runs.
        ways = collections.Counter(way for run in self.runs for way in _ways(run).items())
        usual = {metric: way for (metric, way), _ in reversed(ways.most_common())}
        frames = []
        for run in self.runs:
            of = run.config.condition, run.config.seed
            metrics = dict(run.results["metrics"])
            if others := [metric for metric, way in _ways(run).items() if way != usual[metric]]:
                metrics = {name: metrics[name] for name in metrics.keys() - others}
                self.left_out.append(f"{', '.join(others)} of {run.name} (measured otherwise)")
            frame = findings.tidy(*of, run.results | {"metrics": metrics}, run.history)
            if digests.get(run.name, shared) != shared:
                frame = frame[~frame.metric.isin(OF_DREAMS)]
                self.left_out.append(f"dreams of {run.name} (measured in other features)")
            frames.append(frame.assign(epoch=self._compared(run, frame.epoch)))
        frame = pd.concat(frames, ignore_index=True)
        self.frame = frame.assign(series=frame.condition, x=frame.epoch)
        self.dataset = self.runs[0].config.dataset
        self.claims, self.checks = findings.judge_all(self.frame, self.dataset, self.at)
        self.unlike = list(dict.fromkeys(text for run in self.runs for text in _differences(run)))

    def _compared(self, run: Run, epoch):
        """An epoch, or a column of them, in epochs of the full model if updates are equal."""
        # Such that the last epoch is a whole one, though numbers of epochs are rounded.
        return epoch * run.epochs_of_full_model / run.config.epochs if self.equal else epoch

    def _epoch(self, run: Run) -> float:
        """At which of the compared epochs a run was measured."""
        epoch = self._compared(run, run.results["epochs"])
        return int(epoch) if epoch == int(epoch) else epoch

    def _title(self, condition: str) -> str:
        """A condition for people, with its epochs where they are not those of the report."""
        own = {r.results["epochs"] for r in self.runs if r.config.condition == condition}
        others = ", ".join(f"{epoch} epochs" for epoch in sorted(own - {self.at}))
        return f"{readable(condition)} ({others})" if others else readable(condition)

    def sections(self) -> list[Section]:
        dreams = self._figure_3()  # the opening says if there are none
        return [
            self._opening(),
            Section("The paper's claims", [_TESTS], [self._judged(self.claims)]),
            self._table_1(),
            dreams,
            self._figure_4(),
            self._figure_5(),
            self._figure_6(),
            self._losses(),
            Section("Robustness checks", [_NOT_COUNTED], [self._judged(self.checks)]),
        ]

    def _opening(self) -> Section:
        counts = collections.Counter(finding.verdict for finding in self.claims)
        rest = [f"{counts[verdict]} {text}" for verdict, text in _REST.items() if counts[verdict]]
        rem = self.claims[0]
        much = [f"{rem.claim.text}: {_difference(rem.comparison, True)}"] if rem.comparison else []
        if beside := self._published("full"):
            much.append(f"PAD less published: {beside[1]}")
        precision = self.runs[0].config.precision
        unlike = [
            *self.unlike,
            *[f"precision {precision} (the paper: float32)"] * (precision != "float32"),
            *[f"fewer than {SEEDS} seeds"] * (min(self.seeds.values()) < SEEDS),
        ]
        seeds = [f"{readable(condition)} {count}" for condition, count in self.seeds.items()]
        each = [run.results.get("versions", {}).items() for run in self.runs]
        versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in pairs) for pairs in each)
        lines = [
            ("Does it reproduce?", ", ".join([f"{counts['holds']} claims hold", *rest])),
            ("By how much?", "; ".join(much) or NOT_MEASURED),
            ("With how many seeds?", ", ".join(seeds)),
            ("What differs from the paper?", "; ".join(unlike) or "nothing"),
            ("What is left out?", "; ".join(self.left_out) or "nothing"),
            ("With which versions?", "; ".join(versions)),
        ]
        others = " of the full model, and as many updates of the other encoders," * self.equal
        sentence = (
            f"After {self.at} epochs{others} on {data.short_name(self.dataset)}, "
            f"{counts['holds']} of the paper's {len(self.claims)} claims hold"
            f"{''.join(f', {text}' for text in rest)}."
        )
        return Section("", [sentence, _PAPER], [Table("", ("question", "answer"), lines)])

    def _judged(self, found: Sequence[Finding]) -> Table:
        lines = []
        for finding in found:
            claim, same = finding.claim, finding.claim.first == finding.claim.second
            names = [readable(claim.first), readable(claim.second)]
            if same and claim.than:
                names = [claim.figure[1], claim.than[1]]
            elif same:
                names = [
                    "first epoch" if e == FIRST else f"epoch {e or self.at}" for e in claim.epochs
                ]
            margin = f" (margin: {100 * claim.margin:.0f} points)" if claim.margin else ""
            shown = "; ".join(
                f"{name}: {_number(summary, claim.is_share)}"
                for name, summary in zip(names, (finding.first, finding.second), strict=True)
            )
            difference = _difference(finding.comparison, claim.is_share)
            lines.append((claim.source, claim.text + margin, finding.verdict, shown, difference))
        head = ("source", "claim", "verdict", "figures", "difference [95 % interval]")
        return Table("", head, lines)

    def _accuracies(self, condition: str, metric: str = "probe", of: str = "trained") -> pd.Series:
        figure = "accuracy" if of == "pixels" else _READOUTS[metric]
        return self._values(condition, (metric, of, figure))

    def _values(self, condition: str, figure: findings.Figure) -> pd.Series:
        return findings.values(self.frame, condition, figure, self.at)

    def _published(self, condition: str) -> list[str]:
        """The published accuracy, ours less that, and z; nothing without the paper's settings."""
        own = [run for run in self.runs if run.config.condition == condition]
        ours, published = self._accuracies(condition), sample(self.dataset, condition)
        if not own or any(map(_differences, own)) or published is None or not len(ours):
            return []
        comparison = statistics.compare(ours, published)
        z = "" if math.isnan(comparison.z) else f"{comparison.z:+.1f}"
        return [_figure(published), _difference(comparison, True), z]

    def _rows(self) -> list[tuple[str, str, str]]:
        """Title, condition and encoder of the lines of tables of accuracies."""
        first = next(iter(self.seeds))
        return [
            *((self._title(condition), condition, "trained") for condition in self.seeds),
            ("untrained encoder", first, "untrained"),
            ("raw pixels", first, "pixels"),
        ]

    def _table_1(self) -> Section:
        lines = []
        for title, condition, of in self._rows():
            beside = self._published(condition) if of == "trained" else []
            ours = _figure(self._accuracies(condition, of=of))
            lines.append((title, ours, *(beside or ["", "", ""])))
        head = ["condition", f"ours, epoch {self.at}, {self.runs[0].config.precision}"]
        head += ["published", "difference [95 % interval]", "z"]
        texts = []
        if not any(line[2] for line in lines):
            head, lines = head[:2], [line[:2] for line in lines]
            unlike = "; ".join(self.unlike)
            texts = [f"Published numbers do not stand here: {unlike}."] * bool(unlike)
        caption = (
            "The paper's probe: accuracy on clean test images, mean over seeds of the probe, ± "
            "standard error over runs (seeds). z: the difference in its standard errors."
        )
        tables = [Table(caption, head, lines)]
        others = [name for name in [*_READOUTS][1:] if (self.frame.metric == name).any()]
        if others:
            lines = [
                (title, *(_figure(self._accuracies(condition, m, of)) for m in others))
                for title, condition, of in self._rows()
            ]
            caption = (
                "Other readouts of the same latents. No column can be compared with another or "
                "with published numbers."
            )
            tables.append(Table(caption, ("condition", *map(readable, others)), lines))
        return Section("Table 1: linear separability", texts, tables)

    def _figure_3(self) -> Section:
        shown, sheets = [], {}
        first = next((run for run in self.runs if (run.folder / "checkpoints").is_dir()), None)
        try:
            sheets = dream_sheets(first.folder, first.results["epochs"]) if first else {}
        except (UsageError, RunError) as error:  # figures do not need the images or checkpoints
            self.left_out.append(f"pictures of dreams ({first_line(error)})")
        for epoch, png in sheets.items():
            caption = (
                f"{first.name}, after epoch {epoch}: test images, reconstructions, NREM replays, "
                "occluded, recovered from the occluded, and REM dreams"
            )
            shown.append(Picture(f"dreams_epoch_{epoch}", caption, png))
        fid = self._at("fid").assign(group=lambda f: f.condition, series=lambda f: f.of)
        panels = {readable(kind): fid[fid.figure == kind] for kind in ("nrem", "rem")}
        measured = [run.results["metrics"].get("fid", {}).get("protocol", {}) for run in self.runs]
        early = sorted({each["early_epoch"] for each in measured if "early_epoch" in each})
        times = f"early (epoch {' or '.join(map(str, early))}) and late" if early else "late"
        caption = (
            f"FID of dreams, {times}, in features of: {self.features}. Values can only be compared "
            "with others of the same features, not with the paper's."
        )
        floor = fid[fid.of == "test_images"].value.mean()
        shown += _picture("fid", caption, plots.bars, panels, "FID", floor)
        return Section("Figure 3: dreams, early and late", pictures=shown)

    def _figure_4(self) -> Section:
        panels = {}
        for metric, figure in list(_READOUTS.items())[:3]:
            rows = self.frame[self.frame.metric == metric]
            held_out = rows[rows.of == "validation_accuracy"]
            tested = rows[rows.of.isin(["trained", "untrained"]) & (rows.figure == figure)]
            # Of the untrained encoder each run's results have figures, whatever their epoch.
            tested = tested.assign(x=tested.epoch.where(tested.of == "trained", 0))
            for images, part in (("held-out", held_out), ("test", tested)):
                panels[f"{images} images, {readable(metric)}"] = part
        caption = (
            "Accuracy over epochs, with 95 % bands where there are seeds. Held-out images are a "
            "tenth of the training images, on which the probe is not fitted. On test images there "
            "are the untrained encoder, the epochs that runs keep, and the last one."
        )
        shown = _picture("separability", caption, _curves, panels, self.axis, chance=self.chance)
        return Section("Figure 4: linear separability over training", pictures=shown)

    def _figure_5(self) -> Section:
        curve = self._at("occlusion")
        curve = curve[~curve.figure.isin([LOST[2], AREA[2]])]
        curve = curve.assign(x=100 * curve.figure.astype(float))
        tiles = ("tile_4", "tile_1", "tile_2", "tile_8")
        panels = {readable(tile): curve[curve.of == tile] for tile in tiles}
        caption = (
            "Accuracy of the paper's probe, fitted on clean images, on occluded test images, with "
            "95 % bands where there are seeds"
        )
        quantity = "occluded tiles [%]"
        shown = _picture("occlusion", caption, _curves, panels, quantity, chance=self.chance)
        lines = []
        for condition in self.seeds:
            lost, area = (self._values(condition, figure) for figure in (LOST, AREA))
            lines.append((readable(condition), _figure(lost), _figure(area, percent=False)))
        caption = (
            "Tiles of 4 px: the share of the accuracy above chance that is lost under 30 % "
            "occlusion, and the area under the curve of what is left of it (1: nothing is lost)"
        )
        table = Table(caption, ("condition", "lost under 30 %", "area"), lines)
        return Section("Figure 5: linear separability under occlusion", (), [table], shown)

    def _figure_6(self) -> Section:
        maps = {}
        for run in self.runs:
            title, file = readable(run.config.condition), run.folder / "figures" / "pca.csv"
            if title not in maps and file.is_file() and "label" in (points := pd.read_csv(file)):
                maps[title] = points[points.label < _SHOWN_CLASSES]
        caption = (
            "First two principal components of the test images' latents, of the first classes, "
            "of one seed of each condition"
        )
        classes = self.runs[0].results["class_names"]
        shown = _picture("pca", caption, plots.scatter, maps, classes)
        rows = self._at("distances").assign(series="mean over seeds")
        first = (rows.of == "untrained") & (rows.condition == next(iter(self.seeds)))
        rows = rows.assign(group=rows.condition.where(rows.of == "trained", "untrained"))
        rows = pd.concat([rows[rows.of == "trained"], rows[first]])
        ratios = ("intra_inter_ratio", "occluded_inter_ratio")
        panels = {readable(ratio): rows[rows.figure == ratio] for ratio in ratios}
        caption = (
            "Ratios of mean distances: within against between classes, and clean to occluded (30 "
            "%, tiles of 4 px) against between classes, with 95 % intervals where there are seeds"
        )
        shown += _picture("distances", caption, plots.bars, panels, "ratio")
        return Section("Figure 6: how the latents are organised", pictures=shown)

    def _losses(self) -> Section:
        panels = {
            title: self.frame[(self.frame.metric == metric) & (self.frame.of == of)]
            for (metric, of), title in _LOSSES.items()
        }
        caption = "Means over each epoch, with 95 % bands where there are seeds"
        shown = _picture("losses", caption, _curves, panels, self.axis, "loss", scale=1.0)
        return Section("Losses over training", pictures=shown)

    def _at(self, metric: str) -> pd.DataFrame:
        return self.frame[(self.frame.metric == metric) & (self.frame.epoch == self.at)]


def dream_sheets(folder: Path, epoch: int) -> dict[int, bytes]:
    """What a run's model makes of test images, early and late.

    Args:
        folder: of the run, with its checkpoints.
        epoch: the late one.

    Returns:
        A sheet (PNG) by epoch: of the first and of the late one, as far as they are there.

    Raises:
        UsageError: if the images or the run cannot be loaded.
        RunError: if a checkpoint cannot be read.
    """
    config, newest = restore_run(folder)
    images = data.load(
        config.dataset, "test", data_dir=config.data_dir, image_size=config.image_size
    ).images
    images = images[np.random.default_rng(_SEED).permutation(len(images))[:_MEMORIES]]
    models = {epoch: newest} if epoch == epochs_behind(folder, config, newest) else {}
    kept = set(Checkpoints(newest, folder).kept_epochs()) & {1, epoch} - set(models)
    models |= {number: restore_run(folder, epoch=number)[1] for number in kept}
    sheets = {}
    for number, model in sorted(models.items()):
        # NREM's and REM's rows begin with the images that wake's have already.
        rows = [
            *pictures.wake_rows(model, images),
            *pictures.nrem_rows(model, images, _SEED)[1:],
            *pictures.rem_rows(model, images, np.roll(images, 1, axis=0), _SEED)[2:],
        ]
        sheets[number] = tf.io.encode_png(pictures.sheet(rows)).numpy()
    return sheets


def _ways(run: Run) -> dict[str, str]:
    """By metric, the data and the numbers that its figures depend on, such as that of dreams."""
    return {
        metric: json.dumps(
            {
                name: value
                for name, value in entry["protocol"].items()
                if name not in ("gaps", "early_epoch") and not isinstance(value, str)
            }
            | {"data": run.results.get("data")},
            sort_keys=True,
        )
        for metric, entry in run.results["metrics"].items()
    }


def _differences(run: Run) -> list[str]:
    return differences(run.config, run.results["epochs"])


def _picture(name: str, caption: str, draw, panels: dict, *arguments, **options) -> list[Picture]:
    """A picture of the panels that have lines; none if no panel has."""
    panels = {title: frame for title, frame in panels.items() if len(frame)}
    if not panels:
        return []
    file = io.BytesIO()
    draw(panels, *arguments, **options).savefig(file, format="png", dpi=110)
    return [Picture(name, caption, file.getvalue())]


def _figure(values: Sequence[float], percent: bool = True) -> str:
    return _number(statistics.summarise(values) if len(values) else None, percent)


def _number(summary: statistics.Summary | None, percent: bool) -> str:
    if summary is None:
        return NOT_MEASURED
    scale, digits, unit = (100.0, 2, " %") if percent else (1.0, 3, "")
    error = f" ± {scale * summary.sem:.{digits}f}" if summary.count > 1 else ""
    return f"{scale * summary.mean:.{digits}f}{error}{unit} ({summary.count})"


def _difference(comparison: statistics.Comparison | None, percent: bool) -> str:
    if comparison is None:
        return ""
    scale, digits = (100.0, 2) if percent else (1.0, 3)
    shown = f"{scale * comparison.difference:+.{digits}f}"
    if math.isnan(comparison.low):
        reason = "one seed" if comparison.verdict == statistics.ONE_SEED else "without scatter"
        return f"{shown} ({reason})"
    return f"{shown} [{scale * comparison.low:+.{digits}f}, {scale * comparison.high:+.{digits}f}]"


def _markdown(title: str, sections: Sequence[Section], command: str) -> str:
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}"] * bool(section.title) + [*section.texts]
        for caption, head, lines in section.tables:
            rows = (head, ["---"] * len(head), *lines)
            parts += [caption] * bool(caption)
            parts += ["\n".join(f"| {' | '.join(cells)} |" for cells in rows)]
        parts += [f"![{c}](pictures/{name}.png)\n\n*{c}*" for name, c, _ in section.pictures]
    return "\n\n".join([*parts, f"```\n{command}\n```"]) + "\n"


def _read_results(folder: Path) -> dict | None:
    file = folder / "results.json"
    try:
        results = json.loads(file.read_text())
        return results if of_test_images(results) else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} cannot be read ({error!r}): delete it.") from error
