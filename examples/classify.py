"""Uses an exported encoder: classifies images by a linear layer on it, then fine-tunes it.

python examples/classify.py --encoder=saved_models/synth_digits --dataset=synth_digits
"""

import keras
from absl import app, flags

from ad_keras import load_encoder
from ad_keras.data import load

ENCODER = flags.DEFINE_string("encoder", "saved_models/synth_digits", "folder of an export")
DATASET = flags.DEFINE_string("dataset", "synth_digits", "data set with labels")
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared TensorFlow Datasets")
EPOCHS = flags.DEFINE_integer("epochs", 5, "epochs of each of the two trainings")


def main(_) -> None:
    """Trains both and prints their accuracies on the test set."""
    encoder = load_encoder(ENCODER.value)
    image_shape = encoder.inputs[0].shape[1:]
    train, test = (
        load(DATASET.value, split, data_dir=DATA_DIR.value, image_size=image_shape[0])
        for split in ("train", "test")
    )
    logits = keras.layers.Dense(len(train.class_names))(encoder.output["latent"])
    classifier = keras.Model(encoder.input, logits)

    def accuracy_after_training(learning_rate: float) -> float:
        classifier.compile(
            keras.optimizers.Adam(learning_rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        classifier.fit(train.images, train.labels, epochs=EPOCHS.value, verbose=0)
        return classifier.evaluate(test.images, test.labels, verbose=0, return_dict=True)[
            "accuracy"
        ]

    encoder.trainable = False
    print(f"linear layer on the frozen encoder: {accuracy_after_training(1e-3):.1%}")
    encoder.trainable = True
    print(f"fine-tuned with the encoder: {accuracy_after_training(2e-4):.1%}")


if __name__ == "__main__":
    app.run(main)
