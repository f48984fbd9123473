"""Results of runs as they could be, in which every figure has a value of its own."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from ad_keras.runs.config import CONDITIONS, Config

SHARES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


class Made(NamedTuple):
    """What the runs of a condition say, before the seeds' scatter."""

    probe: float
    logistic: float
    ridge: float
    decay: tuple[float, float, float, float]  # of the accuracy above chance, tiles of 1, 2, 4, 8
    fid: tuple[float, float, float, float]  # NREM early and late, REM early and late
    intra: float
    occluded: float
    held_out: dict[int, float]


MADE = {
    "full": Made(
        *(0.582, 0.651, 0.641, (1.11, 1.23, 1.37, 1.51), (90.0, 41.0, 110.0, 53.0), 0.61, 0.41),
        {0: 0.302, 1: 0.401, 50: 0.552, 100: 0.557},
    ),
    "no_memory_mix": Made(
        *(0.531, 0.603, 0.592, (1.12, 1.24, 1.38, 1.52), (91.0, 42.0, 111.0, 54.0), 0.66, 0.43),
        {0: 0.303, 1: 0.391, 50: 0.511},
    ),
    "no_rem": Made(
        *(0.461, 0.523, 0.512, (1.13, 1.25, 1.39, 1.53), (92.0, 72.0, 150.0, 131.0), 0.83, 0.44),
        {0: 0.304, 1: 0.381, 50: 0.441},
    ),
    "no_nrem": Made(
        *(0.577, 0.646, 0.637, (2.14, 2.26, 2.41, 2.64), (93.0, 44.0, 113.0, 56.0), 0.62, 0.65),
        {0: 0.305, 1: 0.402, 50: 0.546, 100: 0.497},
    ),
    "wake_only": Made(
        *(0.423, 0.493, 0.482, (2.15, 2.27, 2.42, 2.65), (94.0, 75.0, 151.0, 132.0), 0.85, 0.66),
        {0: 0.306, 1: 0.371, 50: 0.412, 100: 0.361},
    ),
    "rem_noise_only": Made(
        *(0.571, 0.631, 0.622, (1.14, 1.28, 1.43, 1.54), (95.0, 46.0, 115.0, 58.0), 0.63, 0.45),
        {0: 0.307, 1: 0.403, 50: 0.541},
    ),
    "rem_mix_only": Made(
        *(0.587, 0.654, 0.644, (1.15, 1.29, 1.44, 1.55), (96.0, 47.0, 116.0, 59.0), 0.64, 0.46),
        {0: 0.308, 1: 0.404, 50: 0.556},
    ),
    "rem_before_nrem": Made(
        *(0.569, 0.632, 0.623, (1.16, 1.31, 1.45, 1.56), (97.0, 48.0, 117.0, 61.0), 0.67, 0.47),
        {0: 0.309, 1: 0.406, 50: 0.542},
    ),
    "nrem_mixed": Made(
        *(0.574, 0.633, 0.624, (1.71, 1.82, 1.93, 2.01), (98.0, 49.0, 118.0, 62.0), 0.68, 0.48),
        {0: 0.311, 1: 0.407, 50: 0.543},
    ),
}
UNTRAINED = (0.322, 0.333, 0.344, 0.88, 0.79)  # paper's probe, logistic, ridge, both ratios
PIXELS = {"probe": 0.361, "ridge_probe": 0.343}


def results_of(condition: str, seed: int) -> dict:
    """What `results.json` of a run after 50 epochs could say, of ten classes."""
    made = MADE[condition]
    scatter = 0.003 * (seed - 1.5)
    probe = made.probe + scatter
    readouts = ("probe", "logistic_probe", "ridge_probe")
    metrics = {}
    for place, name in enumerate(readouts):
        trained = {"accuracy": made[place] + 0.9 * scatter}
        untrained = {"accuracy": UNTRAINED[place] + 0.5 * scatter}
        if name == "probe":  # one seed of the probe is not the mean over its seeds
            trained |= {"mean_of_seeds": probe, "confusion": [[10.0] * 10] * 10}
            trained["accuracy"] -= 0.02
            untrained["mean_of_seeds"] = untrained.pop("accuracy")
        values = {"trained": trained, "untrained": untrained}
        values |= {"pixels": {"accuracy": PIXELS[name]}} if name in PIXELS else {}
        metrics[name] = {"values": values}
    metrics["occlusion"] = {
        "protocol": {"probabilities": SHARES},
        "values": {
            f"tile_{tile}": [
                0.1 + (probe - 0.1) * (1 - share) ** (decay + scatter) for share in SHARES
            ]
            for tile, decay in zip((1, 2, 4, 8), made.decay, strict=True)
        },
    }
    early_nrem, late_nrem, early_rem, late_rem = (
        value * (1 + factor * scatter)
        for value, factor in zip(made.fid, (3.0, 2.0, 2.5, 1.5), strict=True)
    )
    metrics["fid"] = {
        "values": {
            "early": {"nrem": early_nrem, "rem": early_rem},
            "late": {"nrem": late_nrem, "rem": late_rem},
            "test_images": 7.25,
        }
    }
    metrics["distances"] = {
        "values": {
            "trained": {
                "intra_inter_ratio": made.intra + scatter,
                "occluded_inter_ratio": made.occluded + 1.1 * scatter,
            },
            "untrained": {
                "intra_inter_ratio": UNTRAINED[3] + 0.2 * scatter,
                "occluded_inter_ratio": UNTRAINED[4] + 0.3 * scatter,
            },
        }
    }
    return {
        "name": f"{condition}-seed{seed}",
        "dataset": "cifar10",
        "trained_on": "cifar10",
        "condition": condition,
        "class_names": [f"class {number}" for number in range(10)],
        "epochs": 50,
        "training_seed": seed,
        "features": {"name": "a classifier's", "test_accuracy": 0.9},
        "versions": {"ad_keras": "0.1.0"},
        "metrics": {name: {"protocol": {}} | entry for name, entry in metrics.items()},
    }


def history_of(condition: str, seed: int) -> dict:
    """What `history.json` of a run could say."""
    scatter = 0.004 * (seed - 1.5)
    history = {
        str(epoch): {
            "probe/validation_accuracy": value + scatter * (1 + 0.1 * place),
            "ridge_probe/validation_accuracy": value + 0.08,
        }
        for place, (epoch, value) in enumerate(MADE[condition].held_out.items())
    }
    for epoch, loss in (("1", 0.31), ("50", 0.12)):
        history[epoch]["wake/reconstruction_loss"] = loss * (1 + scatter)
    return history


@pytest.fixture(scope="session")
def made_results():
    return results_of


@pytest.fixture(scope="session")
def made_history():
    return history_of


@pytest.fixture(scope="session")
def save_runs():
    """Writes runs into folders as the repository keeps them: no checkpoints, no pictures."""

    def save(folder: Path, conditions=tuple(MADE), seeds=(0, 1, 2, 3), **changes) -> Path:
        for condition in conditions:
            for seed in seeds:
                run = folder / f"{condition}-seed{seed}"
                run.mkdir(parents=True)
                settings = {"dataset": "cifar10", "seed": seed, **CONDITIONS[condition], **changes}
                (run / "flags.json").write_text(Config(**settings).to_json())
                (run / "history.json").write_text(json.dumps(history_of(condition, seed)))
                (run / "results.json").write_text(json.dumps(results_of(condition, seed)))
        return folder

    return save
