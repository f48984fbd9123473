"""What a model is made of, in a form that can be saved beside a run and compared."""

import inspect
import json

import keras

from ad_keras.pad.model import PAD

_NETWORKS = ("encoder", "generator")
_OF_LAYERS = ("activation", "negative_slope", "strides", "padding")
# Names may be numbered anew in each process; the precision of what is restored is another.
_PASSING = ("name", "dtype")


def describe_model(model: PAD) -> dict:
    """A compiled model's class, parts and settings, its layers and weights' shapes, as in JSON."""
    config, compiled = model.get_config(), model.get_compile_config()
    config["class_name"] = type(model).__name__
    described = {name: value for name, value in config.items() if name not in _NETWORKS}
    for name in _NETWORKS:
        network = getattr(model, name)
        described[name] = [f"{weight.name} {list(weight.shape)}" for weight in network.weights]
        described[f"{name}_layers"] = [
            f"{type(layer).__name__} {[layer.get_config().get(setting) for setting in _OF_LAYERS]}"
            for layer in network.layers
        ]
        described[f"{name}_optimizer"] = compiled[f"{name}_optimizer"]
    return _lasting(json.loads(json.dumps(described, default=keras.saving.serialize_keras_object)))


def difference(before: dict, now: dict) -> str:
    """What differs between two models that `describe_model` described, in a phrase, maybe empty."""
    # A run of an earlier version says nothing of the settings that came later.
    later = {
        name: setting.default
        for name, setting in inspect.signature(PAD).parameters.items()
        if name in now and isinstance(setting.default, (int, float))
    } | {name: now[name] for name in now if name.endswith(("_layers", "class_name"))}
    before = {**later, **before}
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    told = []
    for name in names:
        first, second = before.get(name), now.get(name)
        if name.removesuffix("_layers") in _NETWORKS and first and second:
            pairs = [pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]]
            counts = (f"{len(first)} parts", f"{len(second)} parts")
            first, second = pairs[0] if pairs else counts
        told.append(f"{name} was {_phrase(first)} and is {_phrase(second)}")
    return "; ".join(told)


def _lasting(value):
    if isinstance(value, dict):
        return {key: _lasting(entry) for key, entry in value.items() if key not in _PASSING}
    return [_lasting(entry) for entry in value] if isinstance(value, list) else value


def _phrase(value) -> str:
    if isinstance(value, dict) and "class_name" in value:
        arguments = value.get("config") or {}
        inner = ", ".join(f"{name}={_phrase(entry)}" for name, entry in arguments.items())
        return f"{value['class_name']}({inner})"
    return str(value)
