"""One process of a cluster, for all tests of clusters; test_cluster.py runs it.

It runs the training command, trains several models from given states, and runs the command again:
python cluster_member.py <strategy> <logical CPU devices> <names of models>
<states.npz> <results.npz> <lists of flags as JSON>
"""

import json
import sys

from ad_keras import cli
from ad_keras import train as program
from ad_keras.runs.config import Config

BATCH = 12
PARTS = (("new", 0, 1), ("warm", 100, 108))  # names, first and last steps
# All that replicas must agree about: noise and mixtures in every phase, masks per mini-batch and
# per image, losses that compare the images of a mini-batch, memories of one and of several.
SETTINGS = {
    "full": {"wake_noise_variance": 0.5, "nrem_memories": "mixed"},
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


def new_model(name: str, cluster):
    from ad_keras.runs.build import build_model

    settings = {"base_filters": 4, "latent_dim": 8, "batch_size": BATCH, **SETTINGS[name]}
    with cluster.strategy.scope():
        return build_model(Config(**settings))


def variables(model) -> list:
    """All that training depends on, in a fixed order."""
    optimizers = (model.encoder_optimizer, model.generator_optimizer)
    return model.weights + [variable for one in optimizers for variable in one.variables]


def fit(model, cluster, first: int, last: int) -> dict[str, float]:
    """Trains from one step to another; returns the means of the losses."""
    import numpy as np

    from ad_keras import data

    images = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8)
    batches = cluster.batches(
        lambda parts, of: data.batches(images, BATCH, 0, first, last, parts, of)
    )
    history = model.fit(batches, verbose=0, shuffle=False, steps_per_epoch=last - first).history
    return {name: values[-1] for name, values in history.items()}


def outcome(prefix: str, model, losses: dict[str, float]) -> dict:
    """Weights, memory and losses. Adam's moments may be nothing but rounding at first."""
    found = {f"{prefix}/{n}": weight.numpy() for n, weight in enumerate(model.weights)}
    return found | {f"{prefix}/{loss}": value for loss, value in losses.items()}


def run_command(flags: list[str]) -> None:
    sys.argv = ["train", *flags]
    cli.run(program.main)


def main(strategy: str, devices: str, names: str, states: str, results: str, commands: str) -> None:
    with cli.quiet_start():
        import numpy as np
        import tensorflow as tf

        from ad_keras.compute.cluster import connect

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * int(devices),
        )
        cluster = connect(strategy)
    first, *others = json.loads(commands)
    run_command(first)
    tf.get_logger().setLevel("ERROR")  # it takes several trainings of a process for a mistake
    found = {"replicas": cluster.replicas, "refusal": ""}
    with np.load(states) as given:
        for name in names.split(","):
            model = new_model(name, cluster)
            for beginning, begin, end in PARTS:
                for number, variable in enumerate(variables(model)):
                    variable.assign(given[f"{beginning}/{name}/{number}"])
                found |= outcome(f"{beginning}/{name}", model, fit(model, cluster, begin, end))
    try:
        with cluster.strategy.scope():
            model.compile(steps_per_execution=2)
    except ValueError as error:
        found["refusal"] = str(error)
    np.savez(results, **found)
    cluster.wait()
    for flags in others:
        run_command(flags)


if __name__ == "__main__":
    main(*sys.argv[1:])
