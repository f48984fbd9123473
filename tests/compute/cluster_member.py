"""One process of a cluster; test_cluster.py runs it.

It continues a run, trains the run's model from given states, and begins another run with it:
python cluster_member.py <strategy> <logical CPU devices> <states.npz> <results.npz>
<lists of flags as JSON>
"""

import functools
import json
import sys

from ad_keras import cli
from ad_keras import train as program
from ad_keras.runs.config import Config

BEGINNINGS = {"new": (0, 1), "warm": (100, 108)}  # first and last steps


def variables(model) -> list:
    """All that training depends on, in a fixed order."""
    optimizers = (model.encoder_optimizer, model.generator_optimizer)
    return model.weights + [variable for one in optimizers for variable in one.variables]


def fit(model, cluster, first: int, last: int) -> dict:
    """Trains from one step to another: weights, memory and means of the losses.

    Adam's moments are left out: they may be nothing but rounding at first.
    """
    import numpy as np

    from ad_keras import data

    images = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8)
    batches = cluster.batches(lambda parts, of: data.batches(images, 8, 0, first, last, parts, of))
    history = model.fit(batches, verbose=0, shuffle=False, steps_per_epoch=last - first).history
    weights = {str(number): weight.numpy() for number, weight in enumerate(model.weights)}
    return weights | {name: values[-1] for name, values in history.items()}


def run_command(flags: list[str]) -> None:
    sys.argv = ["train", *flags]
    cli.run(program.main)


def main(strategy: str, devices: str, states: str, results: str, commands: str) -> None:
    with cli.quiet_start():
        import numpy as np
        import tensorflow as tf

        from ad_keras.compute import replicas
        from ad_keras.compute.cluster import connect
        from ad_keras.runs import training

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * int(devices),
        )
        cluster = connect(strategy)
    first, *others = json.loads(commands)
    with cluster.strategy.scope():
        model = training.build_model(cli.parse(Config, ["train", *first], "train"))
    # The model is traced once for all that happens here.
    training.train = functools.partial(training.train, build=lambda _: model)
    run_command(first)
    tf.get_logger().setLevel("ERROR")  # it takes several trainings of a process for a mistake
    found = {"replicas": cluster.replicas}
    sums = cluster.strategy.run(lambda: replicas.summed([tf.ones([]), tf.ones([2])]))
    found["sums"] = cluster.strategy.experimental_local_results(sums[1])[0]
    with np.load(states) as given:
        for beginning in ("warm", "new"):
            for number, variable in enumerate(variables(model)):
                variable.assign(given[f"{beginning}/{number}"])
            trained = fit(model, cluster, *BEGINNINGS[beginning])
            found |= {f"{beginning}/{name}": value for name, value in trained.items()}
        for number, variable in enumerate(variables(model)):
            variable.assign(given[f"new/{number}"])
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
