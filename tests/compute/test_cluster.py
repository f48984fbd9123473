"""Tests of training on several devices and machines: two logical CPUs, two workers on loopback."""

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
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
EXAMPLE = ROOT / "examples" / "two_workers.py"
# By the place where two replicas train, the parts of their model; tracing them takes long. The
# plain ones share masks and memories of a mini-batch. The others are all else that replicas must
# agree about: noise and mixtures in every phase, masks per image, losses that compare the images
# of a mini-batch, a memory of several of them.
MODELS = {
    "mirrored": {},
    "workers": {
        "network": "residual",
        "wake_noise_variance": 0.5,
        "nrem_memories": "mixed",
        "mask_per": "image",
        "perturbation": ("crop", "colour", "occlusion"),
        "recovery": "contrast",
        "hippocampus": "reservoir",
        "hippocampus_capacity": 30,
        "mixing": "component",
        "adversary": "hinge",
        "decorrelation_weight": 0.1,
        "gradient_penalty_weight": 0.5,
        "clip_norm": 0.5,
        "average_weights": 0.9,
        "glimpse": ("crop", "noise"),
        "agreement": "vicreg",
        "agreement_weight": 0.04,
    },
}
PROCESSES = {"mirrored": "mirrored", "chief": "workers", "worker": "workers"}


def module_of(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


member = module_of(MEMBER)


@dataclasses.dataclass
class Found:
    """What one device, two devices and two workers did, `trained` from the same states."""

    trained: dict[str, dict]  # weights and losses by process; of one device, by model
    runs: dict[str, Config]  # by model, what one device began and two replicas continued
    alone: dict[str, dict]  # by model, the history of that run on one device
    lost: Config  # run of two workers of which the second was killed
    told: dict[str, tuple[int, str, str]]  # exit status, stdout and stderr by process


@pytest.fixture(scope="module")
def found(tiny, flags_of, rebuilt, quick_train, finished, tmp_path_factory):
    """All that the tests here need of other processes, which take long to start."""
    folder = tmp_path_factory.mktemp("cluster")
    one_device = Cluster(tf.distribute.get_strategy())
    runs, trained, alone = {}, {}, {"mirrored": finished[1].history}
    for name, parts in MODELS.items():
        runs[name] = tiny(folder / name, checkpoint_every=3, **parts)
        quick_train(dataclasses.replace(runs[name], epochs=1))
        if name not in alone:
            alone[name] = quick_train(tiny(folder / "alone", **parts)).history
        model = rebuilt(runs[name])
        states, trained[name] = {}, {}
        for beginning, (first, last) in member.BEGINNINGS.items():
            if first:
                member.fit(model, one_device, int(model.step.numpy()), first)
            for number, variable in enumerate(member.variables(model)):
                states[f"{beginning}/{number}"] = variable.numpy()
            for loss, value in member.fit(model, one_device, first, last).items():
                trained[name][f"{beginning}/{loss}"] = value
        np.savez(folder / f"{name}-states.npz", **states)

    # Other tests set this one in this process.
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}

    def start(place: str, strategy: str, devices: int, *flags: list[str], **environment):
        files = (folder / f"{PROCESSES[place]}-states.npz", folder / f"{place}.npz")
        arguments = (MEMBER, strategy, devices, *files, json.dumps(flags))
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**inherited, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    lost = tiny(folder / "lost", epochs=10_000, checkpoint_every=5, **MODELS["workers"])
    flags = [*flags_of(runs["mirrored"]), "--strategy=mirrored"]
    processes = {"mirrored": start("mirrored", "mirrored", 2, flags)}
    cluster = {"worker": [f"127.0.0.1:{port}" for port in module_of(EXAMPLE).free_ports(2)]}
    for index, place in enumerate(("chief", "worker")):
        task = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        flags = [flags_of(run) for run in (runs["workers"], lost)]
        processes[place] = start(place, "auto", 1, *flags, TF_CONFIG=task)
    told, deadline = {}, time.monotonic() + SECONDS
    try:
        while processes["worker"].poll() is None and not newest_step(lost.run_path):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        processes["worker"].kill()
        for place, process in processes.items():
            output = process.communicate(timeout=SECONDS)
            told[place] = (process.returncode, *output)
    finally:
        for process in processes.values():
            process.kill()
    assert newest_step(lost.run_path), told  # else they ended before the worker was killed
    for place in PROCESSES:
        with np.load(folder / f"{place}.npz") as arrays:
            trained[place] = dict(arrays)
    return Found(trained, runs, alone, lost, told)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("beginning", member.BEGINNINGS)
def test_two_replicas_train_as_one_device_does(found, beginning, process):
    # "new" is the first step, "warm" are 8 steps after the first 100. Until the latents have the
    # prior's variance, a change of one weight in its last digit grows by three orders of
    # magnitude in 20 steps, on one device too.
    expected, result = found.trained[PROCESSES[process]], found.trained[process]
    assert result["replicas"] == 2
    np.testing.assert_array_equal(result["sums"], [2.0, 2.0])
    names = [name for name in expected if name.startswith(beginning)]
    assert len(names) > 20
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
    for process in PROCESSES:
        refusal = str(found.trained[process]["refusal"])
        assert "steps_per_execution=2 does not work in Keras with 2 replicas" in refusal


@pytest.mark.parametrize("model", MODELS)
def test_a_run_continues_with_another_number_of_replicas(found, model):
    history = json.loads((found.runs[model].run_path / "history.json").read_text())
    assert list(history) == ["0", "1", "2"]
    for epoch, near in (("1", 0), ("2", 1e-3)):  # the first is that of one device
        for name, value in found.alone[model][epoch].items():
            if "validation" not in name:
                assert history[epoch][name] == pytest.approx(value, rel=near), (epoch, name)


def test_only_the_chief_tells_of_the_run(found):
    for process in ("mirrored", "chief"):
        status, told, errors = found.told[process]
        assert (status, errors.count("\n")) == ((1, 1) if process == "chief" else (0, 0))
        assert "Epoch 2/2" in told
        assert f"Encoder and generator: {found.runs[PROCESSES[process]].export_path}\n" in told
    assert found.told["worker"] == (-signal.SIGKILL, "", "")


@pytest.mark.parametrize("model", MODELS)
def test_checkpoints_and_exports_are_those_of_one_device(
    found, finished, model, quick_train, state_of
):
    run, config = found.runs[model], finished[0]
    if model == "mirrored":
        shapes, expected = (
            {name: value.shape for name, value in state_of(each.run_path).items()}
            for each in (run, config)
        )
        assert shapes == expected
    files, expected = (
        {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
        for folder in (run.export_path, config.export_path)
    )
    assert files == expected
    assert quick_train(dataclasses.replace(run, epochs=3)).history["3"]  # on one device again


def test_a_lost_worker_ends_the_others_with_a_clear_message(found, quick_train):
    errors = found.told["chief"][2]
    assert "lost another worker" in errors
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


def test_a_worker_with_other_images_is_refused_from_the_start(
    tiny, image_folder, quick_train, tmp_path, monkeypatch
):
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    config = tiny(tmp_path, dataset=str(images), epochs=1)
    quick_train(config)
    next((images / "train").rglob("*.png")).unlink()
    become_second_worker(monkeypatch)
    with pytest.raises(UsageError, match=r"with 48 images of .*, but now there are 47"):
        quick_train(dataclasses.replace(config, overwrite=True))


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}']
)
def test_a_wrong_cluster_description_is_a_usage_error(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=r"does not describe a worker of a cluster"):
        connect.__wrapped__("auto")


def test_a_cluster_that_tensorflow_cannot_make_is_a_usage_error(monkeypatch):
    def fail():
        raise tf.errors.UnknownError(None, None, "Could not start gRPC server")

    workers = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(workers))
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", fail)
    with pytest.raises(UsageError, match=r"TF_CONFIG=.* cannot be used: Could not start gRPC"):
        connect.__wrapped__("auto")


@pytest.mark.parametrize("program", [reproduce, tune])
def test_programs_that_do_not_share_their_work_refuse_a_cluster(
    program, refusal, monkeypatch, tmp_path
):
    workers = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(workers))
    monkeypatch.chdir(tmp_path)
    assert re.search("TF_CONFIG names 2 workers.*unset TF_CONFIG", refusal(program.main))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("strategy", "told"),
    [("multi_worker", "needs the environment variable TF_CONFIG"), ("tpu", "finds no TPU")],
)
def test_a_missing_cluster_is_one_line(strategy, told, tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("TPU_NAME", "local")
    errors = refusal(program.main, f"--strategy={strategy}")
    assert errors.startswith(f"error: --strategy={strategy} {told}")
    assert len(errors) < 300
    assert not list(tmp_path.iterdir())


def test_one_device_by_default(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    cluster = connect.__wrapped__("auto")
    assert (cluster.replicas, cluster.workers, cluster.is_chief) == (1, 1, True)


def test_a_mini_batch_that_cannot_be_shared_equally_is_refused(
    tiny, refusal, tmp_path, monkeypatch
):
    class Three(Cluster):
        replicas = 3

    monkeypatch.setattr(
        "ad_keras.runs.training.connect", lambda _: Three(tf.distribute.get_strategy())
    )
    told = "--batch_size=8 cannot be shared equally by 3 replicas"
    assert told in refusal(program.main, tiny(tmp_path))
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
        wanted = f"{python} -m ad_keras.train --strategy=multi_worker --epochs=1"
        assert command == wanted.split()
        assert (tmp_path / str(index)).read_text() == f"{told} {' '.join(command[1:])}\n"
        task = json.loads(told)
        assert task["task"] == {"type": "worker", "index": index}
        assert len(set(task["cluster"]["worker"])) == 2
