"""Tests of training on several devices and machines: two logical CPUs, two workers on loopback."""

import dataclasses
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from ad_keras import reproduce, tune
from ad_keras import train as program
from ad_keras.compute.cluster import Cluster, connect
from ad_keras.errors import Interrupted, UsageError
from ad_keras.runs.checkpoints import newest_step
from ad_keras.runs.config import Config

SECONDS = 600  # after which a process counts as hanging
MEMBER = Path(__file__).with_name("cluster_member.py")
ROOT = Path(__file__).parents[2]
# Which parts a model has matters to all strategies alike, and tracing two replicas takes long.
MODELS = {"mirrored": "full", "chief": "full,other_parts", "worker": "full,other_parts"}
EXAMPLE = ROOT / "examples" / "two_workers.py"


@pytest.fixture(scope="module")
def member():
    return module_of(MEMBER)


def module_of(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(member, arguments: list, commands: list[list[str]], **environment) -> subprocess.Popen:
    """Starts a process of a cluster, which runs these commands among others."""
    # Other tests set this one in this process.
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        [sys.executable, str(MEMBER), *map(str, arguments), json.dumps(commands)],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    output = process.communicate(timeout=SECONDS)
    return process.returncode, *output


def wait_for(process: subprocess.Popen, ready) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


@dataclasses.dataclass
class Found:
    """What one device, two devices and two workers did.

    Attributes:
        trained: weights and losses, by place, from the same states.
        run: that one device began, two devices continued and two workers after them.
        before: history of that run after the one device.
        lost: run of two workers of which the second was killed.
        told: exit status, stdout and stderr, by place.
    """

    trained: dict[str, dict]
    run: Config
    before: dict
    lost: Config
    told: dict[str, tuple[int, str, str]]


@pytest.fixture(scope="module")
def found(member, tiny, flags_of, quick_train, tmp_path_factory):
    """All that the tests here need of other processes, which take long to start."""
    folder = tmp_path_factory.mktemp("cluster")
    alone = Cluster(tf.distribute.get_strategy())
    states, trained = {}, {"one_device": {}}
    for name in member.SETTINGS:
        model = member.new_model(name, alone)
        for beginning, first, last in member.PARTS:
            if first:
                member.fit(model, alone, int(model.step.numpy()), first)
            states |= {
                f"{beginning}/{name}/{number}": variable.numpy()
                for number, variable in enumerate(member.variables(model))
            }
            losses = member.fit(model, alone, first, last)
            trained["one_device"] |= member.outcome(f"{beginning}/{name}", model, losses)
    np.savez(folder / "states.npz", **states)
    files = {place: folder / f"{place}.npz" for place in MODELS}

    run = tiny(folder, epochs=1, checkpoint_every=3)
    before = quick_train(run).history
    mirrored = dataclasses.replace(run, epochs=2, strategy="mirrored")
    given = folder / "states.npz"
    process = start(
        member, ["mirrored", 2, MODELS["mirrored"], given, files["mirrored"]], [flags_of(mirrored)]
    )
    told = {"mirrored": ended(process)}

    run = dataclasses.replace(run, epochs=3)
    lost = tiny(folder / "lost", epochs=10_000, checkpoint_every=5)
    addresses = [f"127.0.0.1:{port}" for port in module_of(EXAMPLE).free_ports(2)]
    cluster = {"worker": addresses}
    workers = [
        start(
            member,
            ["auto", 1, MODELS[place], given, files[place]],
            [flags_of(run), flags_of(lost)],
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
        )
        for index, place in enumerate(("chief", "worker"))
    ]
    try:
        wait_for(workers[0], lambda: newest_step(lost.run_path))
        workers[1].kill()
        for place, process in zip(("chief", "worker"), workers, strict=True):
            told[place] = ended(process)
    finally:
        for process in workers:
            process.kill()
    for place, file in files.items():
        with np.load(file) as arrays:
            trained[place] = dict(arrays)
    return Found(trained, run, before, lost, told)


@pytest.fixture(scope="module")
def alone(tiny, quick_train, tmp_path_factory):
    """The run of one device, in this process."""
    config = tiny(tmp_path_factory.mktemp("alone"), epochs=3)
    return config, quick_train(config, export=True)


@pytest.mark.parametrize("where", MODELS)
@pytest.mark.parametrize("beginning", ["new", "warm"])
def test_two_replicas_train_as_one_device_does(found, beginning, where):
    # "new" is the first step, "warm" are 8 steps after the first 100. Until the latents have the
    # prior's variance, a change of one weight in its last digit grows by three orders of
    # magnitude in 20 steps, on one device too.
    expected, result = found.trained["one_device"], found.trained[where]
    assert result["replicas"] == 2
    models = MODELS[where].split(",")
    names = [name for name in expected if name.split("/")[:2] in [[beginning, m] for m in models]]
    assert len(names) > 20 * len(models)
    different = {}
    for name in names:
        scale = np.linalg.norm(expected[name]) or 1.0
        difference = np.linalg.norm(result[name] - expected[name]) / scale
        if difference > 1e-4:
            different[name] = difference
    assert different == {}


def test_workers_hold_the_same_weights_bit_for_bit(found):
    chief, worker = found.trained["chief"], found.trained["worker"]
    assert chief.keys() == worker.keys()
    for name in chief:
        assert chief[name].tobytes() == worker[name].tobytes(), name


def test_several_steps_an_execution_are_refused_with_several_replicas(found):
    for where in MODELS:
        refusal = str(found.trained[where]["refusal"])
        assert "steps_per_execution=2 does not work in Keras with 2 replicas" in refusal


def test_a_run_continues_with_another_number_of_replicas(found, alone):
    after = json.loads((found.run.run_path / "history.json").read_text())
    assert list(after) == ["0", "1", "2", "3"]
    assert (
        after["1"].items()
        >= {
            name: value for name, value in found.before["1"].items() if "validation" not in name
        }.items()
    )
    for epoch, entry in alone[1].history.items():
        for name, value in entry.items():
            if "validation" not in name:
                assert after[epoch][name] == pytest.approx(value, rel=1e-3), (epoch, name)


def test_only_the_chief_tells_of_the_run(found):
    status, mirrored, errors = found.told["mirrored"]
    assert (status, errors) == (0, "")
    assert "Epoch 2/2" in mirrored
    _, chief, _ = found.told["chief"]
    assert "Epoch 3/3" in chief
    assert f"Encoder and generator: {found.run.export_path}\n" in chief
    assert found.told["worker"] == (-signal.SIGKILL, "", "")


def test_checkpoints_and_exports_are_those_of_one_device(found, alone, quick_train, state_of):
    shapes, expected = (
        {name: value.shape for name, value in state_of(config.run_path).items()}
        for config in (found.run, alone[0])
    )
    assert shapes == expected
    files, expected = (
        {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
        for folder in (found.run.export_path, alone[0].export_path)
    )
    assert files == expected
    more = dataclasses.replace(found.run, epochs=4)
    assert quick_train(more).history["4"]  # on one device again


def test_a_lost_worker_ends_the_others_with_a_clear_message(found, quick_train):
    status, _, errors = found.told["chief"]
    assert status == 1
    assert errors.count("\n") == 1
    assert "lost the connection to another worker" in errors
    assert "Start all workers again" in errors
    # Starting again continues, here on one device for the length of an epoch.
    epochs = newest_step(found.lost.run_path) // 6 + 1
    history = quick_train(dataclasses.replace(found.lost, epochs=epochs)).history
    assert str(epochs) in history


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def become_second_worker(monkeypatch) -> None:
    worker = Cluster(tf.distribute.get_strategy(), worker=1)
    monkeypatch.setattr("ad_keras.runs.training.connect", lambda _: worker)


def test_a_worker_that_is_not_the_chief_writes_nothing(tiny, quick_train, tmp_path, monkeypatch):
    config = tiny(tmp_path, epochs=1)
    quick_train(config)
    before = contents(tmp_path)
    become_second_worker(monkeypatch)
    more = dataclasses.replace(config, epochs=2, checkpoint_every=1, dream_every=1)
    assert quick_train(more) is None
    stop = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: batch == 1 and signal.raise_signal(signal.SIGTERM)
    )
    with pytest.raises(Interrupted, match="SIGTERM at step 9: this worker stops") as stopped:
        quick_train(more, [stop])
    assert stopped.value.exit_status == 128 + signal.SIGTERM
    assert contents(tmp_path) == before


def test_a_disk_of_its_own_is_told_to_the_worker(tiny, quick_train, tmp_path, monkeypatch):
    become_second_worker(monkeypatch)
    with pytest.raises(UsageError, match="must be on a disk that all workers share"):
        quick_train(tiny(tmp_path))


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}']
)
def test_a_wrong_cluster_description_is_a_usage_error(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=r"does not describe a worker of a cluster"):
        connect.__wrapped__("auto")


@pytest.mark.parametrize("program", [reproduce, tune])
def test_programs_that_do_not_share_their_work_refuse_a_cluster(
    program, outcome, monkeypatch, tmp_path
):
    workers = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(workers))
    monkeypatch.chdir(tmp_path)
    status, printed, errors = outcome(program.main)
    assert (status, printed) == (2, "")
    assert "TF_CONFIG names 2 workers" in errors
    assert "unset TF_CONFIG" in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ("multi_worker", "needs the environment variable TF_CONFIG"),
        ("tpu", "finds no TPU"),
    ],
)
def test_a_missing_cluster_is_one_line(strategy, told, tmp_path, monkeypatch, outcome):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("TPU_NAME", "local")
    status, output, errors = outcome(program.main, f"--strategy={strategy}")
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: --strategy={strategy} {told}")
    assert errors.count("\n") == 1
    assert len(errors) < 300
    assert not list(tmp_path.iterdir())


def test_one_device_by_default(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    cluster = connect.__wrapped__("auto")
    assert (cluster.replicas, cluster.workers, cluster.is_chief) == (1, 1, True)


def test_a_mini_batch_that_cannot_be_shared_equally_is_refused(
    tiny, flags_of, outcome, tmp_path, monkeypatch
):
    class Three(Cluster):
        replicas = 3

    monkeypatch.setattr(
        "ad_keras.runs.training.connect", lambda _: Three(tf.distribute.get_strategy())
    )
    status, _, errors = outcome(program.main, *flags_of(tiny(tmp_path)))
    assert status == 2
    assert "--batch_size=8 cannot be shared equally by 3 replicas" in errors
    assert not (tmp_path / "run").exists()


def test_the_example_starts_two_workers(tmp_path, monkeypatch, capsys):
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$TF_CONFIG" in *\'"index": 0\'*) number=0;; *) number=1;; esac\n'
        f'echo "$TF_CONFIG $*" > {tmp_path}/$number; exit $number\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert module_of(EXAMPLE).main(["--epochs=1"]) == 1  # the status of the one that failed
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for index, line in enumerate(lines):
        setting, *command = shlex.split(line)
        told = setting.removeprefix("TF_CONFIG=")
        assert command == [
            str(python),
            "-m",
            "ad_keras.train",
            "--strategy=multi_worker",
            "--epochs=1",
        ]
        assert (tmp_path / str(index)).read_text() == f"{told} {' '.join(command[1:])}\n"
        task = json.loads(told)
        assert task["task"] == {"type": "worker", "index": index}
        assert len(set(task["cluster"]["worker"])) == 2
