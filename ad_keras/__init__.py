"""Perturbed and adversarial dreaming (PAD) for TensorFlow and Keras.

Deperrois, Petrovici, Senn & Jordan (2022), "Learning cortical representations through perturbed
and adversarial dreaming", eLife 11:e76384.
"""

import importlib
import os
import sys

if os.environ.get("KERAS_BACKEND", "") not in ("", "tensorflow"):
    _refusal = (
        f"KERAS_BACKEND={os.environ['KERAS_BACKEND']} is not possible: ad_keras runs on Keras's "
        "TensorFlow backend. Unset it, or set it to tensorflow."
    )
    # `python -m` and `ad-keras` load the package before they could tell of errors in one line.
    if sys.argv[0] == "-m" or os.path.basename(sys.argv[0]) == "ad-keras":
        print(f"error: {_refusal}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(_refusal)

_HOMES = {
    name: f"ad_keras.{module}"
    for module, names in {
        "pad.adversaries": "Hinge LeastSquares Minimax NonSaturating",
        "pad.agreement": "CodingRate Contrast LatentDistance VICReg",
        "pad.augmentations": "Blur Chain Colour Crop Flip Grey Noise Rotation Shift",
        "pad.hippocampus": "AssociativeHippocampus EpisodicHippocampus Hippocampus",
        "pad.mixing": "ComponentMixing ManyMemoriesMixing Mixing VariancePreservingMixing",
        "pad.model": "PAD",
        "pad.networks": "build_encoder build_generator",
        "pad.parts": "Part",
        "pad.perturbations": "Occlusion",
        "runs.export": "export_networks load_encoder",
    }.items()
    for name in names.split()
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    # TensorFlow takes seconds to load, which `--help` and wrong flags need not wait for.
    if name not in _HOMES:
        raise AttributeError(f"module 'ad_keras' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
