"""Adam as the reference code has it, as one fused operation for each variable."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("ad_keras")
class FusedAdam(keras.optimizers.Optimizer):
    """Adam in PyTorch's form, with TensorFlow's fused kernel in place of ten operations.

    It differs from `keras.optimizers.Adam` in two points, as PyTorch does:

    - steps are counted for each variable, so that a head which a phase leaves alone is corrected
      by the number of its own updates;
    - epsilon is added after the correction of the second moment. The generator's first gradients
      are as small as epsilon, so the place of it matters.

    Args:
        learning_rate: a positive number or a `keras.optimizers.schedules` schedule of the number
            of calls of `apply`.
        beta_1: decay of the first moment, in [0, 1).
        beta_2: decay of the second moment, in [0, 1).
        epsilon: added to the square root of the corrected second moment.
        name: of the optimizer.
        **kwargs: of `keras.optimizers.Optimizer`, such as `clipnorm` and `weight_decay`.

    Raises:
        ValueError: for `gradient_accumulation_steps`, since phases update different variables.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 2e-4,
        beta_1: float = 0.5,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        name: str = "fused_adam",
        **kwargs,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        if self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} does not fit "
                "phases that update different variables: use a larger mini-batch."
            )
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, variables: list[keras.Variable]) -> None:
        """Makes two moments and a counter for each variable that it will ever update."""
        if self.built:
            return
        super().build(variables)
        self.momentums, self.velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )
        self.steps = [
            self.add_variable(
                shape=(),
                dtype="int64",
                aggregation="only_first_replica",
                name=f"{variable.path.replace('/', '_')}_steps",
            )
            for variable in variables
        ]

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Updates one of the variables that it was built with, in place."""
        # The only way in Keras from a variable to its moments.
        index = self._get_variable_index(variable)
        steps = self.steps[index]
        self.assign_add(steps, 1)
        count = tf.cast(steps, tf.float64)
        # The kernel computes with rounded betas, so their powers are taken of the same numbers.
        # In float32, 1 - beta_2 would keep four digits.
        rounded = tf.as_dtype(variable.dtype).as_numpy_dtype
        beta_1, beta_2 = (float(rounded(beta)) for beta in (self.beta_1, self.beta_2))
        correction_1 = 1.0 - beta_1**count
        correction_2 = tf.sqrt(1.0 - beta_2**count)
        rate = tf.cast(learning_rate, tf.float64) * correction_2 / correction_1
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self.momentums[index].value.handle,
            v=self.velocities[index].value.handle,
            beta1_power=0.0,  # the correction is in the rate
            beta2_power=0.0,
            lr=tf.cast(rate, variable.dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.cast(self.epsilon * correction_2, variable.dtype),
            grad=gradient,
        )

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        own = {name: getattr(self, name) for name in ("beta_1", "beta_2", "epsilon")}
        return {**super().get_config(), **own}
