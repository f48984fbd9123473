"""Tests of the fused Adam against a plain one in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ad_keras.compute.optimizers import FusedAdam

SHAPES = {"kernel": (4, 4, 3, 8), "bias": (8,), "head": (16, 2)}
PAPER = {"learning_rate": 2e-4, "beta_1": 0.5, "beta_2": 0.999, "epsilon": 1e-8}
EVERY_STEP = [(0, 1, 2)] * 12
PHASES = [(0, 1, 2), (0, 1), (0, 2)] * 4  # wake, and two phases that leave one variable alone


def variables():
    rng = np.random.default_rng(0)
    return [
        keras.Variable(rng.normal(scale=0.02, size=shape), dtype="float32", name=name)
        for name, shape in SHAPES.items()
    ]


def gradients(step, exponents):
    rng = np.random.default_rng([1, step])
    scale = 10.0 ** rng.integers(*exponents)
    return [rng.normal(scale=scale, size=s).astype(np.float32) for s in SHAPES.values()]


def apply_some(optimizer, mine, step, chosen, exponents=(-5, 1)):
    new = gradients(step, exponents)
    optimizer.apply([tf.constant(new[i]) for i in chosen], [mine[i] for i in chosen])


class PlainAdam:
    """Kingma & Ba's algorithm for one variable, epsilon added after the bias correction."""

    def __init__(self, value, learning_rate, beta_1, beta_2, epsilon):
        self.value = value.astype(np.float64)
        self.rate, self.betas, self.epsilon = learning_rate, (beta_1, beta_2), epsilon
        self.first, self.second, self.steps = 0.0, 0.0, 0

    def step(self, gradient):
        gradient = gradient.astype(np.float64)
        beta_1, beta_2 = self.betas
        self.steps += 1
        self.first = beta_1 * self.first + (1 - beta_1) * gradient
        self.second = beta_2 * self.second + (1 - beta_2) * gradient**2
        mean = self.first / (1 - beta_1**self.steps)
        deviation = np.sqrt(self.second / (1 - beta_2**self.steps))
        self.value = self.value - self.rate * mean / (deviation + self.epsilon)


@pytest.mark.parametrize("exponents", [(-5, 1), (-9, -6)], ids=["usual", "near_epsilon"])
@pytest.mark.parametrize("subsets", [EVERY_STEP, PHASES], ids=["every_step", "skipped"])
@pytest.mark.parametrize(
    "settings", [PAPER, {"learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-7}]
)
def test_fused_adam_is_the_plain_algorithm_in_float64(settings, subsets, exponents):
    ours = variables()
    plain = [PlainAdam(variable.numpy(), **settings) for variable in ours]
    # Weights near zero, so that float32 can hold small moves of them.
    for variable, other in zip(ours, plain, strict=True):
        variable.assign(tf.zeros_like(variable.value))
        other.value = np.zeros(variable.shape)
    optimizer = FusedAdam(**settings)
    optimizer.build(ours)
    for step, chosen in enumerate(subsets):
        apply_some(optimizer, ours, step, chosen, exponents)
        new = gradients(step, exponents)
        for index in chosen:
            plain[index].step(new[index])
        for variable, other in zip(ours, plain, strict=True):
            scale = np.abs(other.value).max()
            assert scale > 0.01 * settings["learning_rate"]
            np.testing.assert_allclose(variable, other.value, rtol=1e-5, atol=1e-6 * scale)
    assert optimizer.iterations.numpy() == len(subsets)
    assert [int(count.numpy()) for count in optimizer.steps] == [
        sum(index in chosen for chosen in subsets) for index in range(len(ours))
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0.01, "clipnorm": 0.1, "weight_decay": 0.01},
        {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)},
        {"learning_rate": 0.01, "use_ema": True, "ema_momentum": 0.5},
    ],
    ids=["clipped", "scheduled", "averaged"],
)
def test_what_keras_adds_to_every_optimizer_works(arguments):
    # With an epsilon of nothing, and no variable skipped, both forms are one.
    both = {**arguments, "beta_1": 0.5, "beta_2": 0.999, "epsilon": 1e-30}
    plain, fused = keras.optimizers.Adam(**both), FusedAdam(**both)
    theirs, ours = variables(), variables()
    for optimizer, mine in ((plain, theirs), (fused, ours)):
        optimizer.build(mine)
        for step in range(8):
            apply_some(optimizer, mine, step, (0, 1, 2))
        if "use_ema" in arguments:
            optimizer.finalize_variable_values(mine)
    for their, our, start in zip(theirs, ours, variables(), strict=True):
        moved, expected = our.numpy() - start.numpy(), their.numpy() - start.numpy()
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=5e-7)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_fused_adam_runs_inside_a_graph(jit_compile):
    eager, graph = FusedAdam(**PAPER), FusedAdam(**PAPER)
    ours, theirs = variables(), variables()
    eager.build(ours)
    graph.build(theirs)
    step = tf.function(lambda new: graph.apply(new, theirs), jit_compile=jit_compile)
    for number in range(3):
        new = [tf.constant(gradient) for gradient in gradients(number, (-5, 1))]
        eager.apply(new, ours)
        step(new)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-9)


def test_fused_adam_restores_from_its_configuration():
    optimizer = FusedAdam(**{**PAPER, "epsilon": 1e-6})
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert type(again) is FusedAdam
    assert again.get_config() == optimizer.get_config()
    assert again.epsilon == 1e-6


def test_gradient_accumulation_is_refused():
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        FusedAdam(gradient_accumulation_steps=2)
