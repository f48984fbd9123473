"""Tests of the phases against plain re-implementations, and of PAD as a Keras model."""

import dataclasses
import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import ad_keras
import ad_keras.pad.perturbations
from ad_keras import PAD, Hippocampus, Minimax, Mixing, Occlusion, build_encoder, build_generator
from ad_keras.compute import replicas
from ad_keras.compute.layers import builtin
from ad_keras.compute.optimizers import FusedAdam
from ad_keras.data.pixels import as_signed, to_pixels
from ad_keras.runs.build import build_model
from ad_keras.runs.config import CONDITIONS, PERTURBATIONS, Config

SIZE, LATENT, BATCH = 16, 8, 8
TINY = {"base_filters": 2, "latent_dim": 4}
UNOCCLUDED = {"perturbation": Occlusion((0.0, 0.0))}
LATENT_HEAD = {"latent_head/kernel", "latent_head/bias"}
EXTERNAL_HEAD = {"external_head/kernel", "external_head/bias"}
GENERATOR = {
    f"{layer}/{weight}"
    for layer in ("project", "unfold_0", "unfold_1")
    for weight in ("kernel", "bias")
}


def new_model(optimizer="adam", learning_rate=1.0, dtype="float32", size=SIZE, **settings):
    """A small PAD whose weights are large enough for gradients that float32 resolves well."""
    settings = {"hippocampus": Hippocampus(BATCH), **settings}
    shape = {"image_size": size, "latent_dim": LATENT, "base_filters": 4, "dtype": dtype}
    networks = (build(**shape) for build in (build_encoder, build_generator))
    model = PAD(*networks, **settings)
    rng = np.random.default_rng(0)
    for network in (model.encoder, model.generator):
        network.set_weights([rng.normal(0, 0.15, w.shape) for w in network.get_weights()])
    if optimizer == "sgd":
        model.compile(keras.optimizers.SGD(learning_rate), keras.optimizers.SGD(learning_rate))
    else:
        model.compile()
    return model


def pixels(seed=0, count=BATCH, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def signed(seed=0, count=BATCH, size=SIZE):
    return tf.constant(pixels(seed, count, size) / 127.5 - 1, tf.float32)


def random_latents(seed):
    return tf.constant(np.random.default_rng(seed).normal(size=(BATCH, LATENT)), tf.float32)


def dataset(seed=0, count=3 * BATCH, images=pixels, size=SIZE):
    return tf.data.Dataset.from_tensor_slices(images(seed, count, size)).batch(BATCH)


def state(*networks):
    """Values by path of the variables of networks or optimizers."""
    return {v.path: v.numpy().copy() for n in networks for v in n.variables}


def weights(model):
    return state(model.encoder, model.generator)


def averages(model):
    return {weight.path: average.numpy().copy() for weight, average in model.averaged}


def everything_kept(model):
    """All that training changes and a saved model must hold."""
    optimizers = state(model.encoder_optimizer, model.generator_optimizer)
    memory = {v.name: v.numpy().copy() for v in model.hippocampus.variables}
    lent = {f"average of {path}": value for path, value in averages(model).items()}
    return {**weights(model), **memory, **optimizers, **lent, "step": model.step.numpy()}


def settings(model):
    """The constructor's arguments but for the networks, parts as their own arguments."""
    config = model.get_config()
    parts = {name: config[name]["config"] for name in ("mixing", "perturbation")}
    parts["hippocampus"] = config["hippocampus"]["config"]["capacity"]
    parts |= {name: config[name]["class_name"] for name in ("recovery", "adversary", "agreement")}
    return {k: v for k, v in {**config, **parts}.items() if k not in ("encoder", "generator")}


def moved(before, after):
    return {path for path in before if (before[path] != after[path]).any()}


def assert_close(actual, expected):
    assert set(actual) == set(expected)
    for path, value in expected.items():
        tolerance = 1e-3 * np.abs(value).max() + 2e-7
        np.testing.assert_allclose(actual[path], value, atol=tolerance, err_msg=path)


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(actual[path], value, err_msg=path)


def gradients(loss, network):
    """Gradients by path of what `loss()` returns; zeros where it does not depend on a variable."""
    variables = {v.path: v.value for v in network.trainable_variables}
    with tf.GradientTape() as tape:
        value = loss()
    found = tape.gradient(value, variables, unconnected_gradients="zero")
    return {path: gradient.numpy() for path, gradient in found.items()}


def assert_descends(phase, model, encoder, generator=lambda: tf.constant(0.0)):
    """A phase, at learning rate 1, moves by the gradients of its losses, and moves nothing else."""
    descent = {**gradients(encoder, model.encoder), **gradients(generator, model.generator)}
    before = weights(model)
    result = phase()
    after = weights(model)
    assert moved(before, after) == {path for path, gradient in descent.items() if gradient.any()}
    for path, gradient in descent.items():
        assert not gradient.any() or np.abs(gradient).max() > 1e-4, path
    assert_close({path: before[path] - after[path] for path in before}, descent)
    return result


def record(monkeypatch, owner, name):
    """Keeps what a function returns from now on."""
    results, original = [], getattr(owner, name)

    def recorded(*arguments, **kwargs):
        result = original(*arguments, **kwargs)
        results.append(np.array(result))
        return result

    monkeypatch.setattr(owner, name, recorded)
    return results


# Parts of one's own.


@keras.saving.register_keras_serializable("tests")
class Darker(ad_keras.Part):
    """A perturbation."""

    def __init__(self, factor=0.5):
        self.factor = factor

    def __call__(self, images, key):
        return self.factor * images


class Tint(keras.layers.Layer):
    """A perturbation with a weight for each channel."""

    def build(self, shape):
        self.tint = self.add_weight(shape=(shape[-1],), initializer="ones", name="tint")

    def __call__(self, images, key):
        return self.tint * images


@keras.saving.register_keras_serializable("tests")
class Spread(keras.layers.Layer):
    """A recovery loss of three views with a weight that it learns."""

    views = 3

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def __call__(self, replayed, recovered):
        assert recovered.shape[0] == 3
        return tf.reduce_mean((self.scale * recovered - replayed) ** 2)


@keras.saving.register_keras_serializable("tests")
class Twofold(Minimax):
    """An adversary whose generator descends a loss of its own."""

    def fooling(self, logits):
        return 2.0 * tf.reduce_mean(tf.math.softplus(-logits))


# The losses of the paper, written plainly.


def paper_reconstruction(images, rebuilt):
    return tf.reduce_mean((images - rebuilt) ** 2)


def paper_prior(latents):
    mean = tf.reduce_mean(latents, 0)
    variance = tf.reduce_sum((latents - mean) ** 2, 0) / (latents.shape[0] - 1)
    return tf.reduce_mean((mean**2 + variance - tf.math.log(variance) - 1) / 2)


def paper_external(logits):
    return -tf.reduce_mean(tf.math.log(1 / (1 + tf.exp(-logits))))


def paper_internal(logits):
    return -tf.reduce_mean(tf.math.log(1 - 1 / (1 + tf.exp(-logits))))


def paper_wake(model, images, weights=(1.0, 1.0, 1.0), noise=0.0):
    """Wake's loss for encoder and discriminator, and for the generator, as functions."""

    def reconstruction():
        rebuilt = model.generator(model.encoder(images)["latent"] + noise)
        return weights[0] * paper_reconstruction(images, rebuilt)

    def everything():
        outputs = model.encoder(images)
        prior = weights[1] * paper_prior(outputs["latent"])
        return reconstruction() + prior + weights[2] * paper_external(outputs["external_logit"])

    return everything, reconstruction


# Wake.


@pytest.mark.parametrize("loss_weights", [(1.0, 1.0, 1.0), (2.0, 0.5, 3.0), (1.0, 1.0, 0.0)])
def test_wake_descends_the_papers_losses_and_returns_the_latents_before_its_update(loss_weights):
    names = ("reconstruction_weight", "kl_weight", "external_weight")
    model, images = new_model("sgd", **dict(zip(names, loss_weights, strict=True))), signed()
    before = model.encoder(images)["latent"]
    losses = paper_wake(model, images, loss_weights)
    returned = assert_descends(lambda: model.wake(images), model, *losses)
    np.testing.assert_allclose(returned, before, rtol=1e-5)
    assert np.abs(model.encoder(images)["latent"] - before).max() > 0.01


def test_wake_noise_has_its_variance_and_is_added_in_front_of_the_generator_only(monkeypatch):
    model, images = new_model("sgd", wake_noise_variance=0.5), signed()
    drawn = model.wake_noise(tf.zeros([4000, LATENT]), [3, 1]).numpy()
    assert abs(drawn.var() - 0.5) < 5 * 0.5 * np.sqrt(2 / drawn.size)
    noise, clean = random_latents(5), model.encoder(images)["latent"]
    monkeypatch.setattr(PAD, "wake_noise", lambda *_: noise)
    losses = paper_wake(model, images, noise=noise)
    latents = assert_descends(lambda: model.wake(images), model, *losses)
    np.testing.assert_allclose(latents, clean, rtol=1e-5)


def test_wake_makes_the_latents_of_glimpses_agree():
    agreement = Spread()
    model = new_model("sgd", glimpse=Darker(0.5), agreement=agreement, agreement_weight=3.0)
    images = signed(1)
    everything, reconstruction = paper_wake(model, images)

    def with_agreement():
        views = tf.stack([model.encoder(0.5 * images)["latent"]] * agreement.views)
        return everything() + 3.0 * agreement(model.encoder(images)["latent"], views)

    assert_descends(lambda: model.wake(images), model, with_agreement, reconstruction)


@pytest.mark.parametrize("glimpse", [None, Darker(0.5)])
def test_wake_makes_the_dimensions_of_latents_and_glimpses_independent(glimpse):
    agreement = Spread()
    parts = {"glimpse": glimpse, "agreement": agreement, "agreement_weight": 1e-9}
    model = new_model("sgd", decorrelation_weight=3.0, **parts)
    images = signed(1)
    everything, reconstruction = paper_wake(model, images)

    def decorrelated():
        latents = model.encoder(images)["latent"]
        if glimpse is not None:
            views = [model.encoder(0.5 * images)["latent"]] * agreement.views
            latents = tf.concat([latents, *views], axis=0)
        deviations = latents - tf.reduce_mean(latents, axis=0)
        covariances = tf.einsum("bi,bj->ij", deviations, deviations) / (len(latents) - 1)
        between = tf.reduce_sum((covariances * (1 - tf.eye(LATENT))) ** 2)
        return everything() + 3.0 * between / LATENT

    assert_descends(lambda: model.wake(images), model, decorrelated, reconstruction)
    assert "wake/decorrelation_loss" in model.get_metrics_result()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("mixed_bfloat16", 0.1)])
def test_wake_descends_the_penalty_on_the_discriminators_gradient(dtype, tolerance):
    # Keras's own layers in double precision have no gradients written by hand.
    model, plain = (new_model("sgd", dtype=dtype, gradient_penalty_weight=g) for g in (30.0, 0.0))
    images = signed(1)

    def exact(layer):
        return builtin(layer).from_config({**layer.get_config(), "dtype": "float64"})

    encoder = keras.models.clone_model(model.encoder, clone_function=exact)
    encoder.set_weights(model.encoder.get_weights())

    def penalty():
        with tf.GradientTape() as to_images:
            exact_images = tf.cast(images, tf.float64)
            to_images.watch(exact_images)
            logits = encoder(exact_images)["external_logit"]
        slopes = to_images.gradient(logits, exact_images)
        return tf.reduce_mean(tf.reduce_sum(slopes**2, axis=[1, 2, 3])) / 2

    expected = gradients(penalty, encoder)
    for each in (model, plain):
        each.wake(images)
    with_penalty, without = weights(model), weights(plain)
    for name in ("trunk_0/kernel", "trunk_1/kernel", "external_head/kernel"):
        gradient = (with_penalty.pop(name) - without.pop(name)) / -30
        error = np.linalg.norm(gradient - expected[name])
        assert error < tolerance * np.linalg.norm(expected[name]), name
    unmoved = {"latent_head/kernel", "external_head/bias", *GENERATOR}
    assert_close(*({name: each[name] for name in unmoved} for each in (with_penalty, without)))
    np.testing.assert_allclose(
        model.get_metrics_result()["wake/gradient_penalty_loss"], penalty(), rtol=tolerance
    )
    assert "wake/gradient_penalty_loss" not in plain.get_metrics_result()


# NREM and REM.


@pytest.mark.parametrize(
    ("seen", "weight", "parts"),
    [
        (1.0, 1.0, UNOCCLUDED),
        (1.0, 3.0, UNOCCLUDED),
        (0.0, 1.0, {"perturbation": Occlusion((1.0, 1.0))}),
        (0.25, 1.0, {"perturbation": Darker(0.25), "recovery": Spread()}),
    ],
)
def test_nrem_descends_the_distance_to_the_latents_recovered_from_what_is_seen_of_the_dream(
    seen, weight, parts
):
    model, latents = new_model("sgd", recovery_weight=weight, **parts), random_latents(1)
    dreams = model.generator(latents).numpy()

    def loss():
        return weight * tf.reduce_mean((latents - model.encoder(seen * dreams)["latent"]) ** 2)

    assert_descends(lambda: model.nrem(latents, random_latents(2)), model, loss)


def test_views_are_perturbed_by_draws_of_their_own_and_a_part_learns(monkeypatch):
    masks = record(monkeypatch, ad_keras.pad.perturbations, "occlusion_mask")
    model = new_model("sgd", recovery=Spread(), perturbation=Occlusion((0.5, 0.5), (2, 2)))
    model.nrem(random_latents(1), random_latents(2))
    assert len(masks) == len(np.unique([mask.ravel() for mask in masks], axis=0)) == 3
    assert np.abs(model.recovery.scale.numpy() - 1).max() > 1e-3


@pytest.mark.parametrize("weight", [1.0, 2.5])
@pytest.mark.parametrize(
    ("adversary", "fooling"),
    [
        (Minimax(), lambda logits: -paper_internal(logits)),
        (Twofold(), lambda logits: 2 * paper_external(logits)),
    ],
)
def test_rem_descends_in_the_encoder_while_the_generator_does_what_the_adversary_says(
    adversary, fooling, weight
):
    model = new_model("sgd", mixing=Mixing(0.75, 1.0), adversary=adversary, internal_weight=weight)
    latents, recalled = random_latents(1), random_latents(2)

    def logits():
        dreams = model.generator(0.75 * latents + 0.25 * recalled)
        return model.encoder(dreams)["external_logit"]

    assert_descends(
        lambda: model.rem(latents, recalled),
        model,
        lambda: weight * paper_internal(logits()),
        lambda: weight * fooling(logits()),
    )


@pytest.mark.parametrize("phase", ["nrem", "rem"])
def test_mixed_dreams_are_of_what_the_mixing_returns(phase):
    latents, recalled, mixed = (random_latents(seed) for seed in range(3))
    asked = []

    def mixing(*arguments):
        asked.append(arguments)
        return mixed

    model = new_model("sgd", mixing=mixing, nrem_memories="mixed", **UNOCCLUDED)
    plain = new_model("sgd", mixing=Mixing(1.0, 1.0), **UNOCCLUDED)
    getattr(model, phase)(latents, recalled)
    getattr(plain, phase)(mixed, recalled)
    assert_equal(weights(model), weights(plain))
    ((newer, older, _),) = asked
    np.testing.assert_array_equal(newer, latents)
    np.testing.assert_array_equal(older, recalled)


# The optimizers.


@pytest.mark.parametrize(
    ("phase", "untouched"), [("nrem", EXTERNAL_HEAD | GENERATOR), ("rem", LATENT_HEAD)]
)
def test_a_phase_leaves_weights_and_momenta_of_what_it_does_not_touch(phase, untouched):
    model = new_model()
    model.train_step(pixels())  # all momenta are alive
    optimizers = (model.encoder_optimizer, model.generator_optimizer)
    before, slots = weights(model), state(*optimizers)
    getattr(model, phase)(random_latents(1), random_latents(2))
    assert moved(before, weights(model)) == set(before) - untouched
    changed = moved(slots, state(*optimizers))
    for path in before:
        own = {slot for slot in slots if path.replace("/", "_") in slot}
        assert len(own) == 3, path  # two moments and a count
        assert bool(own & changed) == (path not in untouched), path
        assert all(np.abs(slots[slot]).max() > 0 for slot in own), path


def test_the_default_optimizers_are_the_papers_and_serve_all_phases():
    model = new_model()
    model.train_step(pixels())
    for optimizer, phases in ((model.encoder_optimizer, 3), (model.generator_optimizer, 2)):
        config = optimizer.get_config()
        assert isinstance(optimizer, FusedAdam)
        assert config["learning_rate"] == pytest.approx(2e-4)
        assert (config["beta_1"], config["beta_2"], config["epsilon"]) == (0.5, 0.999, 1e-8)
        assert optimizer.iterations.numpy() == phases


# A whole step.


@pytest.mark.parametrize(
    "phases", [("wake", "nrem", "rem"), ("wake", "rem", "nrem"), ("wake", "rem"), ("wake",)]
)
def test_a_step_runs_the_phases_in_the_given_order(monkeypatch, phases):
    ran, latents = [], random_latents(1)
    for name in ("wake", "nrem", "rem"):
        monkeypatch.setattr(PAD, name, lambda *_, name=name: ran.append(name) or latents)
    model = new_model(phases=phases)
    model.train_step(pixels())
    assert ran == list(phases)
    assert model.step.numpy() == 1


def test_dreams_get_the_latents_of_both_batches_from_before_their_updates(monkeypatch):
    given = []

    def spied(self, latents, recalled):
        given.append((latents.numpy(), recalled.numpy()))

    monkeypatch.setattr(PAD, "nrem", spied)
    monkeypatch.setattr(PAD, "rem", spied)
    model = new_model("sgd", learning_rate=0.1)
    encoded = []
    for step in range(3):
        encoded.append(model.encoder(signed(step))["latent"].numpy())
        model.train_step(pixels(step))
        changed = model.encoder(signed(step))["latent"]
        assert np.abs(changed - encoded[-1]).max() > 0.001
    for step in range(3):
        for latents, recalled in given[2 * step : 2 * step + 2]:
            np.testing.assert_allclose(latents, encoded[step], rtol=1e-4, atol=1e-6)
            # At the first step there is no earlier memory, and the latents are their own partners.
            np.testing.assert_allclose(recalled, encoded[max(step - 1, 0)], rtol=1e-4, atol=1e-6)


def test_metrics_are_the_papers_losses_unweighted_in_training_and_in_evaluation():
    # At learning rate 0 all phases see the same weights.
    names = ("reconstruction", "kl", "external", "recovery", "internal")
    factors = {f"{name}_weight": 7.0 for name in names}
    model = new_model("sgd", 0.0, mixing=Mixing(0.5, 1.0), **UNOCCLUDED, **factors)
    images = signed()
    outputs = model.encoder(images)
    latents = outputs["latent"]
    rebuilt = model.generator(latents)

    def expected(mixed):
        logits = model.encoder(model.generator(mixed))["external_logit"]
        return {
            "wake/reconstruction_loss": paper_reconstruction(images, rebuilt),
            "wake/kl_loss": paper_prior(latents),
            "wake/external_loss": paper_external(outputs["external_logit"]),
            "wake/external_probability": np.mean(1 / (1 + np.exp(-outputs["external_logit"]))),
            "nrem/recovery_loss": np.mean((latents - model.encoder(rebuilt)["latent"]) ** 2),
            "rem/internal_loss": paper_internal(logits),
            "rem/external_probability": np.mean(1 / (1 + np.exp(-logits))),
        }

    trained = model.train_step(images)
    model.reset_metrics()
    tested = model.test_step(images)
    # Training's first latents are their own partners, evaluation's are their neighbours'.
    for actual, mixed in ((trained, latents), (tested, (latents + tf.roll(latents, 1, 0)) / 2)):
        assert set(actual) == set(expected(mixed))
        for name, value in expected(mixed).items():
            np.testing.assert_allclose(actual[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("phase", ["wake", "nrem", "rem"])
def test_a_network_is_moved_by_a_gradient_of_the_largest_norm_at_most(phase):
    images, latents = signed(), random_latents(1)

    def moves(limit):
        model = new_model("sgd", clip_norm=limit)
        before = weights(model)
        model.wake(images) if phase == "wake" else getattr(model, phase)(latents, latents)
        whole = {path: value - before[path] for path, value in weights(model).items()}
        networks = ({weight.path for weight in n.weights} for n in (model.encoder, model.generator))
        return [{path: whole[path] for path in network} for network in networks]

    def norm(move):
        return np.sqrt(sum(np.sum(value.astype(np.float64) ** 2) for value in move.values()))

    free = moves(0.0)
    norms = [norm(move) for move in free]
    limit = min(value for value in norms if value) / 2 if phase == "nrem" else np.mean(norms)
    assert sum(value > limit for value in norms) == 1  # in wake and REM, the other is within it
    for clipped, move, value in zip(moves(limit), free, norms, strict=True):
        share = min(1.0, limit / value) if value else 1.0
        for path, each in move.items():
            np.testing.assert_allclose(clipped[path], share * each, rtol=1e-3, atol=1e-6)


def test_averages_follow_the_weights_after_each_step_and_serve_only_while_they_are_lent():
    fresh = build_model(Config(**TINY, average_weights=0.3))
    assert_equal(averages(fresh), weights(fresh))
    model, plain = (new_model(average_weights=decay) for decay in (0.3, 0.0))
    expected = averages(model)
    for step in range(3):
        for each in (model, plain):
            each.train_step(pixels(step))
        decay = min(0.3, (1 + step) / (10 + step))
        for path, value in weights(model).items():
            expected[path] = decay * expected[path] + (1 - decay) * value
    for path, value in averages(model).items():
        np.testing.assert_allclose(value, expected[path], atol=1e-6, err_msg=path)
    assert averages(plain) == {}
    before, lent = everything_kept(model), averages(model)
    assert_equal({name: before[name] for name in everything_kept(plain)}, everything_kept(plain))
    with model.averaged_weights():
        assert_equal(weights(model), lent)
        assert moved(weights(model), before) == set(lent)
    assert_equal(everything_kept(model), before)


# The paper's settings.


def mixing(recent=0.5, memories=0.5):
    return {"mixing": {"recent": recent, "memories": memories}}


FULL = {
    "name": "pad",
    "hippocampus": 64,
    **mixing(),
    "perturbation": {"probability_range": (0.0, 1.0), "tile_range": (1, 8), "per_image": False},
    "recovery": "LatentDistance",
    "adversary": "Minimax",
    "glimpse": None,
    "agreement": "Contrast",
    "phases": ("wake", "nrem", "rem"),
    "reconstruction_weight": 1.0,
    "kl_weight": 1.0,
    "decorrelation_weight": 0.0,
    "external_weight": 1.0,
    "agreement_weight": 1.0,
    "recovery_weight": 1.0,
    "internal_weight": 1.0,
    "gradient_penalty_weight": 0.0,
    "wake_noise_variance": 0.0,
    "nrem_memories": "single",
    "clip_norm": 0.0,
    "average_weights": 0.0,
    "seed": 0,
}
WITHOUT_EXTERNAL = {"external_weight": 0.0, "wake_noise_variance": 0.5}
OTHERS = {
    "full": {},
    "no_memory_mix": mixing(1.0, 1.0),
    "no_rem": {"phases": ("wake", "nrem"), "recovery_weight": 0.5, **WITHOUT_EXTERNAL},
    "no_nrem": {"phases": ("wake", "rem")},
    "wake_only": {"phases": ("wake",), **WITHOUT_EXTERNAL},
    "rem_noise_only": mixing(memories=0.0),
    "rem_mix_only": mixing(memories=1.0),
    "rem_before_nrem": {"phases": ("wake", "rem", "nrem")},
    "nrem_mixed": {"nrem_memories": "mixed"},
}


def test_the_full_model_is_the_default_and_every_argument_is_a_public_attribute():
    networks = {**TINY, "image_size": 32}
    plain = PAD(build_encoder(**networks), build_generator(**networks))
    assert settings(plain) == FULL
    assert set(plain.get_config()) == set(inspect.signature(PAD).parameters) - {"kwargs"}
    assert all(hasattr(plain, name) for name in plain.get_config())
    assert set(CONDITIONS) == set(OTHERS)


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_is_the_papers_and_reports_its_own_losses(name):
    model = build_model(Config(**TINY, **CONDITIONS[name]))
    assert settings(model) == {**FULL, **OTHERS[name]}
    external = {"wake/external_loss", "wake/external_probability"}
    nrem, rem = {"nrem/recovery_loss"}, {"rem/internal_loss", "rem/external_probability"}
    left_out = {"no_rem": external | rem, "no_nrem": nrem, "wake_only": external | nrem | rem}
    reported = {"wake/reconstruction_loss", "wake/kl_loss"} | external | nrem | rem
    result = model.train_step(pixels(count=4, size=32))
    assert set(result) == reported - left_out.get(name, set())
    assert all(np.isfinite(value) for value in result.values())
    assert set(model.test_step(pixels(count=4, size=32))) == set(result)


def test_every_name_of_a_part_gives_another_part():
    fields = {field.name: field.metadata for field in dataclasses.fields(Config)}
    kinds = ("hippocampus", "mixing", "recovery", "agreement", "adversary")
    seen = set()
    for names in zip(*(fields[kind]["choices"] for kind in kinds), strict=True):
        model = build_model(Config(**TINY, **dict(zip(kinds, names, strict=True))))
        seen |= {(k, str(keras.saving.serialize_keras_object(getattr(model, k)))) for k in kinds}
    assert len(seen) == 4 * len(kinds)
    glimpse = build_model(Config(**TINY, glimpse=PERTURBATIONS)).glimpse
    assert [type(part).__name__.lower() for part in glimpse.perturbations] == [*PERTURBATIONS]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("Mixing", {"memories": 2, "recent": -0.5}),
        ("ManyMemoriesMixing", {"older": 0}),
        ("Occlusion", {"probability_range": (2, 3), "tile_range": (0, 8)}),
        ("Occlusion", {"probability_range": (0.8, 0.2), "tile_range": (3, 2)}),
        ("Occlusion", {"tile_range": (1, 2.5)}),
        ("Crop", {"area_range": (0, 1), "aspect_range": (2, 1)}),
        ("Shift", {"share": 1.5}),
        ("Rotation", {"degrees": -1}),
        ("Flip", {"probability": 2}),
        ("Grey", {"probability": -1}),
        ("Colour", {"strength": 1.5}),
        ("Blur", {"deviation_range": (0, 1)}),
        ("Noise", {"deviation": -0.1}),
        ("Contrast", {"temperature": 0, "views": 1}),
        ("CodingRate", {"distortion": 0, "similarity": -1}),
        ("VICReg", {"covariance": -1, "views": 1}),
        ("Hippocampus", {"capacity": 0}),
        ("EpisodicHippocampus", {"replacement": "none"}),
        ("AssociativeHippocampus", {"beta": 0, "cue": 0}),
        ("PAD", {"recovery_weight": 0.0, "kl_weight": -1, "gradient_penalty_weight": -1}),
        ("PAD", {"wake_noise_variance": -0.1, "nrem_memories": "both"}),
        ("PAD", {"decorrelation_weight": -1, "clip_norm": -1}),
    ],
)
def test_impossible_arguments_raise_in_one_line_that_names_them(kind, arguments):
    make = new_model if kind == "PAD" else getattr(ad_keras, kind)
    for name, value in arguments.items():
        told = re.escape(f"{name} is {value!r}, but must be ")
        with pytest.raises(ValueError, match=rf"^{told}[^\n]+\.$"):
            make(**{name: value})


@pytest.mark.parametrize(
    "phases",
    [
        *(("wake", "wake"), ("nrem",), ("nrem", "wake"), ("wake", "dream"), (), "wake"),
        ("wake", "rem", "rem"),
    ],
)
def test_impossible_phases_are_refused(phases):
    with pytest.raises(ValueError, match=r"^phases is .* must be 'wake', then [^\n]+$"):
        new_model(phases=phases)


def test_a_penalty_without_an_external_loss_is_refused():
    told = "^gradient_penalty_weight is 1, but must be 0 without an external loss.$"
    with pytest.raises(ValueError, match=told):
        new_model(gradient_penalty_weight=1, external_weight=0)


# Images.


def test_uint8_and_signed_float_images_are_the_same_and_labels_are_ignored():
    images = signed()
    models = [new_model() for _ in range(3)]
    inputs = (pixels(), (images, np.arange(BATCH)), images.numpy().astype(np.float64))
    for model, given in zip(models, inputs, strict=True):
        model.train_step(given)
    for model in models[1:]:
        assert_close(weights(model), weights(models[0]))
    np.testing.assert_allclose(model(pixels())["latent"], model(images)["latent"], atol=1e-5)


def test_signed_images_and_pixels_are_inverse():
    everything = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = as_signed(everything)
    assert floats.dtype == tf.float32
    assert (floats.numpy().min(), floats.numpy().max()) == (-1, 1)
    np.testing.assert_array_equal(to_pixels(floats), everything)
    np.testing.assert_array_equal(to_pixels(tf.constant([-3.0, 3.0])), [0, 255])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_integers_of_unknown_range_are_refused(dtype):
    with pytest.raises(ValueError, match=f"of type {np.dtype(dtype).name}: they must be uint8"):
        as_signed(pixels().astype(dtype))


@pytest.mark.parametrize(
    ("count", "message"), [(BATCH + 1, r"hippocampus=Hippocampus\(capacity\)"), (1, "at least 2")]
)
def test_an_impossible_mini_batch_raises_and_says_what_to_do(count, message):
    model = new_model()
    before = weights(model)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.train_step(pixels(count=count))
    assert count > 1 or not moved(before, weights(model))


# Randomness.


def test_random_numbers_are_a_function_of_seed_step_and_phase_and_others_in_evaluation(monkeypatch):
    noise = record(monkeypatch, replicas, "normal")
    masks = record(monkeypatch, ad_keras.pad.perturbations, "occlusion_mask")
    occlusion = Occlusion((0.5, 0.5), (2, 2))
    parts = {"nrem_memories": "mixed", "wake_noise_variance": 1.0, "perturbation": occlusion}
    drawn = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        noise.clear()
        masks.clear()
        model = new_model(seed=seed, **parts)
        model.step.assign(step)
        model.train_step(pixels())
        assert (len(noise), len(masks)) == (3, 1)  # wake, mixed NREM and REM; NREM
        drawn.append([*noise, *masks])
    np.testing.assert_equal(drawn.pop(), drawn[0])
    model.reset_metrics()
    for _ in range(2):
        model.test_step(pixels())
        drawn.append([*noise[-3:], masks[-1]])
    normal = np.array([values.ravel() for draw in drawn for values in draw[:3]])
    correlations = np.corrcoef(normal)[np.triu_indices(len(normal), 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(BATCH * LATENT)
    assert len(np.unique([draw[3].ravel() for draw in drawn], axis=0)) == len(drawn) == 5


def test_a_steps_noise_does_not_depend_on_other_phases(monkeypatch):
    noise = record(monkeypatch, Mixing, "__call__")
    for phases in (("wake", "rem"), ("wake", "rem", "nrem"), ("wake", "nrem", "rem")):
        new_model(phases=phases, mixing=Mixing(0.5, 0.0)).train_step(pixels())
    assert len(noise) == 3
    np.testing.assert_array_equal(noise[1:], [noise[0]] * 2)


# As a Keras model.


def test_several_steps_per_execution_with_xla_are_the_same_steps():
    plain, compiled = (new_model("sgd", 0.01, size=8) for _ in range(2))  # which compiles sooner
    optimizers = (compiled.encoder_optimizer, compiled.generator_optimizer)
    compiled.compile(*optimizers, jit_compile=True, steps_per_execution=3)
    compiled.fit(dataset(size=8), verbose=0, shuffle=False)
    for images in dataset(size=8):
        plain.train_step(images)
    assert compiled.step.numpy() == 3
    assert_close(weights(compiled), weights(plain))


def test_evaluation_touches_nothing_and_is_repeatable():
    model = new_model()
    model.run_eagerly = True
    model.train_step(pixels(5))
    before = everything_kept(model)
    first = model.evaluate(dataset(), verbose=0, return_dict=True)
    assert_equal(everything_kept(model), before)
    model.step.assign(77)  # noise and masks do not depend on the training's step
    assert model.evaluate(dataset(), verbose=0, return_dict=True) == first
    assert all(np.isfinite(value) for value in first.values())


def test_fit_takes_float_images_and_an_incomplete_last_batch():
    model = new_model()
    before = weights(model)
    count = 2 * BATCH + 4
    history = model.fit(
        dataset(0, count, signed),
        validation_data=dataset(1, count),
        epochs=2,
        verbose=0,
        shuffle=False,
    ).history
    assert moved(before, weights(model)) == set(before)
    assert model.step.numpy() == 6
    names = set(model.get_metrics_result())
    assert set(history) == names | {f"val_{name}" for name in names}
    assert all(np.isfinite(values).all() and len(values) == 2 for values in history.values())
    assert history["wake/reconstruction_loss"][1] < history["wake/reconstruction_loss"][0]
    assert model.hippocampus.stored.numpy() == 4


def test_predict_gives_latents_probabilities_and_reconstructions():
    model = new_model()
    images = pixels(count=5)
    outputs = model.predict(images, verbose=0)
    encoded = model.encoder(signed(count=5))
    np.testing.assert_allclose(outputs["latent"], encoded["latent"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        outputs["external_probability"], 1 / (1 + np.exp(-encoded["external_logit"])), rtol=1e-5
    )
    np.testing.assert_allclose(
        outputs["reconstruction"], model.generator(encoded["latent"]), atol=1e-5
    )


def with_other_settings():
    return new_model(
        mixing=Mixing(recent=0.25),
        perturbation=Occlusion((0.1, 0.9), (2, 4)),
        phases=["wake", "rem", "nrem"],
    )


def with_parts_and_optimizers_of_ones_own():
    model = new_model(recovery=Spread(), perturbation=Darker(0.3), adversary=Twofold())
    rms = keras.optimizers.RMSprop(0.001, rho=0.8)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), rms)
    return model


def with_the_packages_other_parts():
    parts = {
        "batch_size": 4,
        "network": "residual",
        "hippocampus": "associative",
        "hippocampus_capacity": 6,
        "mixing": "many_memories",
        "perturbation": ("crop", "rotation", "noise"),
        "recovery": "contrast",
        "glimpse": ("crop", "occlusion"),
        "agreement": "vicreg",
        "adversary": "least_squares",
        "decorrelation_weight": 0.1,
        "gradient_penalty_weight": 0.5,
        "clip_norm": 0.5,
        "average_weights": 0.9,
    }
    return build_model(Config(**TINY, **parts))


@pytest.mark.parametrize(
    "make",
    [with_other_settings, with_parts_and_optimizers_of_ones_own, with_the_packages_other_parts],
)
def test_a_saved_and_loaded_model_continues_bit_for_bit(tmp_path, make):
    model = make()
    size = model.encoder.inputs[0].shape[1]
    model.train_step(pixels(0, 4, size))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is PAD
    assert settings(loaded) == settings(model)
    assert loaded.encoder_optimizer.get_config() == model.encoder_optimizer.get_config()
    assert_equal(everything_kept(loaded), everything_kept(model))
    for each in (model, loaded):
        each.train_step(pixels(1, 4, size))
    assert loaded.step.numpy() == 2
    assert_equal(everything_kept(loaded), everything_kept(model))
    for own, kept in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(own, kept, err_msg=own.path)


def test_layers_that_perturb_are_built_for_images():
    model = new_model(perturbation=Tint(), glimpse=Tint())
    model.train_step(pixels())
    for part in (model.perturbation, model.glimpse):
        assert part.tint.shape == (3,)


def test_saved_weights_restore_networks_memory_and_step(tmp_path):
    model = new_model()
    model.train_step(pixels())
    model.save_weights(tmp_path / "model.weights.h5")
    other = new_model()
    other.hippocampus.store(tf.ones([BATCH, LATENT]))
    other.load_weights(tmp_path / "model.weights.h5")
    for own, kept in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(own, kept, err_msg=own.path)
    assert other.step.numpy() == 1
