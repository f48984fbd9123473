"""What an evaluation is told."""

import dataclasses
from pathlib import Path

from ad_keras.cli import flag, require, require_known
from ad_keras.errors import UsageError

METRICS = {
    "probe": "linear probe, the paper's protocol",
    "logistic_probe": "logistic regression run to convergence",
    "ridge_probe": "linear probe in closed form",
    "epochs": "the paper's and the ridge probe of earlier epochs (Figure 4)",
    "knn": "nearest neighbours",
    "occlusion": "probe under occlusion (Figure 5)",
    "distances": "ratios of distances (Figure 6)",
    "pca": "principal components (Figure 6)",
    "dimensions": "how many dimensions the latents fill",
    "fid": "Frechet distance of dreams (Figure 3)",
    "kid": "kernel distance of dreams",
    "density_coverage": "density and coverage of dreams",
    "layers": "the paper's and the ridge probe on each block of the encoder",
    "tsne": "a map of the latents",
}
"""What can be measured, in the order in which it is."""

ONLY_IF_NAMED = ("layers", "tsne")
"""Slow ones that `all` leaves out."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Measures runs or exported networks: a table, results.json and .csv, pictures, TensorBoard."""

    run_dir: tuple[str, ...] = flag(
        (),
        "Model",
        "folder of a run, finished or not. Repeat the flag for other seeds of the same condition: "
        "means and standard errors follow",
        repeatable=True,
    )
    epoch: int = flag(0, "Model", "epoch of the run: 1, 2, 5, 10, ... are kept (0: the newest)")
    export: str | None = flag(None, "Model", "folder of exported networks, instead of --run_dir")

    dataset: str | None = flag(None, "Data", "data set, as for training (default: the run's)")
    data_dir: str | None = flag(
        None, "Data", "folder of prepared TensorFlow Datasets (default: the run's)"
    )
    held_out: bool = flag(
        False,
        "Data",
        "measure on held-out training images instead of test images, for choices such as of "
        "flags: on the tenth that training with --hold_out leaves out",
    )

    metrics: tuple[str, ...] = flag(
        ("all",),
        "Metrics",
        f"a list of {', '.join(METRICS)}; all leaves out {' and '.join(ONLY_IF_NAMED)}",
    )
    num_dreams: int = flag(
        10_000,
        "Metrics",
        "number of dreams of each kind that are compared with as many real images, 10,000 at most",
    )
    features: str = flag(
        "classifier",
        "Metrics",
        "features in which dreams are compared: of a classifier, trained once on the same data, or "
        "of Inception v3",
        ("classifier", "inception"),
    )
    inception_weights: str | None = flag(
        None, "Metrics", "file of Inception's weights, without its last layer (default: a download)"
    )
    probe_seeds: int = flag(5, "Metrics", "number of seeds of the paper's probe, which is noisy")
    seed: int = flag(0, "Metrics", "seed of probes, masks, choices and noise")

    cache_dir: str = flag(
        "~/.cache/ad_keras", "Output", "folder of the classifier and the features of real images"
    )
    output_dir: str | None = flag(
        None,
        "Output",
        "folder of results.json, results.csv and figures/. Defaults: for a run, its own folder; "
        "for an export, <export>-evaluation beside it; with --held_out, held_out/ in these; "
        "for several runs, evaluation-<data set>-<condition> beside the first",
    )

    def __post_init__(self):
        require_model(self)
        require_known(self, "metrics", [*METRICS, "all"])
        if not self.metrics:
            raise UsageError(f"--metrics is empty: it is all, or a list of {', '.join(METRICS)}.")
        if self.held_out and len(self.run_dir) > 1:
            raise UsageError("--held_out is for one run: each seed leaves other images out.")
        if (
            self.export
            and self.output_dir
            and Path(self.output_dir).resolve() == Path(self.export).resolve()
        ):
            raise UsageError(
                f"--output_dir={self.output_dir} is the folder of --export, which the next export "
                "replaces: choose another."
            )
        if self.epoch and self.export:
            raise UsageError("--epoch chooses a state of a run: an export has only one.")
        for name, least in (("num_dreams", 1), ("probe_seeds", 1), ("seed", 0), ("epoch", 0)):
            require(self, name, getattr(self, name) >= least, f"at least {least}")
        require(self, "seed", self.seed < 2**32, "below 2**32, for t-SNE")
        if self.inception_weights:
            usable = self.features == "inception" and Path(self.inception_weights).is_file()
            require(self, "inception_weights", usable, "a file, with --features=inception")

    @property
    def chosen_metrics(self) -> list[str]:
        """The metrics by name, in the order in which they are measured."""
        wanted = set(self.metrics)
        if "all" in wanted:
            wanted |= set(METRICS) - set(ONLY_IF_NAMED)
        return [name for name in METRICS if name in wanted]


def require_model(config: object) -> None:
    """Refuses flags that name no model, or two, by a `UsageError`."""
    if bool(config.run_dir) == bool(config.export):
        raise UsageError(
            "name one of --run_dir (the folder of a run) and --export (of exported networks)."
        )
