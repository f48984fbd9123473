"""Perturbed and adversarial dreaming (PAD) for TensorFlow and Keras.

Deperrois, Petrovici, Senn & Jordan (2022), "Learning cortical representations through perturbed
and adversarial dreaming", eLife 11:e76384.
"""

import importlib

_HOMES = {
    "PAD": "ad_keras.pad.model",
    "Hippocampus": "ad_keras.pad.hippocampus",
    "LatentDistance": "ad_keras.pad.losses",
    "Minimax": "ad_keras.pad.losses",
    "Mixing": "ad_keras.pad.mixing",
    "Occlusion": "ad_keras.pad.perturbations",
    "Part": "ad_keras.pad.parts",
    "build_encoder": "ad_keras.pad.networks",
    "build_generator": "ad_keras.pad.networks",
    "export_networks": "ad_keras.runs.export",
    "load_encoder": "ad_keras.runs.export",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    # TensorFlow takes seconds to load, which `--help` and wrong flags need not wait for.
    if name not in _HOMES:
        raise AttributeError(f"module 'ad_keras' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
