"""Results of runs as they could be, in which every figure has a value of its own."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest

from ad_keras.runs.config import CONDITIONS, Config

SHARES = [step / 10 for step in range(11)]
READOUTS = ["probe", "logistic_probe", "ridge_probe"]
DECAYS = ["tile_1", "tile_2", "tile_4", "tile_8"]  # of the accuracy above chance
FIDS = ["nrem_early", "nrem_late", "rem_early", "rem_late"]
RATIOS = ["intra_inter_ratio", "occluded_inter_ratio"]
EPOCHS = ["0", "1", "50", "100"]  # with a probe of held-out images

# What the runs of a condition say, before the seeds' scatter.
MADE = pd.read_csv(
    io.StringIO("""
full            .582 .651 .641 1.11 1.23 1.37 1.51  90  41 110  53 .61 .41 .302 .401 .552 .557
no_memory_mix   .531 .603 .592 1.12 1.24 1.38 1.52  91  42 111  54 .66 .43 .303 .391 .511 nan
no_rem          .461 .523 .512 1.13 1.25 1.39 1.53  92  72 150 131 .83 .44 .304 .381 .441 nan
no_nrem         .577 .646 .637 2.14 2.26 2.41 2.64  93  44 113  56 .62 .65 .305 .402 .546 .497
wake_only       .423 .493 .482 2.15 2.27 2.42 2.65  94  75 151 132 .85 .66 .306 .371 .412 .361
rem_noise_only  .571 .631 .622 1.14 1.28 1.43 1.54  95  46 115  58 .63 .45 .307 .403 .541 nan
rem_mix_only    .587 .654 .644 1.15 1.29 1.44 1.55  96  47 116  59 .64 .46 .308 .404 .556 nan
rem_before_nrem .569 .632 .623 1.16 1.31 1.45 1.56  97  48 117  61 .67 .47 .309 .406 .542 nan
nrem_mixed      .574 .633 .624 1.71 1.82 1.93 2.01  98  49 118  62 .68 .48 .311 .407 .543 nan
"""),
    sep=r"\s+",
    names=[*READOUTS, *DECAYS, *FIDS, *RATIOS, *EPOCHS],
)
UNTRAINED = dict(zip(READOUTS + RATIOS, (0.322, 0.333, 0.344, 0.88, 0.79), strict=True))
PIXELS = {"probe": 0.361, "ridge_probe": 0.343}


def results_of(condition: str, seed: int) -> dict:
    """What `results.json` of a run after 50 epochs could say, of ten classes."""
    made = MADE.loc[condition]
    scatter = 0.003 * (seed - 1.5)
    metrics = {
        name: {
            "trained": {"accuracy": made[name] + 0.9 * scatter},
            "untrained": {"accuracy": UNTRAINED[name] + 0.5 * scatter},
        }
        for name in READOUTS
    }
    for name, accuracy in PIXELS.items():
        metrics[name]["pixels"] = {"accuracy": accuracy}
    # One seed of the probe is not the mean over its seeds.
    probe = made.probe + scatter
    metrics["probe"]["trained"] |= {"mean_of_seeds": probe, "confusion": [[10.0] * 10] * 10}
    metrics["probe"]["trained"]["accuracy"] -= 0.02
    metrics["probe"]["untrained"] = {"mean_of_seeds": UNTRAINED["probe"] + 0.5 * scatter}
    metrics["occlusion"] = {
        tile: [0.1 + (probe - 0.1) * (1 - share) ** (made[tile] + scatter) for share in SHARES]
        for tile in DECAYS
    }
    fids = zip(FIDS, (3.0, 2.0, 2.5, 1.5), strict=True)
    fids = {name: made[name] * (1 + factor * scatter) for name, factor in fids}
    metrics["fid"] = {
        time: {kind: fids[f"{kind}_{time}"] for kind in ("nrem", "rem")}
        for time in ("early", "late")
    } | {"test_images": 7.25}
    metrics["distances"] = {
        "trained": {name: made[name] + scatter for name in RATIOS},
        "untrained": {name: UNTRAINED[name] + 0.2 * scatter for name in RATIOS},
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
        "metrics": {
            name: {"protocol": {"probabilities": SHARES, "early_epoch": 2}, "values": values}
            for name, values in metrics.items()
        },
    }


def history_of(condition: str, seed: int) -> dict:
    """What `history.json` of a run could say."""
    scatter = 0.004 * (seed - 1.5)
    history = {
        epoch: {
            "probe/validation_accuracy": value + scatter * (1 + 0.1 * place),
            "ridge_probe/validation_accuracy": value + 0.08,
        }
        for place, (epoch, value) in enumerate(MADE.loc[condition, EPOCHS].dropna().items())
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

    def save(folder: Path, conditions=tuple(MADE.index), seeds=(0, 1, 2, 3), **changes) -> Path:
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
