"""Perturbed and adversarial dreaming (PAD) as a Keras model.

Deperrois, Petrovici, Senn & Jordan (2022), "Learning cortical representations through perturbed
and adversarial dreaming", eLife 11:e76384.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from ad_keras.compute import replicas
from ad_keras.compute.optimizers import FusedAdam
from ad_keras.data.pixels import as_signed
from ad_keras.pad import losses
from ad_keras.pad.hippocampus import Hippocampus
from ad_keras.pad.perturbations import occlude, occlusion_mask, sample_occlusion

PHASES = ("wake", "nrem", "rem")


@keras.saving.register_keras_serializable("ad_keras")
class PAD(keras.Model):
    """Encoder and generator trained by cycling wake, NREM and REM on every mini-batch.

    Plain Keras use::

        model = PAD(build_encoder(), build_generator(), batch_size=64)
        model.compile()  # the paper's two Adam optimizers
        model.fit(images.batch(64, drop_remainder=True), epochs=50, shuffle=False)
        model.save("dreamer.keras")

    Loading it again with `keras.models.load_model` needs this class imported:
    `from ad_keras import PAD`.

    Args:
        encoder: from `build_encoder`: `images` -> {`latent`, `external_logit`}.
        generator: from `build_generator`: `latent` -> images.
        phases: which phases run on a mini-batch, in this order; wake comes first.
        batch_size: the largest mini-batch, which is what the hippocampus can hold.
        seed: of the wake noise, the occlusions and the dreams' noise. Together with `step` it
            determines every random number, so training can be continued exactly.
        reconstruction_weight: of the squared error in wake.
        kl_weight: of the latents' divergence from the prior in wake.
        external_weight: of the discriminator's loss in wake; with 0 it is left out.
        recovery_weight: of the latents' squared error in NREM.
        internal_weight: of the discriminator's loss in REM.
        wake_noise_variance: of Gaussian noise added to the latents that wake reconstructs from.
        mix_recent: lambda, the share of the newest among the two memories that REM mixes.
        mix_memories: lambda', the share of memories in a REM latent; the rest is noise.
        nrem_mixed: whether NREM replays the latents that REM would, instead of single memories.
        occlusion_range: lowest and highest probability of occluding a tile in NREM.
        tile_range: smallest and largest side of a tile in pixels.
        occlusion_per_image: whether each image of a mini-batch has a mask of its own. The
            published results use one mask for the whole mini-batch.

    Attributes:
        step: how many mini-batches the model was trained on.
    """

    def __init__(
        self,
        encoder: keras.Model,
        generator: keras.Model,
        *,
        phases: Sequence[str] = PHASES,
        batch_size: int = 64,
        seed: int = 0,
        reconstruction_weight: float = 1.0,
        kl_weight: float = 1.0,
        external_weight: float = 1.0,
        recovery_weight: float = 1.0,
        internal_weight: float = 1.0,
        wake_noise_variance: float = 0.0,
        mix_recent: float = 0.5,
        mix_memories: float = 0.5,
        nrem_mixed: bool = False,
        occlusion_range: tuple[float, float] = (0.0, 1.0),
        tile_range: tuple[int, int] = (1, 8),
        occlusion_per_image: bool = False,
        name: str = "pad",
        **kwargs,
    ) -> None:
        super().__init__(name=name, **kwargs)
        phases = tuple(phases)
        if phases[:1] != ("wake",) or len(set(phases)) < len(phases) or set(phases) - set(PHASES):
            raise ValueError(
                f"phases is {phases}, but must start with 'wake', which 'nrem' and 'rem' may "
                "follow once each."
            )
        self.encoder = encoder
        self.generator = generator
        self.hippocampus = Hippocampus(batch_size, generator.inputs[0].shape[-1])
        self._settings = {
            "phases": phases,
            "batch_size": batch_size,
            "seed": seed,
            "reconstruction_weight": reconstruction_weight,
            "kl_weight": kl_weight,
            "external_weight": external_weight,
            "recovery_weight": recovery_weight,
            "internal_weight": internal_weight,
            "wake_noise_variance": wake_noise_variance,
            "mix_recent": mix_recent,
            "mix_memories": mix_memories,
            "nrem_mixed": nrem_mixed,
            "occlusion_range": tuple(occlusion_range),
            "tile_range": tuple(tile_range),
            "occlusion_per_image": occlusion_per_image,
        }
        self.step = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int64",
            trainable=False,
            aggregation="only_first_replica",
            name="step",
        )
        names = ["wake/reconstruction_loss", "wake/kl_loss"]
        if external_weight:
            names += ["wake/external_loss", "wake/external_probability"]
        if "nrem" in phases:
            names += ["nrem/recovery_loss"]
        if "rem" in phases:
            names += ["rem/internal_loss", "rem/external_probability"]
        self._means = {name: _GlobalMean(name.replace("/", "_")) for name in names}
        self.built = True

    def compile(
        self,
        encoder_optimizer: keras.optimizers.Optimizer | str | None = None,
        generator_optimizer: keras.optimizers.Optimizer | str | None = None,
        **kwargs,
    ) -> None:
        """Sets the optimizers.

        Args:
            encoder_optimizer: of the encoder with the discriminator's head, shared by all
                phases; None for the paper's Adam (learning rate 2e-4, beta_1 0.5, beta_2 0.999).
            generator_optimizer: of the generator, likewise.
            **kwargs: `run_eagerly`, `jit_compile`, `steps_per_execution` of `keras.Model.compile`.
        """
        if replicas.count() > 1 and kwargs.get("steps_per_execution", 1) > 1:
            raise ValueError(
                f"steps_per_execution={kwargs['steps_per_execution']} does not work in Keras with "
                f"{replicas.count()} replicas: leave it at 1."
            )
        super().compile(optimizer=None, **kwargs)
        self.encoder_optimizer = _optimizer(encoder_optimizer)
        self.generator_optimizer = _optimizer(generator_optimizer)
        if self.encoder_optimizer is self.generator_optimizer:
            raise ValueError("encoder and generator need an optimizer each: they got the same one.")
        self.encoder_optimizer.build(self.encoder.trainable_variables)
        self.generator_optimizer.build(self.generator.trainable_variables)

    def call(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Perceives images, as `predict` does.

        Args:
            images: [B, H, W, C], uint8, or float in [-1, 1].

        Returns:
            `latent` [B, latent_dim], `external_probability` [B] in [0, 1] and `reconstruction`
            [B, H, W, C] in [-1, 1].
        """
        outputs = self.encoder(as_signed(images))
        return {
            "latent": outputs["latent"],
            "external_probability": tf.sigmoid(outputs["external_logit"]),
            "reconstruction": self.generator(outputs["latent"]),
        }

    def train_step(self, data) -> dict[str, tf.Tensor]:
        """One cycle of wake, NREM and REM, each with its own gradients and optimizer steps.

        With several replicas, each runs this on its part of the mini-batch, and what comes out is
        the same (to rounding) as with one: see `ad_keras.compute.replicas`.

        Args:
            data: images [B, H, W, C], uint8, or float in [-1, 1]; labels beside them are ignored.
        """
        images = self._images(data)
        latents = self.wake(images)
        memories = replicas.gather(latents)
        recalled = replicas.own(self.hippocampus.recall(memories))
        self.hippocampus.store(memories)
        for phase in self._settings["phases"][1:]:
            if phase == "nrem":
                self.nrem(latents, recalled)
            else:
                self.rem(latents, recalled)
        self.step.assign_add(1)
        return self.get_metrics_result()

    def wake(self, images: tf.Tensor) -> tf.Tensor:
        """Learns from external images, and to rebuild them.

        Encoder and discriminator descend the reconstruction, prior and external losses; the
        generator descends the reconstruction loss, the only one that depends on it.

        Args:
            images: [B, H, W, C] in [-1, 1].

        Returns:
            latents [B, latent_dim], from before the update.
        """
        with tf.GradientTape() as tape:
            loss, latents = self._wake_loss(images, self._key("wake"))
        encoder_gradients, generator_gradients = self._gradients(tape, loss)
        _apply(self.encoder_optimizer, encoder_gradients, self.encoder)
        _apply(self.generator_optimizer, generator_gradients, self.generator)
        return latents

    def nrem(self, latents: tf.Tensor, recalled: tf.Tensor) -> None:
        """Perturbed dreaming: recovers memories from occluded replays of them.

        Only the encoder learns.

        Args:
            latents: [B, latent_dim], the newest memories.
            recalled: [B, latent_dim], older memories, for the condition that replays mixtures.
        """
        with tf.GradientTape() as tape:
            loss = self._nrem_loss(latents, recalled, self._key("nrem"))
        encoder_gradients, _ = self._gradients(tape, loss)
        _apply(self.encoder_optimizer, encoder_gradients, self.encoder)

    def rem(self, latents: tf.Tensor, recalled: tf.Tensor) -> None:
        """Adversarial dreaming: tells dreams of mixed memories from external images.

        Encoder and discriminator descend the loss, the generator ascends it.

        Args:
            latents: [B, latent_dim], the newest memories.
            recalled: [B, latent_dim], older memories.
        """
        with tf.GradientTape() as tape:
            loss = self._rem_loss(latents, recalled, self._key("rem"))
        encoder_gradients, generator_gradients = self._gradients(tape, loss)
        _apply(self.encoder_optimizer, encoder_gradients, self.encoder)
        ascent = [None if gradient is None else -gradient for gradient in generator_gradients]
        _apply(self.generator_optimizer, ascent, self.generator)

    def test_step(self, data) -> dict[str, tf.Tensor]:
        """The losses on held-out images; touches neither weights nor memory.

        Noise and masks depend on the number of the batch alone, so that values of different
        epochs can be compared. REM mixes each latent with its neighbour's in the batch.

        Args:
            data: as for `train_step`.
        """
        images = self._images(data)
        batch = tf.cast(self._means["wake/kl_loss"].count, tf.int64)
        _, latents = self._wake_loss(images, self._key("wake", ~batch))
        neighbours = replicas.own(tf.roll(replicas.gather(latents), 1, axis=0))
        if "nrem" in self._settings["phases"]:
            self._nrem_loss(latents, neighbours, self._key("nrem", ~batch))
        if "rem" in self._settings["phases"]:
            self._rem_loss(latents, neighbours, self._key("rem", ~batch))
        return self.get_metrics_result()

    def mix(self, latents: tf.Tensor, recalled: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Mixes two memories and noise into the latents of a REM dream.

        lambda' (lambda Z + (1 - lambda) Z_old) + (1 - lambda') epsilon, epsilon ~ N(0, I).

        Args:
            latents: Z, [B, latent_dim].
            recalled: Z_old, [B, latent_dim].
            key: integer [2], of the stateless noise.

        Returns:
            [B, latent_dim].
        """
        recent, memories = self._settings["mix_recent"], self._settings["mix_memories"]
        noise = _noise(latents, key)
        return memories * (recent * latents + (1 - recent) * recalled) + (1 - memories) * noise

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """One mean for each loss, and for each probability of the discriminator."""
        return list(self._means.values())

    def get_metrics_result(self) -> dict[str, tf.Tensor]:
        """The means since the epoch's start, by phase: `wake/kl_loss`, `nrem/recovery_loss`, ..."""
        means = {name: mean.result() for name, mean in self._means.items()}
        if _runs_in_a_worker():
            # Keras reduces what the workers return along an axis (tensorflow#72388).
            return {name: mean[None] for name, mean in means.items()}
        return means

    def get_config(self) -> dict:
        """Returns the constructor's arguments, networks included."""
        return {
            "name": self.name,
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "generator": keras.saving.serialize_keras_object(self.generator),
            **self._settings,
        }

    @classmethod
    def from_config(cls, config: dict) -> "PAD":
        """Rebuilds the model with untrained networks of the same shape."""
        config = dict(config)
        for network in ("encoder", "generator"):
            config[network] = keras.saving.deserialize_keras_object(config[network])
        return cls(**config)

    def get_compile_config(self) -> dict:
        """Returns the arguments of `compile`; empty if it was not called."""
        if not self.compiled:
            return {}
        return {
            "run_eagerly": self.run_eagerly,
            "jit_compile": self.jit_compile,
            "steps_per_execution": self.steps_per_execution,
            "encoder_optimizer": keras.saving.serialize_keras_object(self.encoder_optimizer),
            "generator_optimizer": keras.saving.serialize_keras_object(self.generator_optimizer),
        }

    def compile_from_config(self, config: dict) -> None:
        """Compiles a loaded model as the saved one was."""
        config = dict(config)
        for name in ("encoder_optimizer", "generator_optimizer"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        self.compile(**config)

    def _wake_loss(self, images: tf.Tensor, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = self.encoder(images, training=True)
        latents = remembered = outputs["latent"]
        if self._settings["wake_noise_variance"]:
            remembered += self._settings["wake_noise_variance"] ** 0.5 * _noise(latents, key)
        rebuilt = self.generator(remembered, training=True)
        loss = self._weigh("wake/reconstruction_loss", losses.reconstruction_loss(images, rebuilt))
        loss += self._weigh("wake/kl_loss", losses.kl_loss(replicas.gather(latents)))
        if self._settings["external_weight"]:
            logits = outputs["external_logit"]
            loss += self._weigh("wake/external_loss", losses.external_loss(logits))
            self._means["wake/external_probability"].update_state(_mean_probability(logits))
        return loss, latents

    def _nrem_loss(self, latents: tf.Tensor, recalled: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        keys = tf.random.split(key, 2, alg="philox")
        if self._settings["nrem_mixed"]:
            latents = self.mix(latents, recalled, keys[0])
        dreams = tf.stop_gradient(self.generator(latents, training=True))
        per_image = self._settings["occlusion_per_image"]
        masks = tf.shape(dreams)[0] * replicas.count() if per_image else 1
        draws = tf.random.split(keys[1], 2, alg="philox")
        probabilities, tiles = sample_occlusion(
            draws[0], masks, self._settings["occlusion_range"], self._settings["tile_range"]
        )
        mask = occlusion_mask(draws[1], probabilities, tiles, *dreams.shape[1:3])
        mask = replicas.own(mask) if per_image else mask
        recovered = self.encoder(occlude(dreams, mask), training=True)["latent"]
        return self._weigh("nrem/recovery_loss", losses.latent_loss(latents, recovered))

    def _rem_loss(self, latents: tf.Tensor, recalled: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        dreams = self.generator(self.mix(latents, recalled, key), training=True)
        logits = self.encoder(dreams, training=True)["external_logit"]
        self._means["rem/external_probability"].update_state(_mean_probability(logits))
        return self._weigh("rem/internal_loss", losses.internal_loss(logits))

    def _weigh(self, name: str, loss: tf.Tensor) -> tf.Tensor:
        """Records a loss as it is in the paper; returns what this replica adds to the total.

        Gradients are summed over replicas.
        """
        self._means[name].update_state(replicas.mean(loss))
        return self._settings[_WEIGHTS[name]] / replicas.count() * loss

    def _gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> tuple[list, list]:
        return tape.gradient(
            loss, (self.encoder.trainable_variables, self.generator.trainable_variables)
        )

    def _key(self, phase: str, step: tf.Tensor | None = None) -> tf.Tensor:
        """The key of a phase's random numbers; test batches count as negative steps."""
        key = tf.constant([self._settings["seed"], PHASES.index(phase)], tf.int64)
        return tf.random.fold_in(key, self.step.value if step is None else step, alg="philox")

    def _images(self, data) -> tf.Tensor:
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        images = as_signed(images)
        assertion = tf.debugging.assert_greater(
            (images.shape[0] or tf.shape(images)[0]) * replicas.count(),
            1,
            "A mini-batch has one image, but its latents have a variance only from at least 2: "
            "use another batch size, or batch(..., drop_remainder=True).",
        )
        with tf.control_dependencies([] if assertion is None else [assertion]):
            return tf.identity(images)


_WEIGHTS = {
    "wake/reconstruction_loss": "reconstruction_weight",
    "wake/kl_loss": "kl_weight",
    "wake/external_loss": "external_weight",
    "nrem/recovery_loss": "recovery_weight",
    "rem/internal_loss": "internal_weight",
}


class _GlobalMean(keras.metrics.Metric):
    """Mean of values that are the same on all replicas.

    Keras's own keeps a part on each replica, which only all workers together can read.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.total, self.count = (
            keras.Variable(0.0, trainable=False, aggregation="only_first_replica", name=part)
            for part in ("total", "count")
        )

    def update_state(self, value: tf.Tensor) -> None:
        self.total.assign_add(value)
        self.count.assign_add(1.0)

    def result(self) -> tf.Tensor:
        return tf.math.divide_no_nan(self.total.value, self.count.value)


def _noise(latents: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Standard normal, of which every replica has its part."""
    shape = tf.shape(latents) * [replicas.count(), 1]
    return replicas.own(tf.random.stateless_normal(shape, key, alg="philox"))


def _mean_probability(logits: tf.Tensor) -> tf.Tensor:
    return replicas.mean(tf.reduce_mean(tf.sigmoid(logits)))


def _runs_in_a_worker() -> bool:
    strategy = tf.distribute.get_strategy()
    return (
        tf.distribute.get_replica_context() is not None
        and isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and bool(strategy.cluster_resolver.cluster_spec().jobs)
    )


def _optimizer(optimizer: keras.optimizers.Optimizer | str | None) -> keras.optimizers.Optimizer:
    if optimizer is None:
        return FusedAdam(learning_rate=2e-4, beta_1=0.5, beta_2=0.999, epsilon=1e-8)
    return keras.optimizers.get(optimizer)


def _apply(optimizer: keras.optimizers.Optimizer, gradients: list, network: keras.Model) -> None:
    # What a phase's loss does not depend on has no gradient and is left alone in that phase, its
    # momentum included.
    pairs = zip(gradients, network.trainable_variables, strict=True)
    pairs = [pair for pair in pairs if pair[0] is not None]
    if pairs:  # there is none in a frozen network
        optimizer.apply(*zip(*pairs, strict=True))
