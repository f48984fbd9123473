"""What the parts of PAD have in common."""

import inspect
from collections.abc import Callable

import keras
import tensorflow as tf

Perturbation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""From images [B, H, W, C] in [-1, 1] and a key, integer [2], to images of the same shape."""


class Part:
    """A replaceable piece of the model whose constructor's arguments are its public attributes.

    From these, `get_config` and equality follow, so that saved models and runs know the part. The
    constructors of this package raise a ValueError of one line if an argument is not possible.
    Register a part of your own with `keras.saving.register_keras_serializable`. A part with
    weights is a `keras.layers.Layer` instead.
    """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict) -> "Part":
        """Makes an equal part of what `get_config` returned."""
        return cls(**keras.saving.deserialize_keras_object(config))


def require(holds: bool, name: str, value, allowed: str) -> None:
    """Refuses the value of a constructor's argument that is not what it may be.

    Raises:
        ValueError: in one line, if it does not hold.
    """
    if not holds:
        raise ValueError(f"{name} is {value}, but must be {allowed}.")
