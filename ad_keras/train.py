"""`python -m ad_keras.train`: trains PAD, shows its dreams, exports its encoder."""

from collections.abc import Sequence

from ad_keras.cli import parse, quiet_start, run
from ad_keras.config import Config
from ad_keras.data import resolve


def main(argv: Sequence[str]) -> None:
    """Trains as the command line says and prints what came out.

    Args:
        argv: the program's name and its flags.
    """
    config = parse(Config, argv, "python -m ad_keras.train")
    resolve(config.dataset)
    with quiet_start():
        from ad_keras.training import train
    result = train(config)
    scores = {
        int(epoch): entry["probe/validation_accuracy"]
        for epoch, entry in result.history.items()
        if "probe/validation_accuracy" in entry
    }
    print()
    if scores:
        last = max(scores)
        print(
            f"Linear probe on held-out training images: {scores[0]:.1%} before training, "
            f"{scores[last]:.1%} after {last} epochs"
        )
    else:
        print("The images have no labels: linear probe and the other scores by class need them.")
    print(f"Encoder and generator: {result.export_folder}")
    if config.dream_every:
        print(f"Dreams: {result.run_folder / 'figures' / 'dreams.png'}")
    print(f"Watch: tensorboard --logdir={result.run_folder / 'logs'}")


if __name__ == "__main__":
    run(main)
