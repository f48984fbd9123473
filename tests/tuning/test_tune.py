"""Tests of the search: trials in a folder, what survives an interruption, what comes out."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.plugins.hparams import api_pb2

from ad_keras import data
from ad_keras.cli import parse
from ad_keras.errors import Interrupted, RunError, UsageError
from ad_keras.runs import callbacks
from ad_keras.runs.config import CONDITIONS, Config
from ad_keras.runs.restore import restore_run
from ad_keras.runs.training import train
from ad_keras.tune import main
from ad_keras.tuning import distributed, search, space
from ad_keras.tuning.config import TuneConfig
from ad_keras.tuning.space import SPACE

VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A folder of images in two classes: bright above, and bright below, not always clearly so."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for name, rows in (("above", slice(0, 16)), ("below", slice(16, 32))):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(100):
            pixels = rng.integers(0, 150, (32, 32, 3))
            pixels[rows] += rng.integers(0, 60)
            pixels = pixels.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "train" / name / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def settings(shapes):
    """Makes the flags of a small search in a folder."""

    def flags(folder: Path, **changes) -> TuneConfig:
        values = {
            "dataset": str(shapes),
            "base_filters": 4,
            "latent_dim": 8,
            "batch_size": 30,
            "phases": ("wake",),  # the quickest condition to build
            "external_weight": 0.0,
            "encoder_learning_rate": 2.03e-3,
            "epochs_per_trial": 2,
            "max_trials": 5,
            "search": ("encoder_learning_rate", "latent_dim"),
            "tuner_dir": str(folder / "search"),
        }
        return TuneConfig(**{**values, **changes})

    return flags


@pytest.fixture(scope="module")
def searched(settings, tmp_path_factory):
    """A search with Bayesian optimization, finished, which no test may change."""
    flags = settings(
        tmp_path_factory.mktemp("searched"), max_trials=4, epochs=7, kl_weight=0.5, seed=1
    )
    return flags, search.search(flags)


@pytest.fixture
def copied(searched, tmp_path) -> TuneConfig:
    """A copy of it, for a test to do with as it likes."""
    flags, _ = searched
    shutil.copytree(flags.run_path, tmp_path / "search")
    return dataclasses.replace(flags, tuner_dir=str(tmp_path / "search"))


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def as_line(flags: TuneConfig) -> list[str]:
    """Flags as a command line."""
    plain, line = TuneConfig(), []
    for name, value in dataclasses.asdict(flags).items():
        if value != getattr(plain, name):
            text = ",".join(value) if isinstance(value, tuple) else value
            line.append(f"--{name}" if value is True else f"--{name}={text}")
    return line


def session_groups(folder: Path):
    """What TensorBoard's HParams page shows of a folder: columns, metrics and rows."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.hparams.get_experiment import Handler as Experiment
    from tensorboard.plugins.hparams.list_session_groups import Handler as Groups

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context, request = Context(TBContext(data_provider=provider)), RequestContext()
    experiment = Experiment(request, context, "", api_pb2.GetExperimentRequest()).run()
    wanted = api_pb2.ListSessionGroupsRequest(
        slice_size=100, allowed_statuses=api_pb2.Status.values()
    )
    groups = Groups(request, context, "", wanted).run()
    return experiment, groups.session_groups


class TestSpace:
    def test_table_is_in_the_docs(self):
        page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text()
        assert space.table() in page

    @pytest.mark.parametrize("name", SPACE)
    def test_untuned_value_lies_in_the_range(self, name):
        for changes in ({}, {"beta_1": 0.95}, {"occlusion_min": 0.25, "occlusion_max": 0.375}):
            config = TuneConfig(**changes)
            low, *_, high = SPACE[name].values(config)
            assert low <= getattr(config, name) <= high

    @pytest.mark.parametrize("ends", [(0, 1), (0, 0.25), (0.75, 1), (0.375, 0.5), (0.5, 0.5)])
    def test_ends_of_the_occlusion_range_never_cross(self, ends):
        config = TuneConfig(occlusion_min=ends[0], occlusion_max=ends[1])
        lows, highs = (SPACE[f"occlusion_{end}"].values(config) for end in ("min", "max"))
        for low in (*lows, ends[0]):
            for high in (*highs, ends[1]):
                assert 0 <= low <= high <= 1

    @pytest.mark.parametrize("name", [name for name in SPACE if SPACE[name].sampling != "choice"])
    def test_sampled_values_are_short_and_possible(self, name):
        config = TuneConfig()
        low, high = SPACE[name].values(config)
        for share in np.linspace(0, 1, 50):
            value = SPACE[name].rounded(low + share * (high - low), config)
            assert low <= value <= high
            assert len(f"{value:g}") <= 7
            config.training(**{name: value})

    @pytest.mark.parametrize(
        ("condition", "missing"),
        [
            ("full", set()),
            ("no_nrem", {"recovery_weight", "occlusion_min", "occlusion_max"}),
            ("no_rem", {"internal_weight", "mix_recent", "mix_memories", "external_weight"}),
            ("nrem_mixed", set()),
        ],
    )
    def test_what_plays_no_role_is_not_varied(self, condition, missing):
        assert set(SPACE) - set(TuneConfig(**CONDITIONS[condition]).varied) == missing


class TestFlags:
    def test_every_flag_of_training_is_a_flag_of_the_search(self):
        root = Path(__file__).parents[2]
        for file in sorted((root / "flags").glob("*.flags")):
            flags = parse(TuneConfig, ["tune", f"--flagfile={file}"], "tune")
            assert flags.training() == parse(Config, ["train", f"--flagfile={file}"], "train")

    def test_json_keeps_every_flag(self):
        flags = TuneConfig(search=("beta_1",), tuner="random", phases=("wake",), external_weight=0)
        assert TuneConfig.from_json(flags.to_json()) == flags
        with pytest.raises(ValueError, match="search"):
            TuneConfig.from_json(Config().to_json())

    def test_folder_and_flagfile_are_named_after_data_and_condition(self):
        assert TuneConfig().run_path == Path("runs/tune-synth_digits")
        assert TuneConfig(dataset="svhn", mix_memories=0.0).name == "svhn-rem_noise_only"
        assert TuneConfig(tuner_dir="x/y").run_path == Path("x/y")

    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            ("--search=beta1", "--search=beta1 cannot be varied. Did you mean beta_1"),
            ("--search=", "--search= is not possible"),
            (
                "--phases=wake,rem --search=recovery_weight",
                "--search=recovery_weight plays no role",
            ),
            ("--external_weight=0 --search=external_weight", "external_weight plays no role"),
            ("--tuner=grid", "random|bayesian|hyperband"),
            ("--objective=fid", "probe|ridge_probe"),
            ("--max_trials=0", "--max_trials=0 is not possible: it must be at least 1"),
            ("--epochs_per_trial=0", "--epochs_per_trial=0 is not possible"),
            ("--run_dir=x", "--run_dir=x is not possible: a search has its own folder"),
            ("--strategy=multi_worker", "--strategy=multi_worker is not possible"),
            ("--saved_model_dir=x", "--saved_model_dir=x is not possible"),
            ("--beta_1=1.5", "--beta_1=1.5 is not possible"),
            ("--dataset=cifr10", "Did you mean cifar10"),
            ("--max_trails=3", "Did you mean --max_trials"),
        ],
    )
    def test_wrong_flags_are_one_line(self, flag, message, outcome, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        status, printed, error = outcome(main, *flag.split())
        assert (status, printed) == (2, "")
        assert re.fullmatch(r"error: .*\n", error)
        assert message in error
        assert os.listdir(tmp_path) == []


class TestTrials:
    def test_trials_vary_what_they_should(self, searched):
        flags, results = searched
        assert [trial.number for trial in results.trials] == [0, 1, 2, 3]
        assert {trial.status for trial in results.trials} == {"finished"}
        seen = set()
        for trial in results.trials:
            config = Config.from_json(
                (flags.run_path / "trials" / f"{trial.number:03}" / "flags.json").read_text()
            )
            assert 2.03e-4 <= config.encoder_learning_rate <= 2.03e-2
            assert config.latent_dim in (4, 8, 16)
            seen.add((config.encoder_learning_rate, config.latent_dim))
            assert trial.values == {
                "encoder_learning_rate": config.encoder_learning_rate,
                "latent_dim": config.latent_dim,
            }
            assert (config.epochs, config.hold_out, config.kl_weight) == (2, True, 0.5)
            assert config.beta_1 == 0.5
        assert len(seen) == 4

    def test_first_trial_is_untuned(self, searched):
        assert searched[1].trials[0].values == {"encoder_learning_rate": 2.03e-3, "latent_dim": 8}

    def test_score_is_that_of_an_encoder_trained_without_the_images_that_score_it(
        self, searched, tmp_path
    ):
        from ad_keras.measures.latents import encode
        from ad_keras.measures.probe import linear_probe, ridge_probe

        flags, results = searched
        # One on which the probe's seeds do not agree: its mean is no whole number of 20 images.
        trial = next(trial for trial in results.trials if 20 * trial.scores["probe"] % 1 > 1e-6)
        images = data.load(flags.dataset, "train")
        fitted, scored = data.validation_split(len(images), flags.seed)
        config = Config(
            dataset=flags.dataset,
            base_filters=4,
            batch_size=30,
            phases=("wake",),
            external_weight=0.0,
            kl_weight=0.5,
            seed=1,
            epochs=2,
            hold_out=True,
            run_dir=str(tmp_path / "run"),
            **trial.values,
        )
        train(config, export=False)
        latents = encode(restore_run(tmp_path / "run")[1].encoder, images.images)
        parts = (
            latents[fitted],
            images.labels[fitted],
            latents[scored],
            images.labels[scored],
        )
        probes = [linear_probe(*parts, seed=seed).accuracy for seed in range(1, 6)]
        assert trial.scores["probe"] == pytest.approx(np.mean(probes))
        assert trial.scores["ridge_probe"] == ridge_probe(*parts, seed=1).accuracy
        assert len({trial.scores["probe"] for trial in results.trials}) > 1

    def test_trials_leave_one_checkpoint_and_no_export_or_pictures(self, searched):
        flags, _ = searched
        for folder in sorted((flags.run_path / "trials").iterdir()):
            assert [file.name for file in folder.rglob("*.index")] == ["step-12.index"]
            assert restore_run(folder)[1].step.numpy() == 12
            assert not (folder / "figures").exists()
        assert not list(flags.run_path.rglob("*.keras"))

    def test_hparams_show_every_trial(self, searched):
        flags, results = searched
        experiment, groups = session_groups(flags.run_path)
        assert {info.name for info in experiment.hparam_infos} == set(results.flags.varied)
        assert {info.name.tag for info in experiment.metric_infos} == {
            "search/probe",
            "search/ridge_probe",
        }
        rows = {group.sessions[0].name: group for group in groups}
        assert set(rows) == {f"trials/{number:03}/logs" for number in range(4)}
        for trial in results.trials:
            row = rows[f"trials/{trial.number:03}/logs"]
            assert len(row.sessions) == 1
            assert row.sessions[0].status == api_pb2.STATUS_SUCCESS
            for name, value in trial.values.items():
                assert row.hparams[name].number_value == value
            measured = {entry.name.tag: entry.value for entry in row.metric_values}
            for probe in ("probe", "ridge_probe"):
                assert measured[f"search/{probe}"] == pytest.approx(trial.scores[probe])


class TestResults:
    def test_best_is_first(self, searched):
        _, results = searched
        scores = [trial.scores["probe"] for trial in results.ranking]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 4

    def test_flagfile_is_that_of_the_best_trial_for_training(self, searched):
        flags, results = searched
        file = flags.run_path / f"tuned_{Path(flags.dataset).name}-custom.flags"
        assert results.flagfile == file
        config = parse(Config, ["train", f"--flagfile={file}"], "train")
        assert config == Config(
            dataset=flags.dataset,
            base_filters=4,
            batch_size=30,
            phases=("wake",),
            external_weight=0.0,
            kl_weight=0.5,
            seed=1,
            epochs=7,
            **results.ranking[0].values,
        )
        head = [line for line in file.read_text().splitlines() if line.startswith("#")]
        assert f"python -m ad_keras.train --flagfile={file}" in head[1]
        assert f"{results.ranking[0].scores['probe']:.1%}" in head[2]

    def test_tables_have_all_trials(self, searched):
        flags, results = searched
        saved = json.loads((flags.run_path / "trials.json").read_text())
        assert saved == [dataclasses.asdict(trial) for trial in results.trials]
        lines = (flags.run_path / "trials.md").read_text().splitlines()
        rows = [line for line in lines if re.match(r"\| \d", line)]
        assert [int(re.match(r"\| (\d+)", row)[1]) for row in rows] == [
            trial.number for trial in results.ranking
        ]
        assert sum("(untuned)" in row for row in rows) == 1

    def test_end_says_what_was_best_and_where_everything_is(self, copied, outcome):
        status, printed, error = outcome(main, *as_line(copied))
        assert (status, error) == (0, "")
        assert "best first (4 finished)" in printed
        assert "untuned" in printed
        (file,) = re.findall(r"ad_keras\.train --flagfile=(.*)", printed)
        assert Path(file).is_file()
        (folder,) = re.findall(r"tensorboard --logdir=(.*)", printed)
        assert Path(folder) == copied.run_path


class TestContinuing:
    def test_finished_search_trains_nothing_more(self, copied, searched, monkeypatch):
        monkeypatch.setattr(search, "train", None)
        assert search.search(copied).trials == searched[1].trials

    def test_more_trials_continue_it(self, copied, searched, monkeypatch):
        trained = []

        def train_and_note(config, **options):
            trained.append(config.run_path.name)
            return train(config, **options)

        monkeypatch.setattr(search, "train", train_and_note)
        results = search.search(dataclasses.replace(copied, max_trials=5, epochs=9))
        assert trained == ["004"]
        assert results.trials[:4] == searched[1].trials
        assert len({tuple(trial.values.values()) for trial in results.trials}) == 5
        assert "--epochs=9" in results.flagfile.read_text()

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"tuner": "random"}, "--tuner was bayesian and is random"),
            ({"epochs_per_trial": 3}, "--epochs_per_trial was 2 and is 3"),
            ({"search": ("beta_1",)}, "--search was"),
            ({"batch_size": 20}, "--batch_size was 30 and is 20"),
            ({"objective": "ridge_probe"}, "--objective was probe"),
        ],
    )
    def test_other_flags_are_refused(self, changes, named, copied):
        before = sorted(copied.run_path.rglob("*"))
        with pytest.raises(UsageError, match=named) as error:
            search.search(dataclasses.replace(copied, **changes))
        assert "--tuner_dir" in str(error.value)
        assert sorted(copied.run_path.rglob("*")) == before

    def test_overwrite_starts_again(self, copied):
        (copied.run_path / "tuned_older.flags").touch()
        again = dataclasses.replace(
            copied, overwrite=True, max_trials=1, search=("beta_1",), epochs_per_trial=1
        )
        assert [trial.values for trial in search.search(again).trials] == [{"beta_1": 0.5}]
        assert os.listdir(again.run_path / "trials") == ["000"]
        assert not (copied.run_path / "tuned_older.flags").exists()

    def test_overwrite_spares_what_is_no_search(self, settings, tmp_path):
        folder = tmp_path / "search"
        folder.mkdir()
        for name in ("flags.json", "trials.json", "thesis.txt"):
            (folder / name).write_text("{}")
        with pytest.raises(UsageError, match="something that is no search"):
            search.search(settings(tmp_path, overwrite=True))
        assert {"flags.json", "trials.json", "thesis.txt"} <= set(os.listdir(folder))

    def test_interrupted_search_continues_where_it_was(
        self, searched, settings, tmp_path, monkeypatch, state_of, assert_same_state
    ):
        reference, expected = searched
        flags = dataclasses.replace(reference, max_trials=3, tuner_dir=str(tmp_path / "search"))
        steps = []

        def interrupt(log, batch, logs=None):
            write(log, batch, logs)
            steps.append(int(log.model.step.numpy()))
            if len(steps) in (12 + 8, 12 + 12 + 1):  # within the second trial, then its last part
                os.kill(os.getpid(), signal.SIGTERM)

        write = callbacks.LossLog.on_train_batch_end
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        with monkeypatch.context() as patch:
            patch.setattr(callbacks.LossLog, "on_train_batch_end", interrupt)
            with pytest.raises(Interrupted, match="SIGTERM at step 8") as stop:
                search.search(flags)
            statuses = [
                trial["status"]
                for trial in json.loads((flags.run_path / "trials.json").read_text())
            ]
            assert statuses == ["finished", "unfinished"]
            with pytest.raises(Interrupted, match="SIGTERM at step 1:"):
                search.search(flags)  # in the third trial
        assert stop.value.exit_status == 143
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
        assert steps == [*range(1, 13), *range(1, 9), *range(9, 13), 1]
        results = search.search(flags)
        for trial, other in zip(results.trials, expected.trials[:3], strict=True):
            assert (trial.values, trial.scores) == (other.values, other.scores)
            folders = [run.run_path / "trials" / f"{trial.number:03}" for run in (flags, reference)]
            assert_same_state(*map(state_of, folders))

    def test_interruption_between_training_and_record_is_no_failure(
        self, settings, tmp_path, monkeypatch
    ):
        flags = settings(tmp_path, max_trials=1, epochs_per_trial=1)
        measure = search._scores

        def interrupted(*arguments):
            signal.raise_signal(signal.SIGINT)
            return measure(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(search, "_scores", interrupted)
            with pytest.raises(Interrupted, match="SIGINT"):
                search.search(flags)
        assert [trial.status for trial in search.search(flags).trials] == ["finished"]

    def test_damaged_state_is_one_line(self, copied, outcome):
        (copied.run_path / "oracle" / "oracle.json").write_text("{")
        status, _, error = outcome(main, *as_line(copied))
        assert status == 2
        assert re.fullmatch(r"error: .*--overwrite.*\n", error)


@pytest.mark.parametrize("tuner", ["random", "bayesian"])
def test_search_ends_when_everything_was_tried(tuner, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "train", lambda *_, **__: None)
    monkeypatch.setattr(search, "_scores", lambda *_: {"probe": 0.5, "ridge_probe": 0.5})
    results = search.search(settings(tmp_path, tuner=tuner, search=("latent_dim",), max_trials=9))
    assert results.trials[0].values == {"latent_dim": 8}
    assert sorted(trial.values["latent_dim"] for trial in results.trials) == [4, 8, 16]


class TestFailures:
    def test_diverging_trials_are_recorded_and_skipped(
        self, settings, tmp_path, monkeypatch, capsys
    ):
        wide = dataclasses.replace(SPACE["encoder_learning_rate"], high=1e9)
        monkeypatch.setitem(SPACE, "encoder_learning_rate", wide)
        flags = settings(
            tmp_path, tuner="random", max_trials=4, search=("encoder_learning_rate",), seed=1
        )
        results = search.search(flags)
        assert len(results.trials) == 4
        failed = [trial for trial in results.trials if trial.status == "failed"]
        assert 0 < len(failed) < 4
        captured = capsys.readouterr()
        assert captured.err == ""
        for trial in failed:
            assert trial.values["encoder_learning_rate"] > 1e-2
            assert re.search(r"became (nan|inf|-inf)|overflow|infinite", trial.message)
            assert trial.scores == {}
            assert trial.message in (flags.run_path / "trials.md").read_text()
            assert trial.message in captured.out
        assert failed[0] not in results.ranking
        _, groups = session_groups(flags.run_path)
        statuses = {group.sessions[0].name: group.sessions[0].status for group in groups}
        assert statuses == {
            f"trials/{trial.number:03}/logs": api_pb2.STATUS_FAILURE
            if trial in failed
            else api_pb2.STATUS_SUCCESS
            for trial in results.trials
        }

    def test_search_in_which_nothing_works_ends_with_the_reason(
        self, settings, tmp_path, monkeypatch, outcome
    ):
        def fail(config, **_):
            raise RunError(f"{config.run_path.name} is too much")

        monkeypatch.setattr(search, "train", fail)
        flags = settings(tmp_path, max_trials=20)
        status, printed, error = outcome(main, *as_line(flags))
        assert status == 1
        assert re.fullmatch(r"error: no trial worked.*004 is too much\n", error)
        assert printed.count("is too much") == 5
        assert not list(flags.run_path.glob("*.flags"))

    def test_many_failures_in_a_row_do_not_end_a_search(self, settings, tmp_path, monkeypatch):
        def fail(config, **options):
            if 1 <= int(config.run_path.name) <= 7:
                raise RunError("too much")
            return train(config, **options)

        monkeypatch.setattr(search, "train", fail)
        results = search.search(settings(tmp_path, max_trials=9, epochs_per_trial=1))
        assert [trial.status == "failed" for trial in results.trials] == [
            1 <= number <= 7 for number in range(9)
        ]

    def test_full_disk_is_no_failure_of_a_trial(self, settings, tmp_path, monkeypatch):
        def fail(config, **_):
            raise OSError(28, "No space left on device", str(config.run_path))

        flags = settings(tmp_path, max_trials=1, epochs_per_trial=1)
        with monkeypatch.context() as patch:
            patch.setattr(search, "train", fail)
            with pytest.raises(OSError, match="No space left"):
                search.search(flags)
        assert search.search(flags).trials[0].status == "finished"

    def test_images_without_labels_are_refused_before_anything_is_written(
        self, shapes, settings, tmp_path
    ):
        (tmp_path / "loose").mkdir()
        shutil.copytree(shapes / "train" / "above", tmp_path / "loose" / "train")
        with pytest.raises(UsageError, match="no labels of several classes"):
            search.search(settings(tmp_path, dataset=str(tmp_path / "loose")))
        assert not (tmp_path / "search").exists()


def test_hyperband_continues_the_best_for_longer(
    settings, tmp_path, monkeypatch, state_of, assert_same_state
):
    trained = []

    def train_and_fail(config, **options):
        trained.append((config.run_path.name, config.epochs))
        if config.run_path.name == "002":
            raise RunError("too much")
        return train(config, **options)

    monkeypatch.setattr(search, "train", train_and_fail)
    flags = settings(
        tmp_path, tuner="hyperband", epochs_per_trial=3, max_trials=5, search=("beta_1",)
    )
    results = search.search(flags)
    # The untuned flags for the whole time, three for a third of it, and the best of them on.
    assert trained == [("000", 3), ("001", 1), ("002", 1), ("003", 1), ("004", 3)]
    best = max((results.trials[1], results.trials[3]), key=lambda trial: trial.scores["probe"])
    promoted = results.trials[4]
    assert (promoted.continues, promoted.values) == (best.number, best.values)
    history = json.loads((flags.run_path / "trials" / "004" / "history.json").read_text())
    assert list(history) == ["0", "1", "2", "3"]
    straight = flags.training(
        **promoted.values, epochs=3, hold_out=True, probe_every=0, run_dir=str(tmp_path / "run")
    )
    train(dataclasses.replace(straight, dream_every=0), export=False)
    assert_same_state(state_of(tmp_path / "run"), state_of(flags.run_path / "trials" / "004"))
    assert "continues" in (flags.run_path / "trials.md").read_text()


class TestDistributed:
    @pytest.fixture
    def cluster(self, monkeypatch):
        """Sets the variables; a port that is free unless it is given."""

        def start(tuner_id: str, port: int | None = None) -> int:
            if port is None:
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    port = free.getsockname()[1]
            for name, value in zip(VARIABLES, (tuner_id, "127.0.0.1", str(port)), strict=True):
                monkeypatch.setenv(name, value)
            return port

        return start

    def test_chief_and_two_workers_search_together(
        self, settings, tmp_path, cluster, monkeypatch, capsys
    ):
        port = cluster("none")
        flags = settings(tmp_path, max_trials=4, epochs_per_trial=1, tuner="random")
        processes = {}
        try:
            for name in ("chief", "worker-1", "worker-2"):
                processes[name] = subprocess.Popen(
                    [sys.executable, "-m", "ad_keras.tune", *as_line(flags)],
                    env={**os.environ, "KERASTUNER_TUNER_ID": name},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            outputs = {
                name: process.communicate(timeout=240) for name, process in processes.items()
            }
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
        for name, process in processes.items():
            assert (process.returncode, outputs[name][1]) == (0, ""), outputs
        by_worker = [
            {int(number) for number in re.findall(r"^trial (\d+):", outputs[name][0], re.M)}
            for name in ("worker-1", "worker-2")
        ]
        assert by_worker[0] | by_worker[1] == {0, 1, 2, 3}
        assert not by_worker[0] & by_worker[1]
        assert all(by_worker)
        trials = json.loads((flags.run_path / "trials.json").read_text())
        assert [trial["status"] for trial in trials] == ["finished"] * 4
        chief = outputs["chief"][0]
        assert f"serving 127.0.0.1:{port}" in chief
        assert len(re.findall(r"^trial \d, \d of 4: probe", chief, re.M)) == 4
        assert "best first (4 finished)" in chief
        assert list(flags.run_path.glob("tuned_*.flags"))
        # Alone, without a cluster, the same folder is a finished search.
        monkeypatch.setattr(search, "train", None)
        for name in VARIABLES:
            monkeypatch.delenv(name)
        capsys.readouterr()
        assert len(search.search(flags).trials) == 4
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (("chief", None, None), "no value in KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT"),
            (("w", "127.0.0.1", None), "no value in KERASTUNER_ORACLE_PORT"),
            ((None, "127.0.0.1", "80"), "no value in KERASTUNER_TUNER_ID"),
            (("w", "127.0.0.1", "http"), "KERASTUNER_ORACLE_PORT=http is not possible"),
            (("w", "127.0.0.1", "70000"), "KERASTUNER_ORACLE_PORT=70000 is not possible"),
            (("chief", "192.0.2.1", "8000"), "choose an address of this machine"),
        ],
    )
    def test_variables_that_cannot_be_used_are_one_line(
        self, values, message, settings, tmp_path, monkeypatch, outcome
    ):
        for name, value in zip(VARIABLES, values, strict=True):
            if value:
                monkeypatch.setenv(name, value)
        status, _, error = outcome(main, *as_line(settings(tmp_path)))
        assert status == 2
        assert re.fullmatch(r"error: .*\n", error)
        assert message in error
        assert not (tmp_path / "search").exists()

    def test_port_in_use_is_one_line(self, settings, tmp_path, cluster, outcome):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = cluster("chief", other.getsockname()[1])
            status, _, error = outcome(main, *as_line(settings(tmp_path)))
        assert status == 2
        assert re.fullmatch(rf"error: .*{port}.*in use.*free port.*\n", error)

    def test_worker_does_not_wait_for_ever(self, settings, tmp_path, cluster, outcome, monkeypatch):
        port = cluster("worker")
        monkeypatch.setattr(distributed, "_SECONDS_TO_WAIT", 0.1)
        status, _, error = outcome(main, *as_line(settings(tmp_path)))
        assert status == 1
        assert re.fullmatch(rf"error: no chief answers at 127.0.0.1:{port}.*\n", error)

    def test_worker_with_other_flags_or_another_folder_is_refused(
        self, copied, tmp_path, cluster, outcome
    ):
        with socket.socket() as chief:
            chief.bind(("127.0.0.1", 0))
            chief.listen()
            cluster("worker", chief.getsockname()[1])
            status, _, error = outcome(main, *as_line(copied), "--batch_size=20")
            assert status == 2
            assert "--batch_size was 30 and is 20" in error
            status, _, error = outcome(main, *as_line(copied), f"--tuner_dir={tmp_path}")
        assert status == 2
        assert "is not the folder of a search" in error
