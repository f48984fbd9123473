"""Perturbed and adversarial dreaming (PAD) as a Keras model.

Deperrois, Petrovici, Senn & Jordan (2022), "Learning cortical representations through perturbed
and adversarial dreaming", eLife 11:e76384. Symbols in docstrings are the paper's: X images, Z
latents, E encoder, G generator, d discriminator.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from ad_keras.compute import draws, replicas
from ad_keras.compute.optimizers import FusedAdam
from ad_keras.data.pixels import as_signed
from ad_keras.pad.adversaries import Minimax
from ad_keras.pad.agreement import Contrast, LatentDistance
from ad_keras.pad.hippocampus import Hippocampus
from ad_keras.pad.losses import (
    decorrelation_loss,
    gradient_penalty_loss,
    kl_loss,
    reconstruction_loss,
)
from ad_keras.pad.mixing import Mixing
from ad_keras.pad.parts import Perturbation, require
from ad_keras.pad.perturbations import Occlusion

# This rewriting of graphs cannot handle the gradient of a leaky rectifier: it gives up, with an
# alarming message.
tf.config.optimizer.set_experimental_options({"remapping": False})

PHASES = ("wake", "nrem", "rem")

LOSSES = {
    "reconstruction": "wake",
    "kl": "wake",
    "decorrelation": "wake",
    "external": "wake",
    "gradient_penalty": "wake",
    "agreement": "wake",
    "recovery": "nrem",
    "internal": "rem",
}
"""Names of the losses, and the phase that each belongs to. The weight of a loss is the attribute
`<name>_weight`, its metric is `<phase>/<name>_loss`."""

PARTS = (
    *("hippocampus", "mixing", "perturbation", "recovery", "adversary"),
    *("glimpse", "agreement"),
)

SETTINGS = (
    *("phases", *(f"{loss}_weight" for loss in LOSSES)),
    *("wake_noise_variance", "nrem_memories", "clip_norm", "average_weights", "seed"),
)
"""Arguments of `PAD` that are no networks and no parts."""


@keras.saving.register_keras_serializable("ad_keras")
class PAD(keras.Model):
    """Encoder and generator trained by cycling wake, NREM and REM on every mini-batch.

    Plain Keras use::

        model = PAD(build_encoder(), build_generator())
        model.compile()  # the paper's two Adam optimizers
        model.fit(images.batch(64, drop_remainder=True), epochs=50, shuffle=False)
        model.save("dreamer.keras")

    Loading it again with `keras.models.load_model` needs this class imported:
    `from ad_keras import PAD`.

    Every argument is a public attribute of the same name. A part is any object of its signature:
    one of your own, registered with `keras.saving.register_keras_serializable`, is saved and
    loaded like those of this package.

    Args:
        encoder: a functional model `images` -> {`latent`, `external_logit`}, such as that of
            `build_encoder`.
        generator: a functional model `latent` -> images, such as that of `build_generator`.
        hippocampus: stores the latents of wake and recalls older ones:
            `store(latents)`, `recall(latents, key)`. The default is `Hippocampus(64)`, for
            mini-batches of up to 64 images.
        mixing: makes the latents of REM dreams: `(latents, recalled, key) -> latents`. The
            default is `Mixing(0.5, 0.5)`.
        perturbation: changes NREM dreams: `(images, key) -> images`. The default is
            `Occlusion((0, 1), (1, 8))`.
        recovery: NREM's loss of `(replayed, recovered)` latents. The default is
            `LatentDistance()`.
        adversary: the discriminator's losses: `external(logits)`, `internal(logits)`, and
            `fooling(logits)`, which the generator descends in REM. The default is `Minimax()`.
        glimpse: perturbs waking images: `(images, key) -> images`. Wake then perceives several
            glimpses of each image, and the encoder learns that they agree. None, the default, is
            the paper's wake without glimpses.
        agreement: wake's loss of `(latents, glimpsed)` latents, of the form of `recovery`. The
            default is `Contrast()`. It is used with a `glimpse` only.
        phases: which phases run on a mini-batch, in this order; wake comes first.
        reconstruction_weight: of the squared error in wake, above 0.
        kl_weight: of the latents' divergence from the prior in wake, 0 or more.
        decorrelation_weight: of the squared covariances between latent dimensions in wake,
            glimpses included, 0 or more; with 0, the default, they are left out.
        external_weight: of the loss of calling images external in wake, 0 or more; with 0 it is
            left out.
        gradient_penalty_weight: gamma of the R1 penalty on the discriminator's gradient at images
            in wake, 0 or more; with 0, the default, it is left out.
        agreement_weight: of the agreement loss in wake, above 0.
        recovery_weight: of the recovery loss in NREM, above 0.
        internal_weight: of the loss of calling dreams internal in REM, above 0.
        wake_noise_variance: of Gaussian noise added to the latents that wake reconstructs from,
            0 or more.
        nrem_memories: what NREM replays: "single" memories, or "mixed" ones as REM does.
        clip_norm: largest norm of the gradient of all variables of an optimizer (the encoder's
            include the discriminator's head) in a phase, 0 or more; a larger gradient is scaled
            down. With 0, the default, none is.
        average_weights: decay of a moving average of the networks' weights, at least 0 and below 1;
            0, the default, keeps none. Training does not use it: see `averaged_weights`.
        seed: of the wake noise, the perturbations and the dreams' noise. Together with `step` it
            determines every random number, so training can be continued exactly.
        name: of the model.

    Attributes:
        step: how many mini-batches the model was trained on.

    Raises:
        ValueError: in one line, if an argument is not possible.
    """

    def __init__(
        self,
        encoder: keras.Model,
        generator: keras.Model,
        *,
        hippocampus: keras.layers.Layer | None = None,
        mixing: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
        perturbation: Perturbation | None = None,
        recovery: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
        adversary: Minimax | None = None,
        glimpse: Perturbation | None = None,
        agreement: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
        phases: Sequence[str] = PHASES,
        reconstruction_weight: float = 1.0,
        kl_weight: float = 1.0,
        decorrelation_weight: float = 0.0,
        external_weight: float = 1.0,
        gradient_penalty_weight: float = 0.0,
        agreement_weight: float = 1.0,
        recovery_weight: float = 1.0,
        internal_weight: float = 1.0,
        wake_noise_variance: float = 0.0,
        nrem_memories: str = "single",
        clip_norm: float = 0.0,
        average_weights: float = 0.0,
        seed: int = 0,
        name: str = "pad",
        **kwargs,
    ) -> None:
        super().__init__(name=name, **kwargs)
        phases = tuple(phases)
        allowed = "'wake', then 'nrem' and 'rem' once each in any order, or without one of them"
        orderly = phases[:1] == ("wake",) and len(set(phases)) == len(phases)
        require(orderly and set(phases) <= set(PHASES), "phases", phases, allowed)
        self.encoder = encoder
        self.generator = generator
        self.hippocampus = hippocampus if hippocampus is not None else Hippocampus()
        self.mixing = mixing if mixing is not None else Mixing()
        self.perturbation = perturbation if perturbation is not None else Occlusion()
        self.recovery = recovery if recovery is not None else LatentDistance()
        self.adversary = adversary if adversary is not None else Minimax()
        self.glimpse = glimpse
        self.agreement = agreement if agreement is not None else Contrast()
        self.phases = phases
        self.reconstruction_weight = reconstruction_weight
        self.kl_weight = kl_weight
        self.decorrelation_weight = decorrelation_weight
        self.external_weight = external_weight
        self.gradient_penalty_weight = gradient_penalty_weight
        self.agreement_weight = agreement_weight
        self.recovery_weight = recovery_weight
        self.internal_weight = internal_weight
        self.wake_noise_variance = wake_noise_variance
        self.nrem_memories = nrem_memories
        self.clip_norm = clip_norm
        self.average_weights = average_weights
        self.seed = seed
        self._check_numbers()
        of_images, of_latents = ((None, *each.inputs[0].shape[1:]) for each in (encoder, generator))
        for name, part in self.parts_with_weights.items():
            if not part.built:
                part.build(of_images if name in ("perturbation", "glimpse") else of_latents)
                part.built = True
        state = {"trainable": False, "aggregation": "only_first_replica"}
        self.step = self.add_weight((), "zeros", "int64", name="step", **state)
        self.averages = [
            self.add_weight(
                shape=weight.shape,
                initializer=lambda shape, dtype, start=weight: tf.convert_to_tensor(start.value),
                dtype=weight.dtype,
                name=f"average_{weight.path.replace('/', '_')}",
                **state,
            )
            for weight in (self._network_weights() if average_weights else ())
        ]
        optional = {
            "decorrelation": decorrelation_weight,
            "external": external_weight,
            "gradient_penalty": gradient_penalty_weight,
            "agreement": glimpse is not None,
        }
        names = [
            f"{phase}/{loss}_loss"
            for loss, phase in LOSSES.items()
            if phase in phases and optional.get(loss, True)
        ]
        if external_weight:
            names.append("wake/external_probability")
        if "rem" in phases:
            names.append("rem/external_probability")
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
            encoder_optimizer: of the encoder with the discriminator's head, and of parts that
                learn, shared by all phases; None for the paper's Adam (learning rate 2e-4, beta_1
                0.5, beta_2 0.999). A schedule of its learning rate counts updates, which are one in
                each phase of a step.
            generator_optimizer: of the generator, likewise.
            **kwargs: `run_eagerly`, `jit_compile`, `steps_per_execution` of `keras.Model.compile`.

        Raises:
            ValueError: if both are the same optimizer, or several steps are to run in one
                execution on several replicas.
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
        self.encoder_optimizer.build(self.encoder_variables)
        self.generator_optimizer.build(self.generator.trainable_variables)

    @property
    def parts_with_weights(self) -> dict[str, keras.layers.Layer]:
        """The parts that checkpoints must hold, by name."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {name: part for name, part in parts.items() if isinstance(part, keras.layers.Layer)}

    @property
    def encoder_variables(self) -> list[keras.Variable]:
        """What the encoder's optimizer updates: E with d, and parts that learn."""
        networks = [self.encoder, *self.parts_with_weights.values()]
        return [variable for network in networks for variable in network.trainable_variables]

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

        Returns:
            The mean of each loss since the epoch's start.
        """
        images = self._images(data)
        latents = self.wake(images)
        memories = replicas.gather(latents)
        recalled = replicas.own(self.hippocampus.recall(memories, self._key("recall")))
        self.hippocampus.store(memories)
        for phase in self.phases[1:]:
            if phase == "nrem":
                self.nrem(latents, recalled)
            else:
                self.rem(latents, recalled)
        if self.average_weights:
            self._average()
        self.step.assign_add(1)
        return self.get_metrics_result()

    def wake(self, images: tf.Tensor) -> tf.Tensor:
        """Learns from external images, and to rebuild them.

        E and d descend all of wake's losses; G descends the reconstruction loss, the only one that
        depends on it.

        Args:
            images: X, [B, H, W, C] in [-1, 1].

        Returns:
            Z, [B, latent_dim], from before the update.
        """
        with tf.GradientTape() as tape:
            losses, latents = self._wake_losses(images, self._key("wake"))
            loss = self._total(losses)
        self._step(*self._gradients(tape, loss))
        return latents

    def nrem(self, latents: tf.Tensor, recalled: tf.Tensor) -> None:
        """Perturbed dreaming: E recovers latents from perturbed replays of them.

        Only E learns.

        Args:
            latents: Z, [B, latent_dim], the newest memories.
            recalled: [B, latent_dim], older memories, for the condition that replays mixtures.
        """
        with tf.GradientTape() as tape:
            loss = self._total(self._nrem_losses(latents, recalled, self._key("nrem")))
        self._step(*self._gradients(tape, loss))

    def rem(self, latents: tf.Tensor, recalled: tf.Tensor) -> None:
        """Adversarial dreaming: d tells dreams of mixed memories from external images.

        E and d descend the internal loss. G ascends it, or descends what the adversary says.

        Args:
            latents: Z, [B, latent_dim], the newest memories.
            recalled: Z_old, [B, latent_dim], older memories.
        """
        with tf.GradientTape(persistent=True) as tape:
            losses, logits = self._rem_losses(latents, recalled, self._key("rem"))
            loss = self._total(losses)
            fooling = self.adversary.fooling(logits)
            if fooling is not None:
                fooling *= self.internal_weight / replicas.count()
        if fooling is None:
            encoder_gradients, descent = self._gradients(tape, loss)
            generator_gradients = [None if each is None else -each for each in descent]
        else:
            encoder_gradients = tape.gradient(loss, self.encoder_variables)
            generator_gradients = tape.gradient(fooling, self.generator.trainable_variables)
        self._step(encoder_gradients, generator_gradients)

    def test_step(self, data) -> dict[str, tf.Tensor]:
        """The losses on held-out images, as those of `train_step`; weights and memory stay.

        Noise and masks depend on the number of the batch alone, so that values of different
        epochs can be compared. REM mixes each latent with its neighbour's in the batch.
        """
        images = self._images(data)
        # Training has the steps from 0 on.
        batch = ~tf.cast(self._means["wake/kl_loss"].count, tf.int64)
        losses, latents = self._wake_losses(images, self._key("wake", batch))
        neighbours = replicas.own(tf.roll(replicas.gather(latents), 1, axis=0))
        if "nrem" in self.phases:
            losses |= self._nrem_losses(latents, neighbours, self._key("nrem", batch))
        if "rem" in self.phases:
            losses |= self._rem_losses(latents, neighbours, self._key("rem", batch))[0]
        self._total(losses)
        return self.get_metrics_result()

    def wake_noise(self, latents: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Noise of `wake_noise_variance` for latents [B, latent_dim] that wake rebuilds from."""
        return self.wake_noise_variance**0.5 * replicas.normal(latents, key)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Lends the networks the averages of their weights; without `average_weights`, nothing.

        `with model.averaged_weights():` is for looking at a model, not for training it.
        """
        own = [(weight, weight.numpy()) for weight, _ in self.averaged]
        try:
            for weight, average in self.averaged:
                weight.assign(average.numpy())
            yield
        finally:
            for weight, value in own:
                weight.assign(value)

    @property
    def averaged(self) -> list[tuple[keras.Variable, keras.Variable]]:
        """Each of the networks' weights with its average; empty without `average_weights`."""
        return list(zip(self._network_weights(), self.averages, strict=False))

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
        """Returns the constructor's arguments, networks and parts included."""
        return _serialized(self, ("name", "encoder", "generator", *PARTS, *SETTINGS))

    @classmethod
    def from_config(cls, config: dict) -> "PAD":
        """Rebuilds the model with untrained networks of the same shape."""
        return cls(**keras.saving.deserialize_keras_object(config))

    def get_compile_config(self) -> dict:
        """Returns the arguments of `compile`; empty if it was not called."""
        if not self.compiled:
            return {}
        names = ("run_eagerly", "jit_compile", "steps_per_execution")
        return _serialized(self, (*names, "encoder_optimizer", "generator_optimizer"))

    def compile_from_config(self, config: dict) -> None:
        """Compiles a loaded model as the saved one was."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def _check_numbers(self) -> None:
        for name in ("reconstruction_weight", "recovery_weight", "internal_weight"):
            value = getattr(self, name)
            require(value > 0, name, value, "above 0; `phases` leaves a phase out")
        allowed = "above 0; without a `glimpse` there is no agreement"
        require(self.agreement_weight > 0, "agreement_weight", self.agreement_weight, allowed)
        weights = ("kl_weight", "decorrelation_weight", "external_weight")
        for name in (*weights, "gradient_penalty_weight", "wake_noise_variance", "clip_norm"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        penalty, allowed = self.gradient_penalty_weight, "0 without an external loss"
        holds = self.external_weight > 0 or not penalty
        require(holds, "gradient_penalty_weight", penalty, allowed)
        memories, allowed = self.nrem_memories, "'single' or 'mixed'"
        require(memories in ("single", "mixed"), "nrem_memories", repr(memories), allowed)
        decay, allowed = self.average_weights, "at least 0 and below 1"
        require(0 <= decay < 1, "average_weights", decay, allowed)

    def _wake_losses(self, images: tf.Tensor, key: tf.Tensor) -> tuple[dict, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            if self.gradient_penalty_weight:
                tape.watch(images)
            outputs = self.encoder(images, training=True)
        latents = remembered = outputs["latent"]
        if self.wake_noise_variance:
            remembered += self.wake_noise(latents, key)
        rebuilt = self.generator(remembered, training=True)
        losses = {
            "reconstruction": reconstruction_loss(images, rebuilt),
            "kl": kl_loss(replicas.gather(latents)),
        }
        if self.external_weight:
            losses["external"] = self.adversary.external(outputs["external_logit"])
            self._record_probability("wake", outputs["external_logit"])
        if self.gradient_penalty_weight:
            gradients = tape.gradient(outputs["external_logit"], images)
            losses["gradient_penalty"] = gradient_penalty_loss(gradients)
        if self.glimpse is not None:
            glimpsed = self._perceive(self.glimpse, images, draws.fold_in(key, 1), self.agreement)
            losses["agreement"] = self.agreement(latents, glimpsed)
        if self.decorrelation_weight:
            views = tf.unstack(glimpsed) if self.glimpse is not None else []
            perceived = replicas.gather(tf.concat([latents, *views], axis=0))
            losses["decorrelation"] = decorrelation_loss(perceived)
        return losses, latents

    def _nrem_losses(self, latents: tf.Tensor, recalled: tf.Tensor, key: tf.Tensor) -> dict:
        mixing, perturbation = draws.split(key, 2)
        mixed = self.nrem_memories == "mixed"
        replayed = self.mixing(latents, recalled, mixing) if mixed else latents
        dreams = tf.stop_gradient(self.generator(replayed, training=True))
        recovered = self._perceive(self.perturbation, dreams, perturbation, self.recovery)
        return {"recovery": self.recovery(replayed, recovered)}

    def _rem_losses(
        self, latents: tf.Tensor, recalled: tf.Tensor, key: tf.Tensor
    ) -> tuple[dict, tf.Tensor]:
        dreams = self.generator(self.mixing(latents, recalled, key), training=True)
        logits = self.encoder(dreams, training=True)["external_logit"]
        self._record_probability("rem", logits)
        return {"internal": self.adversary.internal(logits)}, logits

    def _perceive(
        self, perturbation: Perturbation, images: tf.Tensor, key: tf.Tensor, loss
    ) -> tf.Tensor:
        """Latents [views, B, latent_dim] of as many perturbed views as a loss compares."""
        views = getattr(loss, "views", 1)
        perturbed = [perturbation(images, each) for each in draws.split(key, views)]
        latents = self.encoder(tf.concat(perturbed, axis=0), training=True)["latent"]
        return tf.reshape(latents, [views, -1, latents.shape[-1]])

    def _total(self, losses: dict[str, tf.Tensor]) -> tf.Tensor:
        """Records losses as they are in the paper; returns this replica's share of their sum.

        Gradients are summed over replicas.
        """
        total = 0.0
        for name, loss in losses.items():
            self._means[f"{LOSSES[name]}/{name}_loss"].update_state(replicas.mean(loss))
            total += getattr(self, f"{name}_weight") / replicas.count() * loss
        return total

    def _gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> tuple[list, list]:
        return tape.gradient(loss, (self.encoder_variables, self.generator.trainable_variables))

    def _step(self, encoder_gradients: list, generator_gradients: list) -> None:
        self._apply(self.encoder_optimizer, encoder_gradients, self.encoder_variables)
        generator_variables = self.generator.trainable_variables
        self._apply(self.generator_optimizer, generator_gradients, generator_variables)

    def _apply(
        self, optimizer: keras.optimizers.Optimizer, gradients: list, variables: list
    ) -> None:
        # What a phase's loss does not depend on has no gradient and is left alone in that phase,
        # its momentum included.
        pairs = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        if not pairs:  # as in a frozen network
            return
        gradients, variables = map(list, zip(*pairs, strict=True))
        if self.clip_norm:
            # Not the optimizers' `global_clipnorm`, which would clip each replica's share.
            whole = [tf.cast(gradient, tf.float32) for gradient in replicas.summed(gradients)]
            factor = tf.minimum(1.0, self.clip_norm / tf.linalg.global_norm(whole))
            gradients = [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]
        optimizer.apply(gradients, variables)

    def _network_weights(self) -> list[keras.Variable]:
        weights = [*self.encoder.weights, *self.generator.weights]
        return [weight for weight in weights if tf.as_dtype(weight.dtype).is_floating]

    def _average(self) -> None:
        # Not the optimizers' `use_ema`: it averages after each update, of which phases make
        # several a step, and `keras.callbacks.SwapEMAWeights` knows one optimizer only.
        step = tf.cast(self.step.value, tf.float32)
        soon_forgets_step_0 = (1.0 + step) / (10.0 + step)
        decay = tf.minimum(self.average_weights, soon_forgets_step_0)
        for weight, average in self.averaged:
            difference = weight.value - average.value
            average.assign_add(tf.cast(1.0 - decay, difference.dtype) * difference)

    def _record_probability(self, phase: str, logits: tf.Tensor) -> None:
        probability = replicas.mean(tf.reduce_mean(tf.sigmoid(logits)))
        self._means[f"{phase}/external_probability"].update_state(probability)

    def _key(self, purpose: str, step: tf.Tensor | None = None) -> tf.Tensor:
        """The key of a phase's random numbers at a step, the present one if none is given."""
        purposes = (*PHASES, "recall")
        key = tf.constant([self.seed, purposes.index(purpose)], tf.int64)
        return draws.fold_in(key, self.step.value if step is None else step)

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


def _runs_in_a_worker() -> bool:
    strategy = tf.distribute.get_strategy()
    return (
        tf.distribute.get_replica_context() is not None
        and isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and bool(strategy.cluster_resolver.cluster_spec().jobs)
    )


def _serialized(model: PAD, names: Sequence[str]) -> dict:
    return keras.saving.serialize_keras_object({name: getattr(model, name) for name in names})


def _optimizer(optimizer: keras.optimizers.Optimizer | str | None) -> keras.optimizers.Optimizer:
    return FusedAdam() if optimizer is None else keras.optimizers.get(optimizer)
