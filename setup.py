"""Package metadata and dependencies."""

from pathlib import Path

from setuptools import find_packages, setup

# The generated digits are drawn with these files, so other versions would draw other images.
TYPEFACES = [
    "font-amatic-sc==0.0.4",
    "font-caladea==0.0.2",
    "font-fjallaone==0.1.7",
    "font-fredoka-one==0.0.4",
    "font-hanken-grotesk==0.0.2",
    "font-intuitive==0.0.4",
    "font-lato==0.1.0",
    "font-manrope==0.0.2",
    "font-rhd==0.1.3",
    "font-source-sans-pro==0.0.1",
    "font-source-serif-pro==0.0.1",
]

setup(
    name="ad_keras",
    version="0.1.0",
    description="Perturbed and adversarial dreaming (PAD) for TensorFlow and Keras",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="ad_keras developers",
    license="MIT",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["ad_keras", "ad_keras.*"]), "ad_keras.flags"],
    package_dir={"ad_keras.flags": "flags"},
    package_data={
        "ad_keras": ["py.typed"],
        "ad_keras.flags": ["*.flags"],
        "ad_keras.reproduction": ["report.html"],
    },
    entry_points={"console_scripts": ["ad-keras = ad_keras.__main__:main"]},
    install_requires=[
        "absl-py",
        "grpcio",
        "importlib_resources",  # tensorflow-datasets imports it without asking for it
        "jinja2",
        "joblib",
        "keras>=3.11",  # earlier ones warn of the inputs of encoders that they loaded
        "keras-tuner==1.4.8",  # the one that searches are tested with
        "matplotlib>=3.11",  # the generated digits are drawn with its typefaces, too
        "numpy>=2.0",
        "pandas>=2.2.2",
        "pillow>=10.1",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "tensorboard",
        "tensorflow>=2.20",
        "tensorflow-datasets>=4.9.10",
        "threadpoolctl",
        "tqdm",
        *TYPEFACES,
    ],
    extras_require={
        "test": [
            *("ipykernel", "nbclient", "nbformat"),
            *("mypy", "pytest", "pytest-xdist", "ruff", "setuptools>=70.1"),
        ],
        "benchmark": ["torch"],  # for the benchmarks that compare with PyTorch
    },
)
