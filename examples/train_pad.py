"""Perturbed and adversarial dreaming from the first import to a readout, in plain Keras.

    python examples/train_pad.py

Two minutes on two CPU cores. It prints how well a linear classifier tells the digits from the
latents, before and after the network has slept, and writes its dreams to `dreams.png`.
"""

import keras
import numpy as np
import tensorflow as tf

from ad_keras import PAD, Hippocampus, Mixing, Occlusion, build_encoder, build_generator
from ad_keras.data import ImageSet, load
from ad_keras.data.pixels import as_signed, to_pixels
from ad_keras.measures.latents import encode
from ad_keras.measures.probe import ridge_probe

BATCH = 32


def readout(encoder: keras.Model, seen: ImageSet, unseen: ImageSet) -> float:
    """Accuracy of a linear classifier of the latents on images that it was not fitted on."""
    fitted = encode(encoder, seen.images), seen.labels
    scored = encode(encoder, unseen.images), unseen.labels
    return ridge_probe(*fitted, *scored, num_classes=10).accuracy


def main(epochs: int = 5, dataset: str = "synth_digits", filters: int = 32) -> PAD:
    """Trains, tells both accuracies, draws dreams, and returns the model."""
    keras.utils.set_random_seed(0)
    # Images are uint8; labels serve the readout only. Dreaming learns without them.
    train, test = load(dataset, "train"), load(dataset, "test")

    # The encoder perceives: images to latents, with a head that says "external". The generator
    # imagines: latents to images.
    encoder = build_encoder(base_filters=filters)
    generator = build_generator(base_filters=filters)

    # Three states follow each other on every mini-batch. Wake stores what it perceived in the
    # hippocampus. NREM replays it and hides a part. REM dreams of mixtures of memories and noise.
    model = PAD(
        encoder,
        generator,
        hippocampus=Hippocampus(BATCH),
        mixing=Mixing(recent=0.5, memories=0.5),
        perturbation=Occlusion(probability_range=(0, 1), tile_range=(1, 8)),
    )
    model.compile()  # Adam as in the paper; pass optimizers of your own to change it

    before = readout(encoder, train, test)
    images = tf.data.Dataset.from_tensor_slices(train.images).shuffle(len(train), seed=0)
    model.fit(images.batch(BATCH, drop_remainder=True), epochs=epochs, verbose=2, shuffle=False)
    after = readout(encoder, train, test)
    print(f"linear readout on test images: {before:.1%} before, {after:.1%} after {epochs} epochs")

    # Two memories each, and the dream between them.
    perceived = encoder(as_signed(test.images[:16]))["latent"]
    dreams = to_pixels(generator(model.mixing(perceived, perceived[::-1], [0, 0]))).numpy()
    rows = [test.images[:16], test.images[:16][::-1], dreams]
    keras.utils.save_img("dreams.png", np.concatenate([np.hstack(row) for row in rows]))
    return model


if __name__ == "__main__":
    main()
