"""What several test files share: a small folder of images, and runs on it that take a second."""

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ad_keras import cli
from ad_keras.runs.config import RUN_ONLY, Config

# As commands do, whose runs in processes of their own have the same bits then.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# PyTorch's builds for GPUs load it later, when it crashes because TensorFlow is there.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401


def save_noise(folder: Path, classes: dict[str, slice], train: int, test: int, high: int) -> Path:
    """Writes images of noise below a value for each class, brighter in the class's rows."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name, rows in classes.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, high, (32, 32, 3), np.uint8)
                pixels[rows] += 100
                Image.fromarray(pixels).save(folder / split / name / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """48 training and 12 test images of noise in three classes."""
    classes = dict.fromkeys(("cat", "dog", "owl"), slice(0))
    return save_noise(tmp_path_factory.mktemp("images"), classes, 16, 4, high=256)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """96 training and 92 test images in two classes: bright above, and bright below."""
    classes = {"above": slice(0, 16), "below": slice(16, 32)}
    return save_noise(tmp_path_factory.mktemp("data") / "shapes", classes, 48, 46, high=150)


@pytest.fixture(scope="session")
def tiny(image_folder):
    """Makes the configuration of a run of six steps an epoch, without pictures, in a folder."""

    def config(folder: Path, **changes) -> Config:
        settings = {
            **{"dataset": str(image_folder), "base_filters": 4, "latent_dim": 8, "batch_size": 8},
            **{"epochs": 2, "dream_every": 0, "probe_every": 0, "run_dir": str(folder / "run")},
            "saved_model_dir": str(folder / "export"),
        }
        return Config(**{**settings, **changes})

    return config


@pytest.fixture(scope="session")
def flags_of():
    """Writes a configuration as a command line."""

    def flags(config) -> list[str]:
        plain, line = type(config)(), []
        for name, value in dataclasses.asdict(config).items():
            if isinstance(value, bool):
                line += [f"--{name}"] * value
            elif value != getattr(plain, name):
                line.append(f"--{name}={','.join(value) if isinstance(value, tuple) else value}")
        return line

    return flags


@pytest.fixture
def pytorch():
    """Lets PyTorch use one thread: there is nothing to share in a step this small."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture
def outcome(flags_of, monkeypatch, capsys):
    """Runs a program with flags and configurations here: its exit status, stdout and stderr."""

    def run(main, *arguments) -> tuple[int, str, str]:
        plain = ([each] if isinstance(each, str) else flags_of(each) for each in arguments)
        monkeypatch.setattr(sys, "argv", ["program", *itertools.chain(*plain)])
        capsys.readouterr()
        status = 0
        try:
            cli.run(main)
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refusal(outcome):
    """Runs a program in vain: its error, one line. A wrong use prints nothing else."""

    def run(main, *arguments, status: int = 2) -> str:
        code, out, error = outcome(main, *arguments)
        assert code == status
        assert re.fullmatch(r"error: .*[.?]\n", error)
        assert out == "" or status == 1
        return error

    return run


@pytest.fixture
def success(outcome):
    """Runs a program that works: what it prints."""

    def run(main, *arguments) -> str:
        status, out, error = outcome(main, *arguments)
        assert (status, error) == (0, "")
        return out

    return run


@pytest.fixture(scope="session")
def rebuilt():
    """Builds the model of a configuration, but traces it once: later calls begin the first anew."""
    from ad_keras.runs.build import build_model

    of_data = {"dataset", "train_examples", "hold_out"}
    made = {}

    def build(config: Config, build_model=build_model):
        flags = dataclasses.asdict(config).items()
        key = build_model, *(value for name, value in flags if name not in RUN_ONLY | of_data)
        if key not in made:
            model = build_model(config)
            optimizers = (model.encoder_optimizer, model.generator_optimizer)
            variables = [*model.weights, *(each for one in optimizers for each in one.variables)]
            made[key] = model, [(variable, variable.numpy()) for variable in variables]
        model, beginning = made[key]
        for variable, value in beginning:
            variable.assign(value)
        model.reset_metrics()
        model.stop_training = False
        return model

    return build


@pytest.fixture
def eagerly(monkeypatch):
    """Has models run eagerly: tracing takes longer than a few steps."""
    from ad_keras import PAD

    monkeypatch.setattr(PAD, "run_eagerly", property(lambda _: True, lambda *_: None))


@pytest.fixture
def quick_export(monkeypatch):
    """Leaves SavedModels, which take long to write, out of exports."""
    import tensorflow as tf

    monkeypatch.setattr(tf.saved_model, "save", lambda _, folder, __: Path(folder).mkdir())


@pytest.fixture(scope="session")
def quick_train(rebuilt):
    """`train` without the seconds that tracing and exporting take."""
    from ad_keras.runs.training import train

    return functools.partial(train, build=rebuilt, export=False)


@pytest.fixture
def quick_main(quick_train, monkeypatch):
    """The program that trains so."""
    from ad_keras import train as program

    monkeypatch.setattr("ad_keras.runs.training.train", quick_train)
    return program.main


@pytest.fixture(scope="session")
def finished(tiny, quick_train, tmp_path_factory):
    """Configuration and result of a finished run of four epochs, which no test may change."""
    changes = {"checkpoint_every": 3, "log_every": 2, "dream_every": 1, "probe_every": 1}
    config = tiny(tmp_path_factory.mktemp("finished"), epochs=4, **changes)
    return config, quick_train(config, export=True)


@pytest.fixture
def copied(finished, tmp_path):
    """Configuration of a copy of that run, for a test to do with as it likes."""
    config, result = finished
    shutil.copytree(result.run_folder, tmp_path / "run")
    return dataclasses.replace(
        config, run_dir=str(tmp_path / "run"), saved_model_dir=str(tmp_path / "export")
    )


@pytest.fixture(scope="session")
def state_of():
    """Reads the newest checkpoint below a run's folder: every variable by its name."""
    import tensorflow as tf

    def state(run_folder: str | Path) -> dict[str, np.ndarray]:
        saved = Path(run_folder, "checkpoints", "recent").glob("step-*.index")
        newest = max(saved, key=lambda path: int(path.stem.removeprefix("step-")))
        reader = tf.train.load_checkpoint(str(newest.with_suffix("")))
        return {
            name: reader.get_tensor(name)
            for name in reader.get_variable_to_shape_map()
            if name.startswith("model/")
        }

    return state


@pytest.fixture(scope="session")
def assert_same_run(state_of):
    """Compares the newest checkpoints of two runs bit by bit."""

    def same(one: Config, other: Config) -> None:
        first, second = state_of(one.run_path), state_of(other.run_path)
        assert first.keys() == second.keys()
        assert len(first) > 50
        different = [name for name in first if first[name].tobytes() != second[name].tobytes()]
        assert different == []

    return same
