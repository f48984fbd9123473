"""Tests of the phases against plain re-implementations, and of PAD as a Keras model."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import ad_keras.pad.perturbations
from ad_keras import (
    PAD,
    Hippocampus,
    LatentDistance,
    Minimax,
    Mixing,
    Occlusion,
    Part,
    build_encoder,
    build_generator,
)
from ad_keras.compute import draws, replicas
from ad_keras.compute.layers import builtin
from ad_keras.compute.optimizers import FusedAdam
from ad_keras.data.pixels import as_signed, to_pixels
from ad_keras.runs.build import build_model
from ad_keras.runs.config import CONDITIONS, PERTURBATIONS, Config

SIZE, LATENT, BATCH = 16, 8, 8
NETWORKS = {"image_size": SIZE, "latent_dim": LATENT, "base_filters": 4}
UNOCCLUDED = {"perturbation": Occlusion((0.0, 0.0))}
TRUNK = {f"trunk_{block}/{weight}" for block in range(2) for weight in ("kernel", "bias")}
LATENT_HEAD = {"latent_head/kernel", "latent_head/bias"}
EXTERNAL_HEAD = {"external_head/kernel", "external_head/bias"}
GENERATOR = {
    f"{layer}/{weight}"
    for layer in ("project", "unfold_0", "unfold_1")
    for weight in ("kernel", "bias")
}


def new_model(optimizer="adam", learning_rate=1.0, dtype="float32", **settings):
    """A small PAD whose weights are large enough for gradients that float32 resolves well."""
    settings = {"hippocampus": Hippocampus(BATCH), **settings}
    networks = (build(**NETWORKS, dtype=dtype) for build in (build_encoder, build_generator))
    model = PAD(*networks, **settings)
    rng = np.random.default_rng(0)
    for network in (model.encoder, model.generator):
        network.set_weights([rng.normal(0, 0.15, w.shape) for w in network.get_weights()])
    if optimizer == "sgd":
        model.compile(keras.optimizers.SGD(learning_rate), keras.optimizers.SGD(learning_rate))
    else:
        model.compile()
    return model


def pixels(seed=0, count=BATCH):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def signed(seed=0, count=BATCH):
    return tf.constant(pixels(seed, count) / 127.5 - 1, tf.float32)


def random_latents(seed):
    return tf.constant(np.random.default_rng(seed).normal(size=(BATCH, LATENT)), tf.float32)


def dataset(seed=0, count=3 * BATCH, images=pixels):
    return tf.data.Dataset.from_tensor_slices(images(seed, count)).batch(BATCH)


def state(*networks):
    """Values by path of the variables of networks or optimizers."""
    return {v.path: v.numpy().copy() for n in networks for v in n.variables}


def settings(model):
    """The constructor's arguments but for the networks, parts as their own arguments."""
    config = model.get_config()
    parts = {name: config[name]["config"] for name in ("mixing", "perturbation")}
    parts["hippocampus"] = config["hippocampus"]["config"]["capacity"]
    parts |= {name: config[name]["class_name"] for name in ("recovery", "adversary", "agreement")}
    return {k: v for k, v in {**config, **parts}.items() if k not in ("encoder", "generator")}


def memory(model):
    return {v.name: v.numpy().copy() for v in model.hippocampus.variables}


def weights(model):
    return state(model.encoder, model.generator)


def changes(before, after):
    return {path: after[path] - before[path] for path in before}


def moved(before, after):
    return {path for path in before if (before[path] != after[path]).any()}


def gradients(loss, *networks):
    """Gradients by path of what `loss()` returns; zeros where it does not depend on a variable."""
    variables = [v for n in networks for v in n.trainable_variables]
    with tf.GradientTape() as tape:
        value = loss()
    found = tape.gradient(value, variables)
    return {
        v.path: np.zeros(v.shape) if g is None else g.numpy()
        for v, g in zip(variables, found, strict=True)
    }


def assert_close(actual, expected, significant=True):
    assert set(actual) == set(expected)
    for path, value in expected.items():
        scale = np.abs(value).max()
        assert not significant or scale > 1e-4, path
        np.testing.assert_allclose(actual[path], value, atol=1e-3 * scale + 2e-7, err_msg=path)


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(actual[path], value, err_msg=path)


def pick(values, names):
    return {path: values[path] for path in names}


def negative(values):
    return {path: -value for path, value in values.items()}


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
    """Wake's loss for encoder and discriminator, and for the generator."""
    outputs = model.encoder(images)
    rebuilt = model.generator(outputs["latent"] + noise)
    reconstruction = weights[0] * paper_reconstruction(images, rebuilt)
    rest = weights[1] * paper_prior(outputs["latent"])
    rest += weights[2] * paper_external(outputs["external_logit"])
    return reconstruction + rest, reconstruction


# Wake.


@pytest.mark.parametrize("loss_weights", [(1.0, 1.0, 1.0), (2.0, 0.5, 3.0), (1.0, 1.0, 0.0)])
def test_wake_descends_the_papers_losses(loss_weights):
    names = ("reconstruction_weight", "kl_weight", "external_weight")
    model = new_model("sgd", **dict(zip(names, loss_weights, strict=True)))
    images, before = signed(), weights(model)
    encoder = gradients(lambda: paper_wake(model, images, loss_weights)[0], model.encoder)
    generator = gradients(lambda: paper_wake(model, images, loss_weights)[1], model.generator)
    model.wake(images)
    expected = negative({**encoder, **generator})
    assert_close(changes(before, weights(model)), expected, significant=all(loss_weights))


def test_wake_returns_the_latents_from_before_its_update():
    model = new_model("sgd")
    before = model.encoder(signed())["latent"]
    np.testing.assert_allclose(model.wake(signed()), before, rtol=1e-5)
    after = model.encoder(signed())["latent"]
    assert np.abs(after - before).max() > 0.01


def test_wake_without_external_loss_leaves_the_external_head_alone():
    model = new_model(external_weight=0.0)
    for _ in range(2):
        before = weights(model)
        model.wake(signed())
        assert moved(before, weights(model)) == TRUNK | LATENT_HEAD | GENERATOR


def test_wake_with_external_loss_moves_everything():
    model = new_model()
    before = weights(model)
    model.wake(signed())
    assert moved(before, weights(model)) == TRUNK | LATENT_HEAD | EXTERNAL_HEAD | GENERATOR


def test_wake_noise_is_added_in_front_of_the_generator_only(monkeypatch):
    noise = random_latents(5)
    drawn = []

    def draw(latents, key):
        drawn.append(tuple(latents.shape))
        return noise

    model = new_model("sgd", wake_noise_variance=0.25)
    images, before = signed(), weights(model)
    encoder = gradients(lambda: paper_wake(model, images, noise=0.5 * noise)[0], model.encoder)
    generator = gradients(lambda: paper_wake(model, images, noise=0.5 * noise)[1], model.generator)
    monkeypatch.setattr(replicas, "normal", draw)
    latents = model.wake(images)
    assert drawn == [(BATCH, LATENT)]
    assert_close(changes(before, weights(model)), negative({**encoder, **generator}))
    monkeypatch.undo()
    clean = PAD.from_config({**model.get_config(), "wake_noise_variance": 0.0})
    for mine, other in ((model.encoder, clean.encoder), (model.generator, clean.generator)):
        other.set_weights([before[v.path] for v in mine.variables])
    np.testing.assert_allclose(latents, clean.encoder(images)["latent"], rtol=1e-5)


@pytest.mark.parametrize("variance", [0.5, 2.0])
def test_wake_noise_has_the_given_variance(variance):
    # With latents of 0 and a generator that hands them on as an image, the reconstruction of a
    # grey image is the noise itself.
    images = keras.Input((SIZE, SIZE, 3), name="images")
    flat = keras.layers.Flatten()(images)
    logit = keras.layers.Reshape(())(keras.layers.Dense(1)(flat))
    encoder = keras.Model(
        images, {"latent": keras.layers.Rescaling(0.0)(flat), "external_logit": logit}
    )
    latent = keras.Input((SIZE * SIZE * 3,), name="latent")
    generator = keras.Model(latent, keras.layers.Reshape((SIZE, SIZE, 3))(latent))
    model = PAD(encoder, generator, phases=["wake"], wake_noise_variance=variance)
    model.compile(run_eagerly=True)
    metrics = model.test_step(tf.zeros([64, SIZE, SIZE, 3]))
    tolerance = 5 * variance * np.sqrt(2 / (64 * SIZE * SIZE * 3))
    assert abs(metrics["wake/reconstruction_loss"] - variance) < tolerance


# NREM.


def test_nrem_descends_the_distance_to_the_latents_recovered_from_the_occluded_dream(monkeypatch):
    mask = np.ones((1, SIZE, SIZE, 1), np.float32)
    mask[:, 3:9, 2:7] = 0
    monkeypatch.setattr(ad_keras.pad.perturbations, "occlusion_mask", lambda *_: tf.constant(mask))
    model = new_model("sgd")
    latents = random_latents(1)
    dreams = model.generator(latents).numpy()

    def loss():
        recovered = model.encoder(dreams * mask)["latent"]
        return tf.reduce_mean((latents - recovered) ** 2)

    expected = negative(gradients(loss, model.encoder))
    before = weights(model)
    model.nrem(latents, random_latents(2))
    after = weights(model)
    encoder = changes(pick(before, expected), pick(after, expected))
    assert_close(pick(encoder, TRUNK | LATENT_HEAD), pick(expected, TRUNK | LATENT_HEAD))
    assert moved(before, after) == TRUNK | LATENT_HEAD


def test_nrem_without_occlusion_sees_the_dream_itself():
    model = new_model("sgd", recovery_weight=3.0, **UNOCCLUDED)
    latents = random_latents(1)
    dreams = model.generator(latents).numpy()

    def loss():
        return 3 * tf.reduce_mean((latents - model.encoder(dreams)["latent"]) ** 2)

    expected = negative(gradients(loss, model.encoder))
    before = weights(model)
    model.nrem(latents, random_latents(2))
    encoder = changes(pick(before, expected), pick(weights(model), expected))
    assert_close(pick(encoder, TRUNK | LATENT_HEAD), pick(expected, TRUNK | LATENT_HEAD))


def test_nrem_with_full_occlusion_sees_grey():
    model = new_model("sgd", perturbation=Occlusion((1.0, 1.0)))
    latents = random_latents(1)
    grey = tf.zeros([BATCH, SIZE, SIZE, 3])
    recovered = model.encoder(grey)["latent"]
    model.nrem(latents, random_latents(2))
    expected = np.mean((latents - recovered) ** 2)
    np.testing.assert_allclose(
        model.get_metrics_result()["nrem/recovery_loss"], expected, rtol=1e-5
    )


def test_nrem_moves_only_trunk_and_latent_head():
    model = new_model()
    model.train_step(pixels())  # all momenta are alive
    before = weights(model)
    model.nrem(random_latents(1), random_latents(2))
    assert moved(before, weights(model)) == TRUNK | LATENT_HEAD


def test_nrem_with_mixed_memories_replays_what_mix_returns(monkeypatch):
    latents, recalled, mixed = (random_latents(seed) for seed in range(3))
    asked = []

    def mix(self, *arguments):
        asked.append(arguments[:2])
        return mixed

    monkeypatch.setattr(Mixing, "__call__", mix)
    model, single = (
        new_model("sgd", nrem_memories=memories, **UNOCCLUDED) for memories in ("mixed", "single")
    )
    model.nrem(latents, recalled)
    assert len(asked) == 1
    np.testing.assert_array_equal(asked[0][0], latents)
    np.testing.assert_array_equal(asked[0][1], recalled)
    single.nrem(mixed, recalled)
    assert len(asked) == 1
    assert_equal(weights(model), weights(single))


@pytest.mark.parametrize(("per_image", "masks"), [(False, 1), (True, BATCH)])
def test_nrem_draws_one_mask_a_batch_or_one_an_image(monkeypatch, per_image, masks):
    drawn = record(monkeypatch, ad_keras.pad.perturbations, "occlusion_mask")
    model = new_model(perturbation=Occlusion((0.5, 0.5), (4, 4), per_image))
    model.nrem(random_latents(1), random_latents(2))
    mask = drawn[0]
    np.testing.assert_array_equal(mask[..., 0], np.kron(mask[:, ::4, ::4, 0], np.ones((4, 4))))
    assert mask.shape == (masks, SIZE, SIZE, 1)
    assert len(np.unique(mask, axis=0)) == masks


def record(monkeypatch, owner, name):
    """Keeps what a function returns from now on."""
    results, original = [], getattr(owner, name)

    def recorded(*arguments, **kwargs):
        result = original(*arguments, **kwargs)
        results.append(np.array(result))
        return result

    monkeypatch.setattr(owner, name, recorded)
    return results


# REM.


def paper_rem(model, mixed):
    dreams = model.generator(mixed)
    return paper_internal(model.encoder(dreams)["external_logit"])


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_rem_descends_in_the_encoder_and_ascends_in_the_generator(weight):
    model = new_model("sgd", mixing=Mixing(0.75, 1.0), internal_weight=weight)
    latents, recalled = random_latents(1), random_latents(2)
    mixed = 0.75 * latents + 0.25 * recalled
    found = gradients(lambda: weight * paper_rem(model, mixed), model.encoder, model.generator)
    before = weights(model)
    model.rem(latents, recalled)
    change = changes(before, weights(model))
    touched = TRUNK | EXTERNAL_HEAD
    assert_close(pick(change, touched), negative(pick(found, touched)))
    assert_close(pick(change, GENERATOR), pick(found, GENERATOR))  # exactly the other sign
    assert moved(before, weights(model)) == touched | GENERATOR


def test_rem_dreams_of_what_mix_returns(monkeypatch):
    latents, recalled, mixed = (random_latents(seed) for seed in range(3))
    asked = []

    def mix(self, *arguments):
        asked.append(arguments[:2])
        return mixed

    monkeypatch.setattr(Mixing, "__call__", mix)
    model = new_model("sgd")
    found = gradients(lambda: paper_rem(model, mixed), model.generator)
    before = weights(model)
    model.rem(latents, recalled)
    np.testing.assert_array_equal(asked[0][0], latents)
    np.testing.assert_array_equal(asked[0][1], recalled)
    change = changes(before, weights(model))
    assert_close(pick(change, GENERATOR), found)


def test_rem_leaves_the_latent_head_alone():
    model = new_model()
    model.train_step(pixels())  # all momenta are alive
    before = weights(model)
    model.rem(random_latents(1), random_latents(2))
    assert moved(before, weights(model)) == TRUNK | EXTERNAL_HEAD | GENERATOR


@pytest.mark.parametrize(("recent", "memories"), [(0.5, 0.5), (0.3, 0.8), (1.0, 0.25), (0.0, 0.0)])
def test_mix_is_the_papers_formula_with_standard_normal_noise(recent, memories):
    mixing = Mixing(recent, memories)
    rng = np.random.default_rng(0)
    latents, recalled = (tf.constant(rng.normal(size=(500, 40)), tf.float32) for _ in range(2))
    mixed = mixing(latents, recalled, [1, 2])
    assert mixed.dtype == tf.float32
    remembered = memories * (recent * latents + (1 - recent) * recalled)
    noise = ((mixed - remembered) / (1 - memories)).numpy()
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    assert (np.abs(np.corrcoef(noise.T) - np.eye(40)) < 5 / np.sqrt(500)).all()
    np.testing.assert_array_equal(mixed, mixing(latents, recalled, [1, 2]))
    assert (mixed.numpy() != mixing(latents, recalled, [1, 3]).numpy()).any()


@pytest.mark.parametrize("recent", [1.0, 0.5])
def test_mix_of_memories_alone_has_no_noise(recent):
    latents, recalled = random_latents(1), random_latents(2)
    expected = recent * latents + (1 - recent) * recalled
    np.testing.assert_array_equal(Mixing(recent, 1.0)(latents, recalled, [0, 0]), expected)


# The optimizers' state.


@pytest.mark.parametrize(
    ("phase", "untouched"), [("nrem", EXTERNAL_HEAD | GENERATOR), ("rem", LATENT_HEAD)]
)
def test_a_phase_leaves_the_momenta_of_what_it_does_not_touch(phase, untouched):
    model = new_model()
    model.train_step(pixels())
    optimizers = (model.encoder_optimizer, model.generator_optimizer)
    before = state(*optimizers)
    getattr(model, phase)(random_latents(1), random_latents(2))
    changed = moved(before, state(*optimizers))
    for path in TRUNK | LATENT_HEAD | EXTERNAL_HEAD | GENERATOR:
        slots = {slot for slot in before if path.replace("/", "_") in slot}
        assert len(slots) == 3, path  # two moments and a count
        assert bool(slots & changed) == (path not in untouched), path
        assert all(np.abs(before[slot]).max() > 0 for slot in slots), path


def test_the_default_optimizers_are_the_papers():
    model = new_model()
    assert model.encoder_optimizer is not model.generator_optimizer
    for optimizer in (model.encoder_optimizer, model.generator_optimizer):
        config = optimizer.get_config()
        assert isinstance(optimizer, FusedAdam)
        assert config["learning_rate"] == pytest.approx(2e-4)
        assert (config["beta_1"], config["beta_2"], config["epsilon"]) == (0.5, 0.999, 1e-8)


def test_an_optimizer_serves_all_phases():
    model = new_model()
    model.train_step(pixels())
    assert model.encoder_optimizer.iterations.numpy() == 3
    assert model.generator_optimizer.iterations.numpy() == 2


# A whole step.


@pytest.mark.parametrize(
    "phases",
    [
        ("wake", "nrem", "rem"),
        ("wake", "rem", "nrem"),
        ("wake", "rem"),
        ("wake", "nrem"),
        ("wake",),
    ],
)
def test_a_step_runs_the_phases_in_the_given_order(monkeypatch, phases):
    ran = []
    for name in ("wake", "nrem", "rem"):
        original = getattr(PAD, name)

        def spied(self, *arguments, name=name, original=original):
            ran.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(PAD, name, spied)
    model = new_model(phases=phases)
    model.train_step(pixels())
    assert ran == list(phases)
    assert model.step.numpy() == 1


@pytest.mark.parametrize(
    "phases",
    [
        ("wake", "wake"),
        ("nrem",),
        ("nrem", "wake"),
        ("wake", "dream"),
        (),
        "wake",
        ("wake", "rem", "rem"),
    ],
)
def test_impossible_phases_raise(phases):
    with pytest.raises(ValueError, match="must be 'wake', then"):
        new_model(phases=phases)


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
    np.testing.assert_array_equal(
        model.hippocampus.recall(tf.zeros([BATCH, LATENT]), [0, 0]), given[-1][0]
    )


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_runs_with_its_own_metrics(name):
    reconstruct = {"wake/reconstruction_loss", "wake/kl_loss"}
    external = {"wake/external_loss", "wake/external_probability"}
    nrem, rem = {"nrem/recovery_loss"}, {"rem/internal_loss", "rem/external_probability"}
    expected = {
        "no_rem": reconstruct | nrem,
        "no_nrem": reconstruct | external | rem,
        "wake_only": reconstruct,
    }
    config = Config(base_filters=2, latent_dim=4, batch_size=4, seed=3, **CONDITIONS[name])
    model = build_model(config)
    rng = np.random.default_rng(0)
    for _ in range(2):
        result = model.train_step(rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    assert set(result) == expected.get(name, reconstruct | external | nrem | rem)
    assert all(np.isfinite(value) for value in result.values())
    assert model.step.numpy() == 2
    assert set(model.test_step(rng.uniform(-1, 1, (4, 32, 32, 3)))) == set(result)


def mixing(recent=0.5, memories=0.5):
    return {"mixing": {"recent": recent, "memories": memories}}


def test_the_conditions_are_the_papers():
    paper = {
        "full": {},
        "no_memory_mix": mixing(1.0, 1.0),
        "no_rem": {
            "phases": ("wake", "nrem"),
            "external_weight": 0.0,
            "wake_noise_variance": 0.5,
            "recovery_weight": 0.5,
        },
        "no_nrem": {"phases": ("wake", "rem")},
        "wake_only": {"phases": ("wake",), "external_weight": 0.0, "wake_noise_variance": 0.5},
        "rem_noise_only": mixing(memories=0.0),
        "rem_mix_only": mixing(memories=1.0),
        "rem_before_nrem": {"phases": ("wake", "rem", "nrem")},
        "nrem_mixed": {"nrem_memories": "mixed"},
    }
    small = {"base_filters": 2, "latent_dim": 4, "batch_size": 4}
    assert set(CONDITIONS) == set(paper)
    full = settings(build_model(Config(**small)))
    for name, changed in paper.items():
        model = build_model(Config(**small, **CONDITIONS[name]))
        assert settings(model) == {**full, **changed}, name


def test_the_full_model_has_the_papers_settings_by_default():
    networks = {"image_size": 32, "base_filters": 2, "latent_dim": 4}
    plain = PAD(build_encoder(**networks), build_generator(**networks))
    for model in (plain, build_model(Config(base_filters=2, latent_dim=4))):
        assert settings(model) == {
            "name": "pad",
            "hippocampus": 64,
            **mixing(),
            "perturbation": {
                "probability_range": (0.0, 1.0),
                "tile_range": (1, 8),
                "per_image": False,
            },
            "recovery": "LatentDistance",
            "adversary": "Minimax",
            "glimpse": None,
            "agreement": "Contrast",
            "phases": ("wake", "nrem", "rem"),
            "reconstruction_weight": 1.0,
            "kl_weight": 1.0,
            "external_weight": 1.0,
            "agreement_weight": 1.0,
            "recovery_weight": 1.0,
            "internal_weight": 1.0,
            "gradient_penalty_weight": 0.0,
            "wake_noise_variance": 0.0,
            "nrem_memories": "single",
            "average_weights": 0.0,
            "seed": 0,
        }


def test_every_argument_is_a_public_attribute():
    model = new_model(kl_weight=0.25, wake_noise_variance=0.5, seed=7)
    names = set(inspect.signature(PAD).parameters) - {"kwargs"}
    assert names == set(model.get_config())
    for name in names:
        assert hasattr(model, name), name
    assert (model.kl_weight, model.wake_noise_variance, model.seed) == (0.25, 0.5, 7)
    assert isinstance(model.recovery, LatentDistance)
    assert isinstance(model.adversary, Minimax)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Mixing(memories=2), "memories is 2, but must be between 0 and 1"),
        (lambda: Mixing(recent=-0.5), "recent is -0.5"),
        (lambda: Occlusion((2, 3)), r"probability_range is \(2, 3\)"),
        (lambda: Occlusion((0.8, 0.2)), "probability_range"),
        (lambda: Occlusion(tile_range=(0, 8)), r"tile_range is \(0, 8\)"),
        (lambda: Occlusion(tile_range=(3, 2)), "tile_range"),
        (lambda: Occlusion(tile_range=(1, 2.5)), "tile_range"),
        (lambda: Hippocampus(0), "capacity is 0"),
        (lambda: new_model(recovery_weight=0.0), "recovery_weight is 0.0, but must be above 0"),
        (lambda: new_model(kl_weight=-1), "kl_weight is -1"),
        (lambda: new_model(gradient_penalty_weight=-1), "gradient_penalty_weight is -1"),
        (
            lambda: new_model(gradient_penalty_weight=1, external_weight=0),
            "gradient_penalty_weight is 1, but must be 0 without an external loss",
        ),
        (lambda: new_model(wake_noise_variance=-0.1), "wake_noise_variance"),
        (lambda: new_model(nrem_memories="both"), "nrem_memories is 'both'"),
    ],
)
def test_impossible_arguments_raise_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


# Parts of one's own.


@keras.saving.register_keras_serializable("tests")
class Darker(Part):
    """A perturbation."""

    def __init__(self, factor=0.5):
        self.factor = factor

    def __call__(self, images, key):
        return self.factor * images


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


def test_a_recovery_loss_of_several_views_and_a_perturbation_of_ones_own_are_used():
    model = new_model("sgd", recovery=Spread(), perturbation=Darker(0.25))
    latents = random_latents(1)
    dreams = model.generator(latents).numpy()

    def loss():
        return tf.reduce_mean((latents - model.encoder(0.25 * dreams)["latent"]) ** 2)

    expected = negative(gradients(loss, model.encoder))
    before = weights(model)
    model.nrem(latents, random_latents(2))
    change = changes(before, weights(model))
    assert_close(pick(change, TRUNK | LATENT_HEAD), pick(expected, TRUNK | LATENT_HEAD))
    assert np.abs(model.recovery.scale.numpy() - 1).max() > 1e-3


def test_views_are_perturbed_by_draws_of_their_own(monkeypatch):
    masks = record(monkeypatch, ad_keras.pad.perturbations, "occlusion_mask")
    model = new_model(recovery=Spread(), perturbation=Occlusion((0.5, 0.5), (2, 2)))
    model.nrem(random_latents(1), random_latents(2))
    assert len(masks) == 3
    assert len(np.unique([mask.ravel() for mask in masks], axis=0)) == 3


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_generator_descends_what_the_adversary_says(weight):
    model = new_model("sgd", adversary=Twofold(), internal_weight=weight, mixing=Mixing(1, 1))
    latents = random_latents(1)

    def fooling():
        logits = model.encoder(model.generator(latents))["external_logit"]
        return weight * 2 * paper_external(logits)

    generator = gradients(fooling, model.generator)
    encoder = gradients(lambda: weight * paper_rem(model, latents), model.encoder)
    before = weights(model)
    model.rem(latents, latents)
    change = changes(before, weights(model))
    assert_close(pick(change, GENERATOR), negative(generator))
    touched = TRUNK | EXTERNAL_HEAD
    assert_close(pick(change, touched), negative(pick(encoder, touched)))


def test_wake_makes_the_latents_of_glimpses_agree():
    glimpse, agreement = Darker(0.5), Spread()
    model = new_model("sgd", glimpse=glimpse, agreement=agreement, agreement_weight=3.0)
    plain = new_model("sgd")
    images = signed(1)

    def loss():
        latents = model.encoder(images)["latent"]
        views = tf.stack([model.encoder(0.5 * images)["latent"]] * agreement.views)
        return 3.0 * agreement(latents, views)

    before, extra = weights(model), gradients(loss, model.encoder)
    for each in (model, plain):
        each.wake(images)
    more = {path: weights(model)[path] - weights(plain)[path] for path in before}
    touched = TRUNK | {"latent_head/kernel"}
    assert_close(pick(more, touched), negative(pick(extra, touched)))
    assert_close(pick(weights(model), GENERATOR), pick(weights(plain), GENERATOR))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("mixed_bfloat16", 0.1)])
def test_wake_descends_the_penalty_on_the_discriminators_gradient(dtype, tolerance):
    # Keras's own layers in double precision have no gradients written by hand.
    model, plain = (new_model("sgd", dtype=dtype, gradient_penalty_weight=g) for g in (30.0, 0.0))
    images = signed(1)

    def exact(layer):
        return builtin(layer).from_config({**layer.get_config(), "dtype": "float64"})

    encoder = keras.models.clone_model(model.encoder, clone_function=exact)
    encoder.set_weights(model.encoder.get_weights())
    with tf.GradientTape() as to_weights:
        with tf.GradientTape() as to_images:
            pixels = tf.cast(images, tf.float64)
            to_images.watch(pixels)
            logits = encoder(pixels)["external_logit"]
        slopes = to_images.gradient(logits, pixels)
        penalty = tf.reduce_mean(tf.reduce_sum(slopes**2, axis=[1, 2, 3])) / 2
    names = [f"trunk_{block}/kernel" for block in range(2)] + ["external_head/kernel"]
    expected = [v for v in encoder.trainable_variables if v.path in names]
    expected = dict(zip(names, to_weights.gradient(penalty, expected), strict=True))
    for each in (model, plain):
        each.wake(images)
    np.testing.assert_allclose(
        model.get_metrics_result()["wake/gradient_penalty_loss"], penalty, rtol=tolerance
    )
    for name, gradient in expected.items():
        more = (weights(model)[name] - weights(plain)[name]) / -30
        assert np.linalg.norm(more - gradient) < tolerance * np.linalg.norm(gradient), name
    unmoved = {"latent_head/kernel", "external_head/bias", *GENERATOR}
    assert_close(pick(weights(model), unmoved), pick(weights(plain), unmoved))
    assert "wake/gradient_penalty_loss" not in plain.get_metrics_result()


TINY = {"base_filters": 2, "latent_dim": 4, "batch_size": 4}
OTHER_PARTS = {
    "network": "residual",
    "hippocampus": "associative",
    "mixing": "many_memories",
    "perturbation": ("crop", "rotation", "noise"),
    "recovery": "contrast",
    "glimpse": ("crop", "occlusion"),
    "agreement": "vicreg",
    "adversary": "least_squares",
    "gradient_penalty_weight": 0.5,
    "average_weights": 0.9,
}


def averages(model):
    return {weight.path: average.numpy().copy() for weight, average in model.averaged}


def test_averages_follow_the_weights_after_each_step_and_serve_only_while_they_are_lent():
    model = new_model(average_weights=0.3)
    model.run_eagerly = True
    expected = averages(model)
    for step in range(4):
        model.train_step(pixels(step))
        decay = min(0.3, (1 + step) / (10 + step))
        for path, value in weights(model).items():
            expected[path] = decay * expected[path] + (1 - decay) * value
    for path, value in averages(model).items():
        np.testing.assert_allclose(value, expected[path], atol=1e-6, err_msg=path)
    before, lent = everything_kept(model), averages(model)
    with model.averaged_weights():
        assert_equal(weights(model), lent)
        assert moved(weights(model), before) == TRUNK | LATENT_HEAD | EXTERNAL_HEAD | GENERATOR
    assert_equal(everything_kept(model), before)
    assert_equal(averages(model), lent)


def test_averages_start_from_the_weights_and_change_nothing_in_training():
    with_averages, without = (build_model(Config(**TINY, average_weights=a)) for a in (0.9, 0.0))
    assert_equal(averages(with_averages), weights(with_averages))
    assert averages(without) == {}
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    for model in (with_averages, without):
        model.train_step(images)
    assert_equal(everything_kept(with_averages), everything_kept(without))
    assert len(with_averages.weights) == len(without.weights) + len(weights(without))


def test_a_model_of_other_parts_is_saved_loaded_and_continued_bit_for_bit(tmp_path):
    model = build_model(Config(**TINY, hippocampus_capacity=6, **OTHER_PARTS))
    model.run_eagerly = True  # tracing so many parts takes longer than they do
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    batches = tf.data.Dataset.from_tensor_slices(images).batch(4)
    history = model.fit(batches, verbose=0, shuffle=False).history
    assert {"wake/agreement_loss", "nrem/recovery_loss", "rem/internal_loss"} <= set(history)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(batches, verbose=0, shuffle=False)
    assert_equal(everything_kept(loaded), everything_kept(model))
    assert_equal(averages(loaded), averages(model))


def test_every_name_of_a_part_gives_a_part_that_describes_itself():
    fields = {field.name: field for field in dataclasses.fields(Config)}
    seen = set()
    for name in ("hippocampus", "mixing", "recovery", "agreement", "adversary"):
        for choice in fields[name].metadata["choices"]:
            part = getattr(build_model(Config(base_filters=2, **{name: choice})), name)
            seen.add((name, str(keras.saving.serialize_keras_object(part))))
    assert len(seen) == 4 + 4 + 4 + 4 + 4
    for name in PERTURBATIONS:
        part = build_model(Config(base_filters=2, glimpse=(name,))).glimpse
        assert type(part).__name__.lower() == name


def test_parts_of_ones_own_are_saved_and_loaded_with_their_weights(tmp_path):
    model = new_model(recovery=Spread(), perturbation=Darker(0.3), adversary=Twofold())
    model.fit(dataset(), verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.adversary, Twofold)
    assert loaded.perturbation.factor == 0.3
    for each in (model, loaded):
        each.fit(dataset(1), verbose=0, shuffle=False)
    np.testing.assert_array_equal(loaded.recovery.scale, model.recovery.scale)
    assert_equal(everything_kept(loaded), everything_kept(model))


def test_metrics_report_the_losses_unweighted():
    names = (
        "reconstruction_weight",
        "kl_weight",
        "external_weight",
        "recovery_weight",
        "internal_weight",
    )
    plain, weighted = (
        new_model("sgd", learning_rate=0.0, **dict.fromkeys(names, weight)) for weight in (1.0, 7.0)
    )
    assert plain.train_step(pixels()) == weighted.train_step(pixels())


def test_training_metrics_are_the_papers_losses():
    # At learning rate 0 all phases see the same weights.
    model = new_model("sgd", learning_rate=0.0, mixing=Mixing(0.5, 1.0), **UNOCCLUDED)
    images = signed()
    outputs = model.encoder(images)
    latents = outputs["latent"]
    rebuilt = model.generator(latents)
    again = model.encoder(rebuilt)  # at the first step the mixture is the latents
    expected = {
        "wake/reconstruction_loss": paper_reconstruction(images, rebuilt),
        "wake/kl_loss": paper_prior(latents),
        "wake/external_loss": paper_external(outputs["external_logit"]),
        "wake/external_probability": np.mean(1 / (1 + np.exp(-outputs["external_logit"]))),
        "nrem/recovery_loss": tf.reduce_mean((latents - again["latent"]) ** 2),
        "rem/internal_loss": paper_internal(again["external_logit"]),
        "rem/external_probability": np.mean(1 / (1 + np.exp(-again["external_logit"]))),
    }
    actual = model.train_step(images)
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, err_msg=name)


def test_uint8_and_signed_float_images_are_the_same_to_the_model():
    models = [new_model() for _ in range(3)]
    inputs = (pixels(), signed(), signed().numpy().astype(np.float64))
    for model, images in zip(models, inputs, strict=True):
        model.train_step(images)
    for model in models[1:]:
        assert_close(weights(model), weights(models[0]), significant=False)
    np.testing.assert_allclose(
        models[0](pixels())["latent"], models[0](signed())["latent"], atol=1e-5
    )


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
        new_model()(pixels().astype(dtype))


def test_labels_beside_the_images_are_ignored():
    with_labels, without = new_model(), new_model()
    with_labels.train_step((pixels(), np.arange(BATCH)))
    without.train_step(pixels())
    assert_equal(weights(with_labels), weights(without))
    assert with_labels.test_step((pixels(), np.arange(BATCH))) == without.test_step(pixels())


def test_a_batch_beyond_the_memory_raises_and_says_what_to_do():
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"hippocampus=Hippocampus\(capacity\)"
    ):
        new_model().train_step(pixels(count=BATCH + 1))


def test_a_batch_of_one_image_raises_and_spoils_no_weight():
    model = new_model()
    before = weights(model)
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least 2"):
        model.train_step(pixels(count=1))
    assert_equal(weights(model), before)


# Randomness.


def test_models_of_the_same_seed_end_with_the_same_weights_and_of_others_with_others():
    first, again, other = (new_model(seed=seed) for seed in (1, 1, 2))
    for model in (first, again, other):
        for step in range(2):
            model.train_step(pixels(step))
    assert_equal(weights(first), weights(again))
    assert moved(weights(first), weights(other)) == set(weights(first))


def test_random_numbers_are_a_function_of_seed_step_and_phase(monkeypatch):
    noise = record(monkeypatch, replicas, "normal")
    masks = record(monkeypatch, ad_keras.pad.perturbations, "occlusion_mask")

    def draws(seed, step):
        """Noise of wake, of mixed NREM and of REM, and the mask of NREM."""
        model = new_model(
            seed=seed,
            nrem_memories="mixed",
            wake_noise_variance=1.0,
            perturbation=Occlusion((0.5, 0.5), (2, 2)),
        )
        noise.clear()
        masks.clear()
        model.step.assign(step)
        model.train_step(pixels())
        assert (len(noise), len(masks)) == (3, 1)
        return [*noise, *masks]

    first = draws(0, 0)
    np.testing.assert_equal(draws(0, 0), first)
    everything = [first, draws(0, 1), draws(0, 2), draws(1, 0), draws(1, 1)]
    normal = np.array([values.ravel() for draw in everything for values in draw[:3]])
    correlations = np.corrcoef(normal)[np.triu_indices(len(normal), 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(BATCH * LATENT)
    assert len(np.unique([draw[3].ravel() for draw in everything], axis=0)) == len(everything)


def test_a_steps_noise_does_not_depend_on_other_phases(monkeypatch):
    noise = record(monkeypatch, Mixing, "__call__")
    for phases in (("wake", "rem"), ("wake", "nrem", "rem"), ("wake", "rem", "nrem")):
        new_model(phases=phases, mixing=Mixing(0.5, 0.0)).train_step(pixels())
    assert len(noise) == 3
    np.testing.assert_array_equal(noise[0], noise[1])
    np.testing.assert_array_equal(noise[0], noise[2])


def test_draws_are_the_same_with_and_without_xla():
    def drawn(step):
        key = draws.fold_in([3, 1], step)
        mask = Occlusion().sample(key, 4, SIZE, SIZE)
        return mask, Mixing(0.5, 0.0)(random_latents(1), random_latents(2), key)

    step = tf.constant(5, tf.int64)
    (mask, noise), (same_mask, same_noise) = drawn(step), tf.function(drawn, jit_compile=True)(step)
    np.testing.assert_array_equal(mask, same_mask)
    np.testing.assert_allclose(noise, same_noise, rtol=1e-5, atol=1e-6)


def test_a_whole_step_is_the_same_with_and_without_xla():
    plain, compiled = new_model("sgd", 0.01), new_model()
    compiled.compile(keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01), jit_compile=True)
    for model in (plain, compiled):
        model.fit(dataset(count=BATCH), verbose=0, shuffle=False)
    assert_close(weights(compiled), weights(plain), significant=False)


# Evaluation.


def everything_kept(model):
    optimizers = state(model.encoder_optimizer, model.generator_optimizer)
    return {**weights(model), **memory(model), **optimizers, "step": model.step.numpy()}


def test_evaluation_touches_nothing_and_is_repeatable():
    model = new_model()
    model.train_step(pixels(5))
    before = everything_kept(model)
    held_out = dataset()
    first = model.evaluate(held_out, verbose=0, return_dict=True)
    assert_equal(everything_kept(model), before)
    model.step.assign(77)  # noise and masks do not depend on the training's step
    assert model.evaluate(held_out, verbose=0, return_dict=True) == first
    assert all(np.isfinite(value) for value in first.values())


def test_evaluation_draws_anew_for_each_batch_and_unlike_training(monkeypatch):
    noise = record(monkeypatch, Mixing, "__call__")
    model = new_model(mixing=Mixing(0.5, 0.0))
    model.train_step(pixels())
    model.reset_metrics()
    for _ in range(3):
        model.test_step(pixels())
    flat = np.array([values.ravel() for values in noise])
    assert len(flat) == 4
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 5 / np.sqrt(BATCH * LATENT)


def test_evaluation_and_training_report_the_same_where_nothing_is_random():
    arguments = {"mixing": Mixing(1.0, 1.0), **UNOCCLUDED}
    model = new_model("sgd", learning_rate=0.0, **arguments)
    trained = model.train_step(pixels())
    model.reset_metrics()
    tested = model.test_step(pixels())
    assert set(tested) == set(trained)
    for name, value in trained.items():
        np.testing.assert_allclose(tested[name], value, rtol=1e-6, err_msg=name)


def test_evaluation_mixes_each_latent_with_its_neighbours():
    model = new_model(mixing=Mixing(0.5, 1.0), **UNOCCLUDED)
    latents = model.encoder(signed())["latent"]
    expected = paper_rem(model, 0.5 * latents + 0.5 * np.roll(latents, 1, axis=0))
    actual = model.test_step(pixels())["rem/internal_loss"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


# As a Keras model.


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


def test_several_steps_per_execution_are_the_same_steps():
    one, three = new_model(), new_model()
    three.compile(steps_per_execution=3)
    for model in (one, three):
        model.fit(dataset(), verbose=0, shuffle=False)
        assert model.step.numpy() == 3
    assert_close(weights(three), weights(one), significant=False)


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


def test_a_saved_and_loaded_model_continues_bit_for_bit(tmp_path):
    model = new_model(
        mixing=Mixing(recent=0.25),
        perturbation=Occlusion((0.1, 0.9), (2, 4)),
        phases=["wake", "rem", "nrem"],
    )
    model.fit(dataset(0, 2 * BATCH + 4), verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is PAD
    assert settings(loaded) == settings(model)
    assert loaded.perturbation.tile_range == (2, 4)
    assert loaded.perturbation.probability_range == (0.1, 0.9)
    assert loaded.mixing.recent == 0.25
    assert loaded.step.numpy() == 3
    assert_equal(everything_kept(loaded), everything_kept(model))
    assert loaded.encoder_optimizer.get_config() == model.encoder_optimizer.get_config()
    for each in (model, loaded):
        each.fit(dataset(1), verbose=0, shuffle=False)
    assert_equal(everything_kept(loaded), everything_kept(model))


def test_a_loaded_model_keeps_other_optimizers_too(tmp_path):
    model = new_model()
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), keras.optimizers.RMSprop(0.001, rho=0.8)
    )
    model.train_step(pixels(0))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.train_step(pixels(1))
    assert_equal(everything_kept(loaded), everything_kept(model))


def test_saved_weights_restore_networks_memory_and_step(tmp_path):
    model = new_model()
    model.train_step(pixels())
    model.save_weights(tmp_path / "model.weights.h5")
    other = new_model()
    other.hippocampus.store(tf.ones([BATCH, LATENT]))
    other.load_weights(tmp_path / "model.weights.h5")
    assert_equal(weights(other), weights(model))
    assert_equal(memory(other), memory(model))
    assert other.step.numpy() == 1
