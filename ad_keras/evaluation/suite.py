"""Everything the paper measures of a model, with each image encoded once."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import joblib
import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.utils import gen_batches
from tqdm import tqdm

from ad_keras.data import ImageSet
from ad_keras.data.pixels import to_pixels
from ad_keras.errors import UsageError, first_line
from ad_keras.evaluation.config import METRICS
from ad_keras.evaluation.features import FeatureExtractor, reference_rows
from ad_keras.measures.distances import distance_ratios
from ad_keras.measures.distribution import density_coverage, fid, kid
from ad_keras.measures.latents import encode, encode_occluded
from ad_keras.measures.maps import filled_dimensions, pca_map, tsne_map
from ad_keras.measures.neighbours import knn_accuracy
from ad_keras.measures.probe import (
    LOGISTIC_C,
    LOGISTIC_TOLERANCE,
    ProbeResult,
    linear_probe,
    logistic_probe,
    ridge_probe,
)
from ad_keras.pad.model import PAD
from ad_keras.pad.perturbations import perturb_each

OF_DREAMS = ("fid", "kid", "density_coverage")
"""Those that compare dreams with real images, in the features of a network."""

WITHOUT_LABELS = ("pca", "dimensions", "tsne", *OF_DREAMS)

OCCLUDED_SHARES = tuple(round(0.1 * step, 1) for step in range(11))
TILES = (1, 2, 4, 8)

_NEIGHBOURS = 20
_LAYER_FEATURES = 4096  # at most; wider layers are average-pooled
_SAME_CLASS_PAIRS = 1000
_DIFFERENT_CLASS_PAIRS = 10_000
_FIGURE_6_OCCLUSION = (0.3, 4)  # probability and tile
_KID_SUBSETS, _KID_SUBSET_SIZE = 20, 1000
_BALL_NEIGHBOURS = 5
_FEWEST_DREAMS = 10
_MAPPED_BY_TSNE = 2000
_BATCH = 500

_PROBES_VERSION = 1  # a change of the probes needs a new number, since readings are kept

_PIXELS = (
    "pixels: of the images in [-1, 1] instead of latents, average-pooled to at most "
    f"{_LAYER_FEATURES} numbers an image"
)
_PAPER_PROBE = (
    "softmax readout of the latents, plain SGD (learning rate 0.2, mini-batches of 64, incomplete "
    "ones dropped, 20 epochs) on all training images, accuracy on all test images"
)
_LOGISTIC_PROBE = (
    "multinomial logistic regression on standardised latents, run to convergence on all training "
    f"images (L-BFGS, C {LOGISTIC_C:g}, gradient below {LOGISTIC_TOLERANCE:g}); accuracy on all "
    "test images"
)
_RIDGE_PROBE = (
    "ridge readout of standardised latents, solved exactly on all training images, its "
    "regularisation chosen on a tenth of them; accuracy on all test images"
)


def check(metrics: Sequence[str], train_set: ImageSet, test_set: ImageSet, num_dreams: int) -> None:
    """Refuses what cannot be measured on a data set, before anything is computed.

    Args:
        metrics: of `ad_keras.evaluation.config.METRICS`.
        train_set: the training images.
        test_set: the test images.
        num_dreams: how many are compared with as many real images.

    Raises:
        UsageError: naming the metrics that the data do not suffice for.
    """
    need_labels = [name for name in metrics if name not in WITHOUT_LABELS]
    if need_labels and (train_set.labels is None or test_set.labels is None):
        raise UsageError(
            f"the data set has no labels, which {', '.join(need_labels)} need: choose "
            f"--metrics={','.join(WITHOUT_LABELS)} or some of them, with --features=inception."
        )
    if train_set.class_names != test_set.class_names:
        raise UsageError(
            f"the training images are of the classes {', '.join(train_set.class_names) or 'none'} "
            f"but the test images of {', '.join(test_set.class_names) or 'none'}: they must be "
            "the same."
        )
    count = min(num_dreams, len(reference_rows(train_set)), len(test_set))
    if count < _FEWEST_DREAMS and set(OF_DREAMS) & set(metrics):
        raise UsageError(
            f"{', '.join(name for name in OF_DREAMS if name in metrics)} would compare {count} "
            f"dreams with {count} images, but need at least {_FEWEST_DREAMS}."
        )


@dataclasses.dataclass(eq=False, repr=False)
class Suite:
    """Measures one model on one data set.

    Latents, readouts and dreams are computed when a metric first needs them, and shared.

    Attributes:
        model: trained.
        train_set: the training images.
        test_set: the test images.
        cache: folder in which readings that depend on the images alone are kept.
        untrained: encoder with the initial weights, for comparison; None leaves it out.
        earlier: the model by how many epochs it had behind it, whose probes make a curve. The
            first one's dreams are compared.
        features: for the metrics of dreams.
        num_dreams: how many dreams of a kind are compared with as many real images; fewer if
            the test images or those of `reference_rows` are.
        probe_seeds: how many seeds the paper's probe is repeated with.
        seed: of the probes' order, the masks, the choice of images and pairs, and the noise.
        maps: coordinates that `measure` found by `pca` and `tsne`, of the test images [M, 2]
            (t-SNE: of the first of them).

    Raises:
        UsageError: if the encoder is for images of another size.
    """

    model: PAD
    train_set: ImageSet
    test_set: ImageSet
    cache: Path
    _: dataclasses.KW_ONLY
    untrained: keras.Model | None = None
    earlier: Mapping[int, PAD] | None = None
    features: FeatureExtractor | None = None
    num_dreams: int = 10_000
    probe_seeds: int = 5
    seed: int = 0
    maps: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        expected, given = self.model.encoder.inputs[0].shape[1:], self.train_set.images.shape[1:]
        if tuple(expected) != given or given != self.test_set.images.shape[1:]:
            raise UsageError(
                f"the encoder is for images of {expected[0]} x {expected[1]} pixels, but these "
                f"have {given[0]} x {given[1]}: load the data with image_size={expected[0]}."
            )
        self.earlier = dict(sorted((self.earlier or {}).items()))
        self._gaps: dict[str, str] = {}  # of the metric that is being measured
        references = len(reference_rows(self.train_set))
        self._count = min(self.num_dreams, references, len(self.test_set))

    def measure(
        self, metrics: Sequence[str], announce: Callable[[str], None] | None = None
    ) -> dict[str, dict]:
        """Measures what is asked for.

        Args:
            metrics: of `ad_keras.evaluation.config.METRICS`; `epochs` is left out where there is
                no earlier one.
            announce: is told of each metric before it is measured.

        Returns:
            By metric, its `protocol` (text, seed and sample sizes) and its `values`, nested
            dictionaries of numbers and lists of numbers. Accuracies are shares, 0 to 1. What could
            not be measured is NaN or left out; `gaps` in the protocol then says why.

        Raises:
            UsageError: if the data do not suffice.
            ValueError: if nothing could be measured, such as of latents that are not finite.
        """
        check(metrics, self.train_set, self.test_set, self.num_dreams)
        chosen = [
            name for name in METRICS if name in metrics and (name != "epochs" or self.earlier)
        ]
        results = {}
        for number, name in enumerate(bar := _bar(chosen, ""), start=1):
            bar.set_description(name)
            if announce:
                announce(f"[{number}/{len(chosen)}] {name}: {METRICS[name]}")
            self._gaps = {}
            try:
                protocol, values = getattr(self, f"_measure_{name}")()
            except (ValueError, MemoryError, tf.errors.ResourceExhaustedError) as error:
                protocol, values = self._protocol(METRICS[name]), {}
                self._gaps[name] = first_line(error)
            protocol |= {"gaps": self._gaps} if self._gaps else {}
            results[name] = {"protocol": protocol, "values": values}
        if not results:
            raise ValueError("of earlier epochs, none is kept")
        gaps = [entry["protocol"].get("gaps") for entry in results.values()]
        if all(gaps) and not any(entry["values"] for entry in results.values()):
            raise ValueError(next(iter(gaps[0].values())))
        return results

    def _measure_probe(self) -> tuple[dict, dict]:
        values = {}
        for name, readouts in self._readouts.items():
            accuracies = _accuracies(readouts)
            values[name] = {
                **_reading(readouts[0] if readouts else None),
                "mean_of_seeds": accuracies.mean(),
                **({"deviation_of_seeds": accuracies.std()} if self.probe_seeds > 1 else {}),
            }
        values["pixels"] = self._pixels(linear_probe)
        text = f"{_PAPER_PROBE}; {_PIXELS}, one seed"
        return self._protocol(text, probe_seeds=self.probe_seeds), values

    def _measure_logistic_probe(self) -> tuple[dict, dict]:
        # Thousands of correlated pixels take it minutes, and often more than its iterations.
        return self._protocol(_LOGISTIC_PROBE), self._of_latents(logistic_probe)

    def _measure_ridge_probe(self) -> tuple[dict, dict]:
        values = self._of_latents(ridge_probe, seed=self.seed)
        values["pixels"] = self._pixels(ridge_probe)
        return self._protocol(f"{_RIDGE_PROBE}; {_PIXELS}"), values

    def _of_latents(self, probe, **options) -> dict:
        return {
            name: _reading(self._probe(probe, name, latents, **options))
            for name, latents in self._latents.items()
        }

    def _measure_epochs(self) -> tuple[dict, dict]:
        values = {}
        for epoch, model in _bar(self.earlier.items(), "probes of earlier epochs"):
            latents = self._encoded(model.encoder)
            name = f"the encoder after epoch {epoch}"
            accuracies = _accuracies(self._repeated(name, latents, name))
            ridge = self._probe(ridge_probe, name, latents, seed=self.seed)
            values[str(epoch)] = {
                "probe": {"mean_of_seeds": accuracies.mean()},
                "ridge_probe": {"accuracy": _reading(ridge)["accuracy"]},
            }
        text = "both probes, as those of the last epoch, of the latents of the epochs that are kept"
        return self._protocol(text, probe_seeds=self.probe_seeds), values

    def _measure_layers(self) -> tuple[dict, dict]:
        values, widths = {}, {}
        encoder = self.model.encoder
        # The last layer of each block gives the block its output.
        outputs = {
            match.group(): layer.output
            for layer in encoder.layers
            if (match := re.match(r"trunk_\d+(?!\d)", layer.name))
        }
        for name in _bar([*outputs, "latent"], "probes of the layers"):
            found = self._latents["trained"]
            if name in outputs:
                flat = keras.layers.Flatten()(_pooled(outputs[name]))
                found = self._encoded(keras.Model(encoder.input, {"latent": flat}))
            widths[name] = found[0].shape[1]
            probes = {"probe": linear_probe, "ridge_probe": ridge_probe}
            values[name] = {
                metric: _reading(self._probe(probe, name, found, seed=self.seed))["accuracy"]
                for metric, probe in probes.items()
            }
        text = (
            "both probes on the output of each block of the encoder, flattened; a block is the "
            "layers whose names begin alike with trunk_<number>, and its output the last one's; "
            f"those of more than {_LAYER_FEATURES} features average-pooled to at most so many"
        )
        return self._protocol(text, features=widths), values

    def _measure_knn(self) -> tuple[dict, dict]:
        neighbours = min(_NEIGHBOURS, len(self.train_set))
        values = {
            name: knn_accuracy(train, self.train_set.labels, test, self.test_set.labels, neighbours)
            for name, (train, test) in self._latents.items()
        }
        text = "majority of the nearest training images by cosine, accuracy on all test images"
        return self._protocol(text, neighbours=neighbours), values

    def _measure_occlusion(self) -> tuple[dict, dict]:
        labels = self.test_set.labels
        encoder, images = self.model.encoder, self.test_set.images

        def score(latents: np.ndarray) -> float:
            readouts = self._readouts["trained"]
            if not readouts:
                raise ValueError("there is no readout, since the paper's probe overflowed")
            return float(np.mean([readout.score(latents, labels) for readout in readouts]))

        # At the ends, tiles of all sizes make the same images.
        hidden = encode_occluded(encoder, images[:1], 1.0, 1, self.seed)
        ends = {0.0: self._latents["trained"][1], 1.0: np.repeat(hidden, len(labels), axis=0)}
        curves = {f"tile_{tile}": [] for tile in TILES}
        for tile, share in _bar([*itertools.product(TILES, OCCLUDED_SHARES)], "occlusion"):
            latents = ends.get(share)
            if latents is None:
                latents = encode_occluded(encoder, images, share, tile, self.seed)
            curves[f"tile_{tile}"].append(score(latents))
        text = (
            "the paper's probe, trained on clean images, on test images of which each tile is set "
            "to mid-grey with the given probability; a mask for each image, the mean over the "
            "probe's seeds"
        )
        details = {"probabilities": list(OCCLUDED_SHARES), "tiles": list(TILES)}
        return self._protocol(text, probe_seeds=self.probe_seeds, **details), curves

    def _measure_distances(self) -> tuple[dict, dict]:
        values, sizes = {}, {}
        counts = np.unique(self.test_set.labels, return_counts=True)[1]
        different = len(self.test_set) ** 2 - np.sum(counts**2)
        same = math.comb(int(counts.min()), 2)
        for name, (_, test) in self._latents.items():
            encoder = self.model.encoder if name == "trained" else self.untrained
            occluded = encode_occluded(
                encoder, self.test_set.images, *_FIGURE_6_OCCLUSION, self.seed
            )
            ratios = distance_ratios(
                test,
                self.test_set.labels,
                occluded,
                same_class_pairs=min(_SAME_CLASS_PAIRS, max(same, 1)),
                different_class_pairs=min(_DIFFERENT_CLASS_PAIRS, int(different // 2)),
                seed=self.seed,
            )
            figures = dataclasses.asdict(ratios)
            sizes = {key: figures.pop(key) for key in list(figures) if key.endswith("_pairs")}
            values[name] = figures
        probability, tile = _FIGURE_6_OCCLUSION
        text = (
            "Euclidean distances of latents of test images, ratios of means; occluded: each tile "
            f"of {tile} pixels with probability {probability}, a mask for each image"
        )
        return self._protocol(text, **sizes), values

    def _measure_pca(self) -> tuple[dict, dict]:
        found = {name: pca_map(test) for name, (_, test) in self._latents.items()}
        self.maps["pca"] = found["trained"][0]
        values = {name: {"explained_variance": part.tolist()} for name, (_, part) in found.items()}
        return self._protocol("first two principal components of the test images' latents"), values

    def _measure_dimensions(self) -> tuple[dict, dict]:
        values = {name: filled_dimensions(test) for name, (_, test) in self._latents.items()}
        text = "participation ratio of the test images' latents"
        return self._protocol(text), values

    def _measure_tsne(self) -> tuple[dict, dict]:
        latents = self._latents["trained"][1][:_MAPPED_BY_TSNE]
        perplexity = min(30.0, (len(latents) - 1) / 3)
        self.maps["tsne"] = tsne_map(latents, perplexity=perplexity, seed=self.seed)
        text = "t-SNE of the first test images' latents: a picture, no figure"
        return self._protocol(text, mapped=len(latents), perplexity=perplexity), {}

    def _measure_fid(self) -> tuple[dict, dict]:
        distance = functools.partial(fid, self._reference)
        values = tf.nest.map_structure(distance, self._dream_features)
        return self._dream_protocol("Frechet distance of features"), values

    def _measure_kid(self) -> tuple[dict, dict]:
        # Subsets as large as the sets would all be the same.
        subsets = {"subsets": _KID_SUBSETS, "subset_size": min(_KID_SUBSET_SIZE, self._count // 2)}

        def distance(features: np.ndarray) -> dict:
            found = kid(self._reference, features, **subsets, seed=self.seed)
            return dict(zip(("distance", "deviation_of_subsets"), found, strict=True))

        protocol = self._dream_protocol("kernel distance of features, mean over subsets", **subsets)
        return protocol, tf.nest.map_structure(distance, self._dream_features)

    def _measure_density_coverage(self) -> tuple[dict, dict]:
        def both(features: np.ndarray) -> dict:
            found = density_coverage(self._reference, features, _BALL_NEIGHBOURS)
            return dict(zip(("density", "coverage"), found, strict=True))

        text = "density and coverage of the dreams in the balls around real images' features"
        protocol = self._dream_protocol(text, neighbours=_BALL_NEIGHBOURS)
        return protocol, tf.nest.map_structure(both, self._dream_features)

    def _encoded(self, encoder: keras.Model) -> list[np.ndarray]:
        """Latents of the training and of the test images."""
        return [encode(encoder, part.images) for part in (self.train_set, self.test_set)]

    @functools.cached_property
    def _latents(self) -> dict[str, list[np.ndarray]]:
        """Latents of training and test images, of each encoder."""
        encoders = {"trained": self.model.encoder, "untrained": self.untrained}
        given = {name: encoder for name, encoder in encoders.items() if encoder is not None}
        return {name: self._encoded(encoder) for name, encoder in given.items()}

    @functools.cached_property
    def _readouts(self) -> dict[str, list[ProbeResult]]:
        """The paper's probe of each encoder, at each of its seeds."""
        return {
            name: self._repeated(name, latents, f"the {name} encoder")
            for name, latents in self._latents.items()
        }

    def _repeated(self, name: str, latents: list[np.ndarray], label: str) -> list[ProbeResult]:
        """The paper's probe at each of its seeds, less the gaps."""
        seeds = _bar(range(self.seed, self.seed + self.probe_seeds), f"probe of {label}")
        found = [self._probe(linear_probe, name, latents, seed=seed) for seed in seeds]
        return [readout for readout in found if readout is not None]

    def _probe(self, probe, name: str, features: list[np.ndarray], **options) -> ProbeResult | None:
        """A readout, or None for a gap: the paper's learning rate can be too high for features."""
        result, reason = _probed(probe, features, self.train_set, self.test_set, options)
        if reason:
            seed = f", seed {options['seed']}" if "seed" in options else ""
            self._gaps[f"{probe.__name__} of {name}{seed}"] = reason
        return result

    def _pixels(self, probe) -> dict:
        """A probe of raw pixels: it depends on the data alone, and takes long."""
        kept = joblib.Memory(self.cache, verbose=0).cache(_pixel_reading)
        reading, reason = kept(probe, self.train_set, self.test_set, self.seed, _PROBES_VERSION)
        if reason:
            self._gaps[f"{probe.__name__} of pixels"] = reason
        return reading

    @functools.cached_property
    def _choice(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of the training images for reference and as memories, and of test images."""
        rng = np.random.default_rng(self.seed)
        reference = reference_rows(self.train_set)
        others = rng.permutation(np.delete(np.arange(len(self.train_set)), reference))
        count = self._count
        return reference[:count], others[:count], rng.permutation(len(self.test_set))[:count]

    @functools.cached_property
    def _reference(self) -> np.ndarray:
        return self.features.of_reference(self.train_set.images[self._choice[0]])

    @functools.cached_property
    def _dream_features(self) -> dict:
        """Of each kind of dreams, `early` and `late`, and of the test images."""
        _, memories, perceived = self._choice

        def features(time: str, model: PAD, train: np.ndarray, test: np.ndarray) -> dict:
            return {
                name: self.features(images, f"features of {time} {name.replace('_', ' ')}")
                for name, images in dreams(model, train, test, self.seed).items()
            }

        found = {}
        for model in list(self.earlier.values())[:1]:
            images = self.train_set.images[memories], self.test_set.images[perceived]
            found["early"] = features("early", model, *(encode(model.encoder, i) for i in images))
        train, test = self._latents["trained"]
        found["late"] = features("late", self.model, train[memories], test[perceived])
        real = self.features(self.test_set.images[perceived], "features of test images")
        return {**found, "test_images": real}

    def _protocol(self, text: str, **details) -> dict:
        return {
            "text": text,
            "train_images": len(self.train_set),
            "test_images": len(self.test_set),
            "seed": self.seed,
            **details,
        }

    def _dream_protocol(self, text: str, **details) -> dict:
        mixed = self.model.nrem_memories == "mixed"
        replayed = "REM's mixtures" if mixed else "training images' latents"
        return {
            "text": f"{text}; real training images, on which a feature classifier is not fitted, "
            "against as many of each kind",
            "reconstructions": "of test images",
            "nrem_replayed": f"generated from {replayed}",
            "nrem": f"the same, each perturbed by a draw of its own: {self.model.perturbation}",
            "rem": "generated from mixtures of two training images' latents and noise "
            f"({self.model.mixing}), whether or not the run had a REM phase",
            "test_images": "real ones: the floor",
            "images": self._count,
            "seed": self.seed,
            "features": self.features.name,
            "features_weights": self.features.weights,
            **({"early_epoch": next(iter(self.earlier))} if self.earlier else {}),
            **details,
        }


def dreams(model: PAD, memories: np.ndarray, perceived: np.ndarray, seed: int) -> dict:
    """What a generator makes of latents.

    Args:
        model: trained.
        memories: [N, latent_dim], latents of training images in random order.
        perceived: [M, latent_dim], latents of images to rebuild.
        seed: of perturbations and noise.

    Returns:
        `reconstructions` uint8 [M, H, W, C], `nrem_replayed`, `nrem` (perturbed as in training,
        each image by a draw of its own) and `rem`, each uint8 [N, H, W, C].
    """
    # Each memory is mixed with its neighbour.
    mixed = model.mixing(memories, np.roll(memories, 1, axis=0), tf.constant([seed, 0], tf.int64))
    replayed = _generate(model, mixed if model.nrem_memories == "mixed" else memories)
    return {
        "reconstructions": to_pixels(_generate(model, perceived)).numpy(),
        "nrem_replayed": to_pixels(replayed).numpy(),
        "nrem": to_pixels(perturb_each(model.perturbation, replayed, [seed, 1])).numpy(),
        "rem": to_pixels(_generate(model, mixed)).numpy(),
    }


def _generate(model: PAD, latents: np.ndarray | tf.Tensor) -> np.ndarray:
    parts = [model.generator(latents[rows]) for rows in gen_batches(len(latents), _BATCH)]
    return tf.concat(parts, axis=0).numpy()


def _pooled(activations: keras.KerasTensor) -> keras.KerasTensor:
    """[B, H, W, C], average-pooled until it has few enough features."""
    _, height, width, channels = activations.shape
    factor = 1
    while (height // factor) * (width // factor) * channels > _LAYER_FEATURES and factor < height:
        factor *= 2
    return activations if factor == 1 else keras.layers.AveragePooling2D(factor)(activations)


def _probed(
    probe, features: Sequence[np.ndarray], train_set: ImageSet, test_set: ImageSet, options: dict
) -> tuple[ProbeResult | None, str]:
    """A readout, or None and why it is a gap."""
    train, test = features
    options = {"num_classes": len(train_set.class_names), **options}
    try:
        return probe(train, train_set.labels, test, test_set.labels, **options), ""
    except ValueError as error:
        return None, first_line(error)


def _pixel_reading(
    probe, train_set: ImageSet, test_set: ImageSet, seed: int, version: int
) -> tuple[dict, str]:
    """A probe's reading of the images in [-1, 1], and why it is a gap if it is one."""
    sets = (train_set, test_set)
    _, side, _, channels = train_set.images.shape
    factor = 1
    while (side // factor) ** 2 * channels > _LAYER_FEATURES:
        factor *= 2
    blocks = (-1, side // factor, factor, side // factor, factor, channels)
    pooled = [part.images.reshape(blocks).mean((2, 4), dtype=np.float32) for part in sets]
    pixels = [part.reshape(len(part), -1) / 127.5 - 1 for part in pooled]
    result, reason = _probed(probe, pixels, *sets, {"seed": seed})
    return _reading(result), reason


def _accuracies(readouts: Iterable[ProbeResult]) -> pd.Series:
    """Of the seeds; pandas has NaN for the mean of none, and for the deviation of one."""
    return pd.Series([readout.accuracy for readout in readouts], dtype=float)


def _reading(result: ProbeResult | None) -> dict:
    if result is None:
        return {"accuracy": math.nan}
    reading = {
        "accuracy": result.accuracy,
        "per_class_accuracy": result.per_class_accuracy.tolist(),
        "confusion": result.confusion.tolist(),
    }
    return reading if result.alpha is None else {**reading, "alpha": result.alpha}


def _bar(items: Iterable, label: str) -> tqdm:
    return tqdm(items, desc=label, disable=None, leave=False)
