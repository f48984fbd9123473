"""Trains all conditions from given states, as one process of a cluster; test_cluster.py runs it.

python cluster_member.py <strategy> <logical CPU devices> <states.npz> <results.npz>
"""

import sys

import numpy as np
import tensorflow as tf

from ad_keras import data
from ad_keras.compute.cluster import Cluster, connect
from ad_keras.runs.build import build_model
from ad_keras.runs.config import CONDITIONS, Config

WARM_UP = 100  # steps
COMPARED = 20
BATCH = 12
PARTS = (("new", 0, 1), ("warm", WARM_UP, WARM_UP + COMPARED))
SETTINGS = {
    **CONDITIONS,
    "other_parts": {
        "network": "residual",
        "mask_per": "image",
        "perturbation": ("crop", "colour", "occlusion"),
        "recovery": "contrast",
        "hippocampus": "reservoir",
        "hippocampus_capacity": 30,
        "mixing": "component",
        "adversary": "hinge",
        "gradient_penalty_weight": 0.5,
        "average_weights": 0.9,
        "glimpse": ("crop", "noise"),
        "agreement": "vicreg",
        "agreement_weight": 0.04,
    },
}


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8)


def new_model(name: str, cluster: Cluster):
    settings = {"base_filters": 4, "latent_dim": 8, "batch_size": BATCH, **SETTINGS[name]}
    with cluster.strategy.scope():
        return build_model(Config(**settings))


def variables(model) -> list:
    """All that training depends on, in a fixed order."""
    optimizers = (model.encoder_optimizer, model.generator_optimizer)
    return model.weights + [variable for one in optimizers for variable in one.variables]


def state(model) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables(model)]


def restore(model, values: list[np.ndarray]) -> None:
    for variable, value in zip(variables(model), values, strict=True):
        variable.assign(value)


def fit(model, cluster: Cluster, first: int, last: int) -> dict[str, float]:
    """Trains from one step to another; returns the means of the losses."""
    batches = cluster.batches(
        lambda parts, of: data.batches(images(), BATCH, 0, first, last, parts, of)
    )
    history = model.fit(batches, verbose=0, shuffle=False, steps_per_epoch=last - first).history
    return {name: values[-1] for name, values in history.items()}


def outcome(prefix: str, model, losses: dict[str, float]) -> dict[str, np.ndarray | float]:
    """Weights, memory and losses. Adam's moments may be nothing but rounding at first."""
    found = {f"{prefix}/{n}": weight.numpy() for n, weight in enumerate(model.weights)}
    return found | {f"{prefix}/{loss}": value for loss, value in losses.items()}


def main(strategy: str, devices: str, states: str, results: str) -> None:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * int(devices),
    )
    cluster = connect(strategy)
    given, found = np.load(states), {}
    for name in SETTINGS:
        model = new_model(name, cluster)
        count = len(variables(model))
        for start, first, last in PARTS:
            restore(model, [given[f"{start}/{name}/{number}"] for number in range(count)])
            losses = fit(model, cluster, first, last)
            found |= outcome(f"{start}/{name}", model, losses)
    np.savez(results, replicas=cluster.replicas, **found)
    cluster.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
