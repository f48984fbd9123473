"""Package metadata and dependencies."""

from setuptools import find_packages, setup

TYPEFACES = [
    "font-amatic-sc",
]

setup(
    name="ad_keras",
    version="0.1.0",
    description="Perturbed and adversarial dreaming (PAD) for TensorFlow and Keras",
    python_requires=">=3.10",
    packages=find_packages(include=["ad_keras", "ad_keras.*"]),
    install_requires=[
        "absl-py",
        "importlib_resources",  # tensorflow-datasets imports it without asking for it
        "keras>=3.10",
        "keras-tuner",
        "matplotlib",
        "numpy",
        "pillow>=10.1",
        "scipy",
        "tensorboard",
        "tensorflow>=2.18",
        "tensorflow-datasets>=4.9",
        *TYPEFACES,
    ],
    extras_require={"test": ["pytest", "ruff"]},
)
