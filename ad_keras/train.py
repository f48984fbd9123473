"""`python -m ad_keras.train`: trains PAD, shows its dreams, exports its encoder."""

import os
from collections.abc import Sequence

from ad_keras.cli import parse, quiet_start, run
from ad_keras.data import resolve
from ad_keras.runs.config import Config


def main(argv: Sequence[str]) -> None:
    """Trains as a command line says and prints what came out."""
    config = parse(Config, argv, "python -m ad_keras.train")
    resolve(config.dataset)
    if config.deterministic:
        # TensorFlow's input pipelines complain, alarmingly and wrongly, when they are rewritten.
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with quiet_start():
        from ad_keras.compute.cluster import connect
        from ad_keras.runs.training import train

        connect(config.strategy)
    result = train(config)
    if result is None:  # a worker, whose chief tells the rest
        return
    key = "probe/validation_accuracy"
    probed = [int(epoch) for epoch, entry in result.history.items() if key in entry]
    print()
    if probed:
        untrained = [0] if 0 in probed[:-1] else []  # unless that entry is lost
        last = max(probed)
        when = "before and after" if untrained else "after"
        epochs = f"{last} epoch{'s' * (last != 1)}"
        print(f"Accuracy on held-out training images, {when} {epochs}")
        for name, title in (("probe", "(the paper's, SGD)"), ("ridge_probe", "(ridge)")):
            entries = (result.history[str(epoch)] for epoch in (*untrained, last))
            scores = (f"{entry[f'{name}/validation_accuracy']:>6.1%}" for entry in entries)
            print(f"  linear probe {title:<20}{' '.join(scores)}")
    else:
        print(
            "The images have no labels of several classes: the linear probe and other scores by "
            "class need them."
        )
    print(f"Encoder and generator: {result.export_folder}")
    if config.dream_every:
        print(f"Dreams: {result.run_folder / 'figures' / 'dreams.png'}")
    print(f"Watch: tensorboard --logdir={result.run_folder / 'logs'}")


if __name__ == "__main__":
    run(main)
