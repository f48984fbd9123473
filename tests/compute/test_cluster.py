"""Tests of training on several devices and machines: two logical CPUs, two workers on loopback."""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import socket
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
from ad_keras.runs.training import train

SECONDS = 300  # after which a process counts as hanging
MEMBER = Path(__file__).with_name("cluster_member.py")
ROOT = Path(__file__).parents[2]


def start(command: list[str], folder: Path, **environment) -> subprocess.Popen:
    """Starts Python in a folder, with our modules."""
    # Other tests set this one in this process.
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_workers(commands: list[list[str]], folder: Path) -> list[subprocess.Popen]:
    """Starts a worker for each command."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in commands]
    addresses = [f"127.0.0.1:{listening.getsockname()[1]}" for listening in sockets]
    for listening in sockets:
        listening.close()
    return [
        start(
            command,
            folder,
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            ),
        )
        for index, command in enumerate(commands)
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each."""
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, *output) for process, output in zip(processes, outputs, strict=True)
    ]


def succeeded(processes: list[subprocess.Popen]) -> None:
    for status, _, errors in ended(processes):
        assert status == 0, errors


@pytest.fixture(scope="module")
def member():
    spec = importlib.util.spec_from_file_location("cluster_member", MEMBER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(member, tmp_path_factory):
    """What one device, two devices and two workers make of the same states."""
    folder = tmp_path_factory.mktemp("cluster")
    alone = Cluster(tf.distribute.get_strategy())
    states, one_device = {}, {}
    for name in member.SETTINGS:
        model = member.new_model(name, alone)
        for beginning, first, last in member.PARTS:
            if first:
                member.fit(model, alone, int(model.step.numpy()), first)
            states |= {f"{beginning}/{name}/{n}": v for n, v in enumerate(member.state(model))}
            losses = member.fit(model, alone, first, last)
            one_device |= member.outcome(f"{beginning}/{name}", model, losses)
    np.savez(folder / "states.npz", **states)
    files = [folder / f"{name}.npz" for name in ("mirrored", "chief", "worker")]
    commands = [
        [str(MEMBER), strategy, devices, str(folder / "states.npz"), str(file)]
        for strategy, devices, file in zip(
            ("mirrored", "auto", "auto"), ("2", "1", "1"), files, strict=True
        )
    ]
    succeeded([start(commands[0], folder), *start_workers(commands[1:], folder)])
    found = {"one_device": one_device}
    for file in files:
        with np.load(file) as arrays:
            found[file.stem] = dict(arrays)
    return found


@pytest.mark.parametrize("where", ["mirrored", "chief", "worker"])
@pytest.mark.parametrize("beginning", ["new", "warm"])
def test_two_replicas_train_as_one_device_does(results, member, beginning, where):
    # "new" is the first step, "warm" are 20 steps after the first 100. Until the latents have the
    # prior's variance, a change of one weight in its last digit grows by three orders of
    # magnitude in 20 steps, on one device too.
    expected, found = results["one_device"], results[where]
    assert found["replicas"] == 2
    names = [name for name in expected if name.startswith(f"{beginning}/")]
    assert {name.split("/")[1] for name in names} == set(member.SETTINGS)
    different = {}
    for name in names:
        scale = np.linalg.norm(expected[name]) or 1.0
        difference = np.linalg.norm(found[name] - expected[name]) / scale
        if difference > 1e-4:
            different[name] = difference
    assert different == {}


def test_workers_hold_the_same_weights_bit_for_bit(results):
    assert results["chief"].keys() == results["worker"].keys()
    for name in results["chief"]:
        assert results["chief"][name].tobytes() == results["worker"][name].tobytes(), name


@pytest.fixture(scope="module")
def continued(tiny, flags_of, tmp_path_factory):
    """A run begun on one device, continued by two workers and again by two devices."""
    folder = tmp_path_factory.mktemp("continued")
    config = tiny(folder, epochs=1, checkpoint_every=3)
    train(config)
    told = [json.loads((folder / "run" / "history.json").read_text())]
    workers = flags_of(dataclasses.replace(config, epochs=2, strategy="multi_worker"))
    outcomes = ended(start_workers([["-m", "ad_keras.train", *workers]] * 2, folder))
    mirrored = flags_of(dataclasses.replace(config, epochs=3, strategy="mirrored"))
    code = (
        "import tensorflow as tf; from ad_keras import cli, train;"
        "cpu = tf.config.list_physical_devices('CPU')[0];"
        "tf.config.set_logical_device_configuration("
        "cpu, [tf.config.LogicalDeviceConfiguration()] * 2);"
        "cli.run(train.main)"
    )
    outcomes += ended([start(["-c", code, *mirrored], folder)])
    told.append(json.loads((folder / "run" / "history.json").read_text()))
    return config, outcomes, told


def test_a_run_continues_with_another_number_of_replicas(continued, tiny, tmp_path):
    _, outcomes, (before, after) = continued
    assert [status for status, _, _ in outcomes] == [0, 0, 0], outcomes
    assert list(after) == ["0", "1", "2", "3"]
    assert after["1"] == before["1"]
    train(tiny(tmp_path, epochs=3))
    alone = json.loads((tmp_path / "run" / "history.json").read_text())
    for epoch, entry in alone.items():
        for name, value in entry.items():
            if "validation" not in name:
                assert after[epoch][name] == pytest.approx(value, rel=1e-3), (epoch, name)


def test_only_the_chief_tells_of_the_run(continued):
    _, ((_, chief, chief_errors), (_, worker, worker_errors), _), _ = continued
    assert "Epoch 2/2" in chief
    assert "Encoder and generator" in chief
    assert (chief_errors, worker, worker_errors) == ("", "", "")


def test_checkpoints_and_exports_are_those_of_one_device(continued, tiny, state_of, tmp_path):
    config, _, _ = continued
    train(tiny(tmp_path, epochs=3))
    found, expected = state_of(config.run_path), state_of(tmp_path / "run")
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in expected.items()
    }
    files = [
        {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        for folder in (config.export_path, tmp_path / "export")
    ]
    assert files[0] == files[1]
    restored = dataclasses.replace(config, epochs=3)
    assert train(restored).history["3"]  # on one device again


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_worker_that_is_not_the_chief_writes_nothing(tiny, tmp_path, monkeypatch):
    config = tiny(tmp_path, epochs=1)
    train(config)
    before = contents(tmp_path)
    worker = Cluster(tf.distribute.get_strategy(), worker=1)
    monkeypatch.setattr("ad_keras.runs.training.connect", lambda _: worker)
    more = dataclasses.replace(config, epochs=2, checkpoint_every=1, dream_every=1)
    assert train(more) is None
    stop = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: batch == 1 and signal.raise_signal(signal.SIGTERM)
    )
    with pytest.raises(Interrupted, match="SIGTERM at step 9: this worker stops") as stopped:
        train(more, [stop])
    assert stopped.value.exit_status == 128 + signal.SIGTERM
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGKILL), (0, signal.SIGKILL)])
def test_a_lost_worker_ends_the_others_with_a_clear_message(
    tiny, flags_of, tmp_path, victim, number
):
    config = tiny(tmp_path, epochs=10_000, checkpoint_every=5)
    flags = flags_of(dataclasses.replace(config, strategy="multi_worker"))
    workers = start_workers([["-m", "ad_keras.train", *flags]] * 2, tmp_path)
    checkpoints = config.run_path / "checkpoints" / "recent"
    deadline = time.monotonic() + SECONDS
    while not list(checkpoints.glob("*.index")) and time.monotonic() < deadline:
        time.sleep(0.2)
    workers[victim].send_signal(number)
    status, _, errors = ended(workers)[1 - victim]
    assert status == 1
    assert errors.count("\n") == 1
    assert "lost the connection to another worker" in errors
    assert "Start all workers again" in errors
    saved = {path.name for path in checkpoints.glob("*.index")}
    assert saved
    newest = max(int(name.removeprefix("step-").removesuffix(".index")) for name in saved)
    # Starting again continues, here on one device for the length of an epoch.
    epochs = newest // 6 + 1
    history = train(dataclasses.replace(config, epochs=epochs)).history
    assert str(epochs) in history


def test_a_disk_of_its_own_is_told_to_the_worker(tiny, flags_of, tmp_path):
    lines = [
        flags_of(
            dataclasses.replace(
                tiny(tmp_path / place, epochs=1), strategy="multi_worker", probe_every=0
            )
        )
        for place in ("here", "there")
    ]
    workers = start_workers([["-m", "ad_keras.train", *line] for line in lines], tmp_path)
    _, (status, _, errors) = ended(workers)
    assert status == 2
    assert "must be on a disk that all workers share" in errors


def test_several_steps_an_execution_are_refused_with_several_replicas():
    code = (
        "import tensorflow as tf; from ad_keras import *;"
        "cpu = tf.config.list_physical_devices('CPU')[0];"
        "tf.config.set_logical_device_configuration("
        "cpu, [tf.config.LogicalDeviceConfiguration()] * 2);"
        "scope = tf.distribute.MirroredStrategy(['cpu:0', 'cpu:1']).scope();"
        "scope.__enter__();"
        "model = PAD(build_encoder(base_filters=4), build_generator(base_filters=4));"
        "model.compile(steps_per_execution=2)"
    )
    ((status, _, errors),) = ended([start(["-c", code], ROOT)])
    assert status == 1
    assert "steps_per_execution=2 does not work in Keras with 2 replicas" in errors


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


def test_workers_without_a_cluster_description_are_a_usage_error(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UsageError, match="needs the environment variable TF_CONFIG"):
        connect.__wrapped__("multi_worker")


def test_a_missing_tpu_is_a_usage_error(monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(UsageError, match="finds no TPU"):
        connect.__wrapped__("tpu")


@pytest.mark.parametrize("told", ["--strategy=multi_worker", "--strategy=tpu"])
def test_a_missing_cluster_is_one_line(told, tmp_path):
    free = {"TF_CONFIG": "", "TPU_NAME": "local"}
    ((status, output, errors),) = ended([start(["-m", "ad_keras.train", told], tmp_path, **free)])
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {told} ")
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


def test_the_example_starts_two_workers(tiny, flags_of, tmp_path):
    config = tiny(tmp_path, epochs=1)
    shutil.copy(ROOT / "examples" / "two_workers.py", tmp_path)
    ((status, output, errors),) = ended([start(["two_workers.py", *flags_of(config)], tmp_path)])
    assert (status, errors) == (0, "")
    assert output.count("TF_CONFIG=") == 2
    assert (config.export_path / "metadata.json").is_file()
