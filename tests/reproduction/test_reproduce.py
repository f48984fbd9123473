"""Tests of the reproduction: runs reused and continued, a whole report, verdicts from figures."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ad_keras.reproduce import main
from ad_keras.reproduction import findings
from ad_keras.reproduction.config import ReproduceConfig
from ad_keras.reproduction.findings import AGREES, DISAGREES, NOT_JUDGED, UNDECIDED, Measurements
from ad_keras.runs.config import Config

RUNS = ("shapes", "shapes-no_rem")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a data set of two classes, and a run without REM that is half done."""
    from ad_keras.runs.training import train

    folder = tmp_path_factory.mktemp("reproduction")
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 46)):
        for name, rows in (("above", slice(0, 16)), ("below", slice(16, 32))):
            images = folder / "shapes" / split / name
            images.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 150, (32, 32, 3))
                pixels[rows] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(images / f"{number:02}.png")
    half = reproduction(folder, epochs=1).run_config("no_rem", 0)
    train(half)
    return folder


def reproduction(folder: Path, **changes) -> ReproduceConfig:
    settings = {
        "dataset": str(folder / "shapes"),
        "conditions": ("full", "no_rem"),
        "base_filters": 4,
        "latent_dim": 8,
        "batch_size": 16,
        "epochs": 2,
        "probe_every": 0,
        "images": 50,
        "probe_seeds": 2,
        "runs_dir": str(folder / "runs"),
        "saved_models_dir": str(folder / "exports"),
        "cache_dir": str(folder / "cache"),
    }
    return ReproduceConfig(**{**settings, **changes})


def line_of(config: ReproduceConfig, *more: str) -> list[str]:
    plain = ReproduceConfig()
    given = {name: value for name, value in vars(config).items() if value != getattr(plain, name)}
    return [
        *(f"--{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in given.items()),
        *more,
    ]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dry(workplace):
    """What a dry run says before anything else is done, and whether it left the folder alone."""
    from ad_keras.reproduction.runs import estimate

    before = snapshot(workplace)
    text = estimate(reproduction(workplace))
    return text, before == snapshot(workplace)


@pytest.fixture(scope="module")
def reproduced(workplace, dry):
    """The folder of a report, and the state of the files of the epoch that was there before."""
    from ad_keras.evaluation.suite import Suite
    from ad_keras.reproduction.runs import reproduce

    kept = workplace / "runs" / "shapes-no_rem" / "checkpoints" / "epochs"
    first_epoch = {name: state for name, state in snapshot(kept).items() if "epoch-1." in name}
    with pytest.MonkeyPatch.context() as patch:
        # The probes of raw pixels would take longer than all the rest.
        patch.setattr(Suite, "_pixels", lambda *_: {"accuracy": 0.875})
        folder = reproduce(reproduction(workplace), "python -m ad_keras.reproduce --some=<flags>")
    return folder, first_epoch


class Page(HTMLParser):
    """The pictures of a page, and all else that it refers to."""

    def __init__(self, text):
        super().__init__()
        self.images, self.references = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if tag == "img" and name == "src":
                self.images.append(value)
            elif name in ("src", "href", "srcset", "data", "action"):
                self.references.append(value)


def test_dry_run_tells_what_is_to_be_done_and_writes_nothing(dry):
    text, untouched = dry
    assert untouched
    lines = [re.split(r"\s{2,}", line) for line in text.splitlines() if line]
    assert lines[1][1:5] == ["full", "0", "new", "12"]
    assert lines[2][1:5] == ["no_rem", "0", "continues from epoch 1", "6"]
    assert lines[3] == ["total", "18", "under 1 min"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "-"),
        (20, "under 1 min"),
        (59.6 * 60, "1 h 00 min"),
        (10799, "3 h 00 min"),
        (4000, "1 h 07 min"),
    ],
)
def test_times_are_of_hours_and_minutes(seconds, text):
    from ad_keras.reproduction.runs import _duration

    assert _duration(seconds) == text


def test_an_unfinished_run_is_continued_not_begun_again(reproduced, workplace):
    _, first_epoch = reproduced
    assert len(first_epoch) == 2
    assert first_epoch.items() <= snapshot(workplace / "runs" / "shapes-no_rem").items()
    for name in RUNS:
        history = json.loads((workplace / "runs" / name / "history.json").read_text())
        assert set(history) == {"0", "1", "2"}
        assert (workplace / "exports" / name / "metadata.json").is_file()


def test_finished_runs_and_their_measurements_are_reused(reproduced, workplace, outcome, tmp_path):
    runs, exports = (snapshot(workplace / name) for name in ("runs", "exports"))
    again = reproduction(workplace, output_dir=str(tmp_path / "again"))
    status, printed, errors = outcome(main, *line_of(again))
    assert (status, errors) == (0, "")
    assert (tmp_path / "again" / "report.html").is_file()
    assert printed.count(": finished") == 2
    assert printed.count(": measured") == 2
    assert snapshot(workplace / "exports") == exports
    assert snapshot(workplace / "runs") == runs


def test_other_settings_are_measured_anew(reproduced, workplace):
    from ad_keras.reproduction.runs import _earlier_results

    folder = workplace / "runs" / "shapes"
    for changes, reused in (({}, True), ({"images": 40}, False), ({"probe_seeds": 1}, False)):
        wanted = reproduction(workplace, **changes).evaluate_config(str(folder))
        assert (_earlier_results(folder, wanted, epochs=2) is not None) == reused
    assert _earlier_results(folder, wanted, epochs=3) is None


def test_the_page_has_its_pictures_inside_and_nothing_outside(reproduced):
    text = (reproduced[0] / "report.html").read_text()
    page = Page(text)
    assert len(page.images) == 10
    for source in page.images:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            picture.load()
            assert min(picture.size) > 150
    assert page.references == []
    assert not re.search(r"https?://|url\(|@import|<script", text)
    assert "--some=&lt;flags&gt;" in text


def test_the_pictures_of_the_markdown_exist(reproduced):
    folder = reproduced[0]
    named = re.findall(r"!\[.*\]\((.*)\)", (folder / "report.md").read_text())
    assert len(named) == 10
    assert {folder / name for name in named} == set((folder / "pictures").iterdir())


def test_table_1_has_the_figures_of_the_results(reproduced, workplace):
    lines = (reproduced[0] / "report.md").read_text().splitlines()
    for name, title in zip(RUNS, ("PAD", "w/o REM"), strict=True):
        metrics = json.loads((workplace / "runs" / name / "results.json").read_text())["metrics"]
        paper, ridge = [line for line in lines if line.startswith(f"| {title} |") and "(1)" in line]
        mean = metrics["probe"]["values"]["trained"]["mean_of_seeds"]
        assert paper.endswith(f"| {100 * mean:.2f} % (1) |")
        mean = metrics["ridge_probe"]["values"]["trained"]["accuracy"]
        assert ridge == f"| {title} | {100 * mean:.2f} % (1) |"
    assert sum("| raw pixels |" in line and "| 87.50 % |" in line for line in lines) == 2
    (published,) = [line for line in lines if "58.25 ± 0.70 %" in line]
    assert "78.92 ± 0.40 %" in published


def test_what_was_left_out_is_not_judged(reproduced):
    text = (reproduced[0] / "report.md").read_text()
    assert "**Cannot be judged.** Mixing memories in REM raises linear separability" in text
    assert "there is no measurement of w/o NREM and Wake only" in text


def results(probe=0.6, tiles=(0.5, 0.4), hidden=0.5, fid=(30.0, 20.0), intra=0.6, occluded=0.4):
    """What a run's evaluation could say, of two classes."""
    shares = [round(0.1 * step, 1) for step in range(11)]
    curve = [probe, 0.55, 0.52, tiles[0], *[tiles[1]] * 6, hidden]
    ratios = {"intra_inter_ratio": intra, "occluded_inter_ratio": occluded}
    trained = {"accuracy": probe, "mean_of_seeds": probe, "confusion": [[30, 20], [20, 30]]}
    times = {
        time: {"nrem": value, "rem": value}
        for time, value in zip(("early", "late"), fid, strict=True)
    }
    values = {
        "probe": {"trained": trained},
        "ridge_probe": {"trained": {"accuracy": probe}},
        "occlusion": {f"tile_{tile}": curve for tile in (1, 2, 4, 8)},
        "fid": times,
        "distances": {"trained": ratios, "untrained": {**ratios, "intra_inter_ratio": 0.9}},
    }
    return {
        "metrics": {
            name: {"values": value, "protocol": {"probabilities": shares}}
            for name, value in values.items()
        }
    }


def history(first=0.2, last=0.6, loss=(0.3, 0.1)):
    return {
        "0": {"probe/validation_accuracy": first},
        "1": {"wake/reconstruction_loss": loss[0]},
        "2": {"wake/reconstruction_loss": loss[1], "probe/validation_accuracy": last},
    }


def measured(histories=None, **conditions) -> Measurements:
    as_list = {
        name: [value] if isinstance(value, dict) else value for name, value in conditions.items()
    }
    return Measurements(as_list, histories or {})


FULL = results()


@pytest.mark.parametrize(
    ("judge", "agreeing", "other"),
    [
        (
            lambda m: findings.separability(m, "probe")[0],
            measured(full=FULL, no_rem=results(probe=0.5)),
            measured(full=FULL, no_rem=results(probe=0.7)),
        ),
        (
            lambda m: findings.separability(m, "ridge_probe")[1],
            measured(full=FULL, no_memory_mix=results(probe=0.5)),
            measured(full=FULL, no_memory_mix=results(probe=0.7)),
        ),
        (
            lambda m: findings.separability(m, "probe")[2],
            measured(no_nrem=FULL, wake_only=results(probe=0.5)),
            measured(no_nrem=FULL, wake_only=results(probe=0.7)),
        ),
        (
            lambda m: findings.dreams(m)[1],
            measured(full=results(fid=(30.0, 20.0))),
            measured(full=results(fid=(20.0, 30.0))),
        ),
        (
            lambda m: findings.learning(m, "probe")[0],
            measured({"full": [history()]}),
            measured({"full": [history(first=0.7)]}),
        ),
        (
            lambda m: findings.learning(m, "probe")[1],
            measured({"full": [history()], "no_rem": [history(last=0.5)]}),
            measured({"full": [history()], "no_rem": [history(last=0.7)]}),
        ),
        (
            # 0.4 / 0.5 of the accuracy is left, against 0.5 / 0.6; then 0.45 / 0.5.
            lambda m: findings.robustness(m, [4])[0],
            measured(full=FULL, no_nrem=results(probe=0.5, tiles=(0.4, 0.3))),
            measured(full=FULL, no_nrem=results(probe=0.5, tiles=(0.45, 0.3))),
        ),
        (
            findings.chance,
            measured(full=FULL, no_nrem=results(hidden=0.5)),
            measured(full=FULL, no_nrem=results(hidden=0.55)),
        ),
        (
            lambda m: findings.distances(m)[0],
            measured(full=FULL, no_rem=results(intra=0.8)),
            measured(full=FULL, no_rem=results(intra=0.5)),
        ),
        (
            lambda m: findings.distances(m)[1],
            measured(full=FULL, no_rem=results(intra=0.8)),
            measured(full=FULL, no_rem=results(intra=1.4)),
        ),
        (
            lambda m: findings.distances(m)[2],
            measured(full=FULL, no_nrem=results(occluded=0.5)),
            measured(full=FULL, no_nrem=results(occluded=0.3)),
        ),
        (
            findings.losses,
            measured({"full": [history()]}),
            measured({"full": [history(loss=(0.1, 0.3))]}),
        ),
    ],
)
def test_verdicts_follow_the_figures(judge, agreeing, other):
    assert judge(agreeing).verdict == AGREES
    assert judge(other).verdict == DISAGREES
    assert judge(measured()).verdict == NOT_JUDGED


def test_several_seeds_give_mean_and_standard_error_and_must_differ_clearly():
    accuracies = {"full": (0.61, 0.66, 0.58), "no_rem": (0.50, 0.47, 0.52)}
    runs = {name: [results(probe=a) for a in values] for name, values in accuracies.items()}
    value = findings.accuracy(measured(**runs), "full", "probe")
    assert value.mean == pytest.approx(np.mean(accuracies["full"]))
    assert value.sem == pytest.approx(np.std(accuracies["full"], ddof=1) / np.sqrt(3))
    assert value.count == 3
    finding = findings.separability(measured(**runs), "probe")[0]
    assert finding.verdict == AGREES
    error = np.sqrt(sum(np.var(values, ddof=1) / 3 for values in accuracies.values()))
    difference = np.mean(accuracies["full"]) - np.mean(accuracies["no_rem"])
    assert f"difference {100 * difference:+.1f} ± {100 * error:.1f} percentage" in finding.figures
    near = {**runs, "no_rem": [results(probe=a) for a in (0.58, 0.66, 0.60)]}
    assert findings.separability(measured(**near), "probe")[0].verdict == UNDECIDED


def test_figures_that_are_shown_as_the_same_decide_nothing():
    runs = {"full": [results(probe=0.61)], "no_rem": [results(probe=0.6097)]}
    assert findings.separability(measured(**runs), "probe")[0].verdict == UNDECIDED
    runs["no_rem"] = [results(probe=0.6085)]
    assert findings.separability(measured(**runs), "probe")[0].verdict == AGREES


def test_a_figure_that_is_not_finite_is_not_judged():
    finding = findings.dreams(measured(full=results(fid=(None, 20.0))))[0]
    assert finding.verdict == NOT_JUDGED
    assert "not finite" in finding.figures


def test_runs_are_named_as_training_names_them():
    config = ReproduceConfig(dataset="synth_digits/50k")
    assert config.run_config("full", 0).run_path == Path("runs/synth_digits_50k")
    other = config.run_config("no_rem", 3)
    assert other.run_path == Path("runs/synth_digits_50k-no_rem-seed3")
    assert other.export_path == Path("saved_models/synth_digits_50k-no_rem-seed3")
    assert (other.condition, other.seed) == ("no_rem", 3)
    assert config.report_path == Path("runs/synth_digits_50k-report")
    train = Config(dataset="synth_digits/50k", **{"phases": ("wake", "rem")})
    assert config.run_config("no_nrem", 0).run_path == train.run_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conditions=full,no_rme"], "--conditions=no_rme is not a condition. Did you mean no_"),
        (["--conditions=full,full"], "--conditions=full,full names one of them twice"),
        (["--conditions="], "--conditions"),
        (["--seeds=0,a"], "--seeds=a is not possible"),
        (["--seeds=1,01"], "--seeds=1,1 names one of them twice"),
        (["--epochs=0"], "--epochs=0 is not possible"),
        (["--images=0"], "--images=0 is not possible"),
        (["--dataset=cifr10"], "Did you mean cifar10"),
    ],
)
def test_wrong_flags_are_one_line(outcome, arguments, message):
    status, printed, errors = outcome(main, *arguments)
    assert (status, printed) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_filters": 8}, "holds a run with other flags: --base_filters was 4 and is 8"),
        ({"epochs": 1}, "is at epoch 2, beyond --epochs=1"),
        ({"batch_size": 97, "conditions": ("no_nrem",)}, "--batch_size=97 is more than the 96"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_trained(
    reproduced, workplace, outcome, changes, message
):
    before = snapshot(workplace)
    for more in ([], ["--dry_run"]):
        status, printed, errors = outcome(main, *line_of(reproduction(workplace, **changes), *more))
        assert (status, printed) == (2, "")
        assert message in errors
        assert errors.count("\n") == 1
    assert snapshot(workplace) == before


def test_images_without_labels_are_refused(workplace, tmp_path, outcome):
    for split in ("train", "test"):
        (tmp_path / "plain" / split).mkdir(parents=True)
        for file in sorted((workplace / "shapes" / split / "above").iterdir())[:20]:
            (tmp_path / "plain" / split / file.name).write_bytes(file.read_bytes())
    config = reproduction(workplace, dataset=str(tmp_path / "plain"), runs_dir=str(tmp_path / "r"))
    status, printed, errors = outcome(main, *line_of(config))
    assert (status, printed) == (2, "")
    assert "has no labels, which the paper's measurements need" in errors
    assert not (tmp_path / "r").exists()


def test_an_interruption_is_told_and_leaves_the_handlers_as_they_were():
    import signal

    from ad_keras.cli import interruptible
    from ad_keras.errors import Interrupted

    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(Interrupted, match="SIGTERM: what is finished is kept") as caught,
        interruptible(),
    ):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_status == 143
    assert signal.getsignal(signal.SIGTERM) is before
