"""The benchmarks run, count what they say they count, and compare like with like."""

import dataclasses
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ad_keras.runs.config import Config

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    """Lets a test import the files beside each other, as a script does."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def forward(sizes: list[tuple[int, int, int]]) -> list[int]:
    """Operations of convolutions 4x4, given the positions of the kernel and the channels."""
    return [2 * 16 * positions * before * after for positions, before, after in sizes]


def test_work_of_the_phases_by_hand(benchmarks):
    from measurements import phase_operations

    from ad_keras.runs.build import build_model

    first, *trunk = forward([(256, 3, 64), (64, 64, 128), (16, 128, 256)])
    latent, external = forward([(1, 256, 256), (1, 256, 1)])
    project, *unfold = forward([(1, 256, 256), (16, 256, 128), (64, 128, 64), (256, 64, 3)])
    generate = project + sum(unfold)
    inner = sum(trunk)
    # The first layer's input needs no gradient, except where images are dreams that are to improve.
    expected = {
        "wake": 2 * first + 3 * (inner + latent + external) + 3 * generate,
        "nrem": generate + 2 * first + 3 * (inner + latent),
        "rem": 2 * project + 3 * sum(unfold) + 3 * (first + inner + external),
    }

    operations = phase_operations(build_model(Config()))

    assert operations == expected
    assert sum(operations.values()) == pytest.approx(584e6, rel=0.001)


def test_work_as_pytorch_counts_it(benchmarks, pytorch):
    from measurements import phase_operations
    from peer import Peer, draw
    from torch.utils.flop_counter import FlopCounterMode

    from ad_keras.runs.build import build_model

    operations = phase_operations(build_model(Config(base_filters=4, latent_dim=8)))
    with FlopCounterMode(display=False) as counter:
        Peer(latent_dim=8, base_filters=4).step(pytorch.rand(16, 3, 32, 32), *draw(16, 8))

    assert counter.get_total_flops() / 16 == sum(operations.values())


def test_measures_and_writes_what_it_prints(
    benchmarks, quick_train, outcome, monkeypatch, tmp_path
):
    import measurements
    import throughput

    def measured(function: str, **settings):  # in this process, where the model is traced once
        ours, theirs = multiprocessing.Pipe()
        getattr(measurements, function)(theirs, **settings)
        return ours.recv()

    monkeypatch.setattr(throughput, "_measure", measured)
    monkeypatch.setattr(measurements, "train", quick_train)
    monkeypatch.setattr("ad_keras.runs.reports.Gallery.draw", lambda *_: None)
    output, temporary = tmp_path / "figures.json", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    flags = (
        "--parts=training,scale --precision=float32 --rounds=2 --seconds=0.1 --num_images=64 "
        "--scale_images=80 --scale_filters=4 --base_filters=4 --latent_dim=8 --batch_size=8"
    )
    status, printed, _ = outcome(throughput.main, *flags.split(), f"--output={output}")

    assert status == 0
    assert not list(temporary.glob("*/"))  # though the workers are killed
    figures = json.loads(output.read_text())
    assert set(figures["operations_per_image"]) == {"wake", "nrem", "rem"}
    contender = figures["training"]["contenders"]["ad_keras float32"]
    assert len(contender["rounds"]) == 2
    assert min(contender["rounds"]) <= contender["images_per_second"] <= max(contender["rounds"])
    assert contender["flops"] == pytest.approx(
        contender["images_per_second"] * sum(figures["operations_per_image"].values())
    )
    assert contender["share_of_product_rate"] == pytest.approx(
        contender["flops"] / figures["training"]["products"]["float32"]
    )
    assert contender["peak_bytes"] > 50e6
    assert figures["training"]["ratios"] == {}
    for line in ("processor:", "devices: what TensorFlow finds", "work:", "ad_keras float32"):
        assert line in printed
    assert f"{contender['images_per_second']:.0f}" in printed
    cases = figures["scale"]
    assert [(case["images"], case["epochs"]) for case in cases] == [(80, 1), (80, 2), (80, 4)]
    for case in cases:
        assert 0 < case["steps_seconds"] < case["seconds"]
        assert 0 < case["bytes_before"] <= case["peak_bytes"]
        assert 0 < case["bytes_at_tenth"] <= case["peak_bytes"]


def test_beside_pytorch_gpus_are_left_out(benchmarks, monkeypatch, pytorch):
    import throughput

    devices = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(throughput, "_measure", lambda *_, **__: {"wake": 1.0})
    for part in ("training", "scale"):
        monkeypatch.setattr(
            throughput, f"_{part}", lambda *_: devices.append(os.environ["CUDA_VISIBLE_DEVICES"])
        )
        throughput.main(["throughput", f"--parts={part}", *["--peer"] * (part == "training")])
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices == ["-1", "0"]


REFUSALS = [
    ("throughput", "--parts=trainings", "--parts=trainings is not one of training, scale."),
    ("throughput", "--precision=float16", "=float16 is not one of float32, mixed_bfloat16."),
    ("throughput", "--rounds=0", "--rounds=0 must be at least 1."),
    ("throughput", "--seconds=0", "--seconds=0.0 must be above 0."),
    ("throughput", "--batch_size=1", "--batch_size=1 must be at least 2."),
    ("throughput", "--num_images=63", "=63 must be a number of at least --batch_size (64)."),
    ("throughput", "--scale_images=100,many", "=many must be a number of at least"),
    ("agreement", "--reference=nowhere.npz", "--reference=nowhere.npz is not a recording"),
    ("agreement", "--peer", "--peer follows a recording: name it with --reference."),
    ("agreement", "--batch_size=1", "--batch_size=1 is not possible"),
    ("control", "--condition=dreamless", "--condition=dreamless: value should be one of"),
    ("control", "--batch_size=1", "--batch_size=1 is not possible"),
    ("control", "--beside=nowhere", "nowhere is not the folder of a run"),
]


@pytest.mark.parametrize(("name", "flag", "message"), REFUSALS)
def test_wrong_flags_are_refused(benchmarks, refusal, monkeypatch, name, flag, message):
    program = importlib.import_module(name)
    monkeypatch.setattr(program, "require_torch", lambda _: None)
    assert message in refusal(program.main, flag)


@pytest.mark.parametrize("name", ["throughput", "agreement", "control"])
def test_says_that_pytorch_is_missing(benchmarks, refusal, monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    flags = ["--peer"] if name == "throughput" else []

    stderr = refusal(importlib.import_module(name).main, *flags)
    assert 'pip install -e ".[benchmark]"' in stderr


@pytest.mark.parametrize(
    ("form", "near"), [("tuned", 0.1), ("rewritten", 0.1), ("rewritten_float32", 1e-3)]
)
def test_all_forms_compute_the_same_to_their_precision(benchmarks, form, near, pytorch):
    from peer import Peer, draw

    pytorch.manual_seed(0)
    plain, tuned = Peer("plain", 8, 4), Peer(form, 8, 4)
    with pytorch.no_grad():  # at their initial size, latents are too alike for NREM in bfloat16
        for parameter in (*plain.encoder.parameters(), *plain.generator.parameters()):
            parameter.mul_(5.0)
    tuned.encoder.load_state_dict(plain.encoder.state_dict())
    tuned.generator.load_state_dict(plain.generator.state_dict())
    images, inputs = pytorch.rand(16, 3, 32, 32) * 2 - 1, draw(16, 8)

    for _ in range(2):
        expected, losses = plain.step(images, *inputs), tuned.step(images, *inputs)

    for name, loss in losses.items():
        assert loss == pytest.approx(expected[name], rel=near), name


@pytest.fixture
def control_config(benchmarks, image_folder, tmp_path, pytorch):
    """Makes the configuration of a control of six steps an epoch."""
    from control import ControlConfig

    def config(name: str, **changes) -> ControlConfig:
        sizes = {"epochs": 2, "batch_size": 8, "base_filters": 2, "latent_dim": 4}
        places = {"run_dir": name, "saved_model_dir": f"{name}-export", "cache_dir": "cache"}
        places = {flag: str(tmp_path / place) for flag, place in places.items()}
        return ControlConfig(dataset=str(image_folder), **sizes, **places, **changes)

    return config


def assert_same(first, second) -> None:
    """Compares nested states of PyTorch bit by bit."""
    if isinstance(first, dict):
        first, second = [sorted(each.items(), key=str) for each in (first, second)]
    if isinstance(first, list | tuple):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif hasattr(first, "numpy"):
        assert first.numpy().tobytes() == second.numpy().tobytes()
    else:
        assert first == second


def test_a_stopped_control_continues_exactly_and_is_measured_as_it_is(
    benchmarks, control_config, pytorch, monkeypatch, tmp_path
):
    import control
    import peer
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from ad_keras import data
    from ad_keras.errors import Interrupted
    from ad_keras.measures.probe import linear_probe, ridge_probe

    whole, stopped = control_config("whole"), control_config("stopped")
    with monkeypatch.context() as patch:  # to measure once is enough
        patch.setattr("ad_keras.evaluation.runs.evaluate", lambda flags: None)
        control.train(whole)
    draw, steps = peer.draw, []

    def interrupt(*sizes):
        steps.append(len(steps))
        if len(steps) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(*sizes)

    monkeypatch.setattr(peer, "draw", interrupt)
    with pytest.raises(Interrupted, match="SIGINT at step 9: the state is saved"):
        control.train(stopped)
    control.train(stopped)
    assert len(steps) == 12

    states = [pytorch.load(tmp_path / name / "state.pt") for name in ("whole", "stopped")]
    assert_same(*states)
    histories = [(tmp_path / name / "history.json").read_text() for name in ("whole", "stopped")]
    assert histories[0] == histories[1]

    # The same accuracies from the saved weights, through PyTorch.
    trained = peer.Peer(control.CONTROL_FORM, 4, 2)
    trained.restore(states[1]["peer"])
    sets = [data.load(whole.dataset, split) for split in data.SPLITS]
    latents, labels = [], []
    for part in sets:
        images = pytorch.tensor(part.images).permute(0, 3, 1, 2) / 127.5 - 1
        with pytorch.no_grad():
            encoded = trained.encoder.latent(trained.encoder.trunk(images))
        latents.append(encoded[:, :, 0, 0].numpy())
        labels.append(part.labels)
    scaler = StandardScaler().fit(latents[0])
    logistic = LogisticRegression(tol=1e-6, max_iter=10_000)
    logistic.fit(scaler.transform(latents[0]), labels[0])
    parts = (latents[0], labels[0], latents[1], labels[1])
    expected = {
        "probe": np.mean([linear_probe(*parts, seed=seed).accuracy for seed in range(5)]),
        "ridge_probe": ridge_probe(*parts).accuracy,
        "logistic_probe": logistic.score(scaler.transform(latents[1]), labels[1]),
    }
    results = json.loads((tmp_path / "stopped" / "results.json").read_text())
    assert (results["epochs"], results["step"], results["condition"]) == (2, 12, "full")
    for name, accuracy in expected.items():
        found = results["metrics"][name]["values"]["trained"]
        assert found.get("mean_of_seeds", found["accuracy"]) == pytest.approx(accuracy), name
    order = np.random.default_rng([0, 48]).permutation(48)
    fitted, held_out = np.sort(order[5:]), np.sort(order[:5])
    parts = (latents[0][fitted], labels[0][fitted], latents[0][held_out], labels[0][held_out])
    history = json.loads(histories[0])
    assert list(history) == ["0", "1", "2"]
    for name, probe in (("probe", linear_probe), ("ridge_probe", ridge_probe)):
        assert history["2"][f"{name}/validation_accuracy"] == probe(*parts).accuracy

    # Beside itself as a run of ours, the table has every accuracy twice.
    table = control.side_by_side(tmp_path / "stopped", tmp_path / "stopped")
    assert "Other settings than the control's: none." in table
    lines = [line.split("|")[1:-1] for line in table.splitlines()[5:]]
    assert [line[0].strip()[:7] for line in lines] == ["epoch 0", "epoch 1", "epoch 2", "epoch 2"]
    for line in lines:
        assert line[1::2] == line[2::2]
    assert float(lines[2][3]) == round(100 * history["2"]["ridge_probe/validation_accuracy"], 1)
    assert float(lines[3][1]) == round(100 * expected["probe"], 1)

    results = json.loads((tmp_path / "stopped" / "results.json").read_text())
    (tmp_path / "other").mkdir()
    for name in ("flags.json", "history.json"):
        shutil.copy(tmp_path / "stopped" / name, tmp_path / "other")
    told = json.dumps({**results, "dataset": "svhn"})  # measured on other images
    (tmp_path / "other" / "results.json").write_text(told)
    last = control.side_by_side(tmp_path / "other", tmp_path / "stopped").splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[2::2]] == ["", "", "", ""]

    # Nothing is trained or measured again, and settings may not change.
    before = (tmp_path / "stopped" / "results.json").stat().st_mtime_ns
    control.train(stopped)
    assert (tmp_path / "stopped" / "results.json").stat().st_mtime_ns == before
    assert len(steps) == 12
    with pytest.raises(ValueError, match="holds a control with other flags: --seed was 0 and is 1"):
        control.train(dataclasses.replace(stopped, seed=1))
    with pytest.raises(ValueError, match="is at step 12, beyond --epochs=1"):
        control.train(dataclasses.replace(stopped, epochs=1))
    assert json.loads((tmp_path / "stopped" / "flags.json").read_text())["epochs"] == 2
    (tmp_path / "stopped" / "state.pt").write_bytes(b"half")
    with pytest.raises(RuntimeError, match=r"state.pt is damaged .*start again with --overwrite"):
        control.train(stopped)


def test_a_control_leaves_a_run_of_ours_alone(benchmarks, control_config, finished):
    import control

    folder = finished[1].run_folder
    for overwrite in (False, True):
        config = dataclasses.replace(
            control_config("other"), run_dir=str(folder), overwrite=overwrite
        )
        with pytest.raises(ValueError, match="holds a run of ad_keras: choose another --run_dir"):
            control.train(config)
