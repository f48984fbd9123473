"""What Deperrois et al. (eLife 2022;11:e76384) published as numbers, and of which settings."""

import dataclasses
import math

import numpy as np

from ad_keras.runs.config import CONDITIONS, RUN_ONLY, Config

EPOCHS, SEEDS = 50, 4

LINEAR_SEPARABILITY = {
    "cifar10": {
        "full": (0.5825, 0.0070),
        "no_memory_mix": (0.5387, 0.0085),
        "no_rem": (0.4600, 0.0043),
        "no_nrem": (0.5800, 0.0034),
        "wake_only": (0.4225, 0.0054),
    },
    "svhn": {
        "full": (0.7892, 0.0040),
        "no_memory_mix": (0.6087, 0.0507),
        "no_rem": (0.4230, 0.0151),
        "no_nrem": (0.7325, 0.0022),
        "wake_only": (0.4193, 0.0065),
    },
}
"""Table 1, by data set and condition: the paper's linear probe after 50 epochs, mean accuracy on
the test images and its standard error over 4 seeds."""

_NO_SETTINGS = RUN_ONLY - {"epochs"} | {"seed", "precision"}


def sample(dataset: str, condition: str) -> np.ndarray | None:
    """Four accuracies that have the published mean and standard error, or None.

    Tests that rest on mean, standard error and number alone, as Welch's does, say of these what
    they say of the paper's own four.
    """
    found = LINEAR_SEPARABILITY.get(dataset, {}).get(condition)
    if found is None:
        return None
    mean, sem = found
    return mean + sem * math.sqrt(SEEDS - 1) * np.array([-1.0, -1.0, 1.0, 1.0])


def differences(config: Config, epochs: float | None = None) -> list[str]:
    """What of a run's settings is not the paper's; precision is left to the reader.

    Args:
        config: of the run.
        epochs: that it was measured after; None for all that it is to be trained for.

    Returns:
        Short texts such as `epochs 20 (the paper: 50)`; empty if a published number may stand
        beside the run's.
    """
    found = []
    if config.dataset not in LINEAR_SEPARABILITY:
        found.append(f"dataset {config.dataset} (the paper: {', '.join(LINEAR_SEPARABILITY)})")
    paper = Config(dataset=config.dataset, epochs=EPOCHS, **CONDITIONS.get(config.condition, {}))
    mine = dataclasses.asdict(config) | {"epochs": config.epochs if epochs is None else epochs}
    for name, published in dataclasses.asdict(paper).items():
        if name not in _NO_SETTINGS and mine[name] != published:
            found.append(f"{name} {mine[name]} (the paper: {published})")
    return found
