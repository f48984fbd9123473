"""Uses an exported encoder: classifies images by a linear layer on it, then fine-tunes it.

python examples/classify.py --export=saved_models/synth_digits --dataset=synth_digits
"""

import dataclasses
from collections.abc import Sequence

from ad_keras.cli import flag, parse, quiet_start, run
from ad_keras.errors import UsageError


@dataclasses.dataclass(frozen=True)
class ClassifyConfig:
    """Trains a linear layer on a frozen encoder, then both, and scores them on test images."""

    export: str = flag("saved_models/synth_digits", "Flags", "folder of an export")
    dataset: str = flag("synth_digits", "Flags", "data set with labels")
    data_dir: str | None = flag(None, "Flags", "folder of prepared TensorFlow Datasets")
    epochs: int = flag(5, "Flags", "epochs of each of the two trainings")


def main(argv: Sequence[str]) -> None:
    """Trains both and prints their accuracies on the test set.

    Args:
        argv: the program's name and its flags.
    """
    config = parse(ClassifyConfig, argv, "python examples/classify.py")
    with quiet_start():
        import keras

        from ad_keras import load_encoder
        from ad_keras.data import load

    keras.utils.set_random_seed(0)
    encoder = load_encoder(config.export)
    image_size = encoder.inputs[0].shape[1]
    train, test = (
        load(config.dataset, split, data_dir=config.data_dir, image_size=image_size)
        for split in ("train", "test")
    )
    if train.labels is None:
        raise UsageError(f"--dataset={config.dataset} has no labels: sort it into class folders.")
    logits = keras.layers.Dense(len(train.class_names))(encoder.output["latent"])
    classifier = keras.Model(encoder.input, logits)

    def accuracy_after_training(learning_rate: float) -> float:
        classifier.compile(
            keras.optimizers.Adam(learning_rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        classifier.fit(train.images, train.labels, epochs=config.epochs, verbose=2)
        return classifier.evaluate(test.images, test.labels, verbose=0, return_dict=True)[
            "accuracy"
        ]

    encoder.trainable = False
    print(f"linear layer on the frozen encoder: {accuracy_after_training(1e-3):.1%}")
    encoder.trainable = True
    print(f"fine-tuned with the encoder: {accuracy_after_training(2e-4):.1%}")


if __name__ == "__main__":
    run(main)
