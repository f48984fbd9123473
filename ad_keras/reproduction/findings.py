"""The paper's claims as data, and what our figures say of them: pure functions of a tidy table."""

import dataclasses

import numpy as np
import pandas as pd

from ad_keras.evaluation import report
from ad_keras.evaluation.published import LINEAR_SEPARABILITY
from ad_keras.measures.statistics import Comparison, Summary, compare, summarise

NOT_MEASURED = "not measured"
FIRST = "first"  # epoch of a history
COLUMNS = ["condition", "seed", "epoch", "metric", "of", "figure", "value"]

Figure = tuple[str, str, str]
"""Where a figure stands in the tidy table: `metric`, `of` and `figure`."""

ACCURACY: Figure = ("probe", "trained", "mean_of_seeds")
LOST: Figure = ("occlusion", "tile_4", "lost_accuracy")
AREA: Figure = ("occlusion", "tile_4", "area")
_HELD_OUT: Figure = ("probe", "validation_accuracy", "")
_INTRA: Figure = ("distances", "trained", "intra_inter_ratio")
_OCCLUDED_SHARE = 0.3  # of tiles, at which the paper compares distances, and we the curves

NO_EFFECT = 0.03
"""Within how much accuracy "no effect" is judged: less than the smallest difference that the paper
reports as an effect on CIFAR-10 (memory mix, 4.4 points)."""

NO_BIG_EFFECT = 0.06
"""The same of "no big difference": half of what REM makes on CIFAR-10 (12.3 points)."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper: a figure of one condition is above another's, or equivalent to it.

    Attributes:
        source: table or figure of the paper.
        text: what the paper found.
        first: the condition that is claimed to be above.
        second: the other one. The same condition compares two figures of the same runs.
        figure: that is compared.
        than: with which figure, if that is another one.
        epochs: of both; None is the epoch at which runs are compared, `FIRST` a history's first.
        margin: of equivalence; None claims that the first is above.
        dataset: of the paper, on which alone it found that; None for both.
    """

    source: str
    text: str
    first: str
    second: str
    figure: Figure
    than: Figure | None = None
    epochs: tuple[int | str | None, int | str | None] = (None, None)
    margin: float | None = None
    dataset: str | None = None

    @property
    def is_share(self) -> bool:
        """Whether people read the figures in percent."""
        return self.figure[0] not in ("fid", "distances", "wake") and self.figure != AREA


_RAISES = "raises linear separability"
_TABLE_1 = (
    Claim("Table 1", f"REM {_RAISES}", "full", "no_rem", ACCURACY),
    Claim("Table 1", f"Mixing memories in REM {_RAISES}", "full", "no_memory_mix", ACCURACY),
    Claim(
        "Table 1",
        "NREM does not change linear separability of clean images (CIFAR-10)",
        *("full", "no_nrem", ACCURACY),
        margin=NO_EFFECT,
        dataset="cifar10",
    ),
    Claim(
        "Table 1",
        f"NREM {_RAISES} of clean images (SVHN)",
        *("full", "no_nrem", ACCURACY),
        dataset="svhn",
    ),
)
_LATE = "from epoch 50 to 100 (held-out images)"

CLAIMS = (
    *_TABLE_1,
    *(
        Claim(
            "Figure 3",
            f"{kind.upper()} dreams come nearer to real images as PAD trains: their FID falls",
            *("full", "full", ("fid", "early", kind), ("fid", "late", kind)),
        )
        for kind in ("nrem", "rem")
    ),
    Claim(
        "Figure 4",
        f"Training PAD {_RAISES} (held-out images)",
        *("full", "full", _HELD_OUT),
        epochs=(None, FIRST),
    ),
    Claim(
        "Figure 5",
        "Without NREM, a larger share of the accuracy above chance is lost under 30 % occlusion",
        *("no_nrem", "full", LOST),
    ),
    Claim(
        "Figure 6",
        "Without REM, distances within classes are larger, against those between classes",
        *("no_rem", "full", _INTRA),
    ),
    Claim(
        "Figure 6",
        "Without NREM, occluded images are further from clean ones, against distances between "
        "classes",
        *("no_nrem", "full", ("distances", "trained", "occluded_inter_ratio")),
    ),
    *(
        Claim(
            "Supplement",
            f"{text} makes no big difference to linear separability",
            *(condition, "full", ACCURACY),
            margin=NO_BIG_EFFECT,
        )
        for condition, text in (
            ("rem_noise_only", "REM from noise only"),
            ("rem_mix_only", "REM from memories only"),
            ("rem_before_nrem", "REM before NREM"),
        )
    ),
    Claim(
        "Supplement",
        "NREM of mixed memories protects less: a larger share is lost under 30 % occlusion",
        *("nrem_mixed", "full", LOST),
    ),
    Claim(
        "Supplement",
        f"PAD keeps its linear separability {_LATE}",
        *("full", "full", _HELD_OUT),
        epochs=(100, 50),
        margin=NO_EFFECT,
    ),
    *(
        Claim(
            "Supplement",
            f"{text} loses linear separability {_LATE}",
            *(condition, condition, _HELD_OUT),
            epochs=(50, 100),
        )
        for condition, text in (("no_nrem", "PAD without NREM"), ("wake_only", "Wake only"))
    ),
)
"""One comparison for each claim of the paper."""

CHECKS = (
    *(
        dataclasses.replace(
            claim, text=f"{claim.text}: {name}", figure=(metric, "trained", "accuracy")
        )
        for metric, name in (("logistic_probe", "logistic regression"), ("ridge_probe", "ridge"))
        for claim in _TABLE_1
    ),
    Claim("Table 1", f"REM {_RAISES} without NREM", "no_nrem", "wake_only", ACCURACY),
    Claim("Figure 4", f"REM {_RAISES} (held-out images)", "full", "no_rem", _HELD_OUT),
    *(
        Claim(
            "Figure 5",
            f"Without NREM, more is lost under 30 % occlusion: tiles of {tile} px",
            *("no_nrem", "full", ("occlusion", f"tile_{tile}", "lost_accuracy")),
        )
        for tile in (1, 2, 8)
    ),
    Claim("Figure 5", "NREM enlarges the area under the curve", "full", "no_nrem", AREA),
    Claim(
        "Figure 6",
        "Without REM, the ratio within classes is nearer to the untrained encoder's",
        *("full", "no_rem", ("distances", "from_untrained", "intra_inter_ratio")),
    ),
    Claim(
        "Figure 3",
        "Reconstructions improve with training: their loss falls",
        *("full", "full", ("wake", "reconstruction_loss", "")),
        epochs=(FIRST, None),
    ),
)
"""How robust these are."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What our figures say of a claim.

    Attributes:
        claim: of the paper.
        first: the figure that is claimed to be above; None where it was not measured.
        second: the other one.
        comparison: of both; None where one is missing.
    """

    claim: Claim
    first: Summary | None
    second: Summary | None
    comparison: Comparison | None

    @property
    def verdict(self) -> str:
        """One of `ad_keras.measures.statistics`, or `NOT_MEASURED`."""
        return NOT_MEASURED if self.comparison is None else self.comparison.verdict


def tidy(condition: str, seed: int, results: dict, history: dict) -> pd.DataFrame:
    """All figures of a run, a line each.

    Args:
        condition: of the run.
        seed: of the run.
        results: what `results.json` says.
        history: what `history.json` says.

    Returns:
        `COLUMNS`. Figures of the history, such as `probe/validation_accuracy`, are in `metric` and
        `of`. Probes of earlier epochs have the names of the last one's. Of each curve under
        occlusion there are, too, the `lost_accuracy` under 30 % occlusion, as a share of the
        accuracy above chance, and the `area` under the curve of what is left of that, which is 1
        where nothing is lost; of distances, how far the ratio within classes is `from_untrained`.
    """
    rows = [
        (condition, seed, int(epoch), *name.split("/", 1), "", value)
        for epoch, entry in history.items()
        for name, value in entry.items()
        if "/" in name
    ]
    measured = report.tidy(results)[COLUMNS[3:]]
    earlier = measured.metric == "epochs"
    for _, epoch, figure, value in measured[earlier].itertuples(index=False):
        metric, of_metric = figure.split("/")
        rows.append((condition, seed, int(epoch), metric, "trained", of_metric, value))
    lines = [
        *measured[~earlier].itertuples(index=False),
        *_derived(measured, report.chance(results)),
    ]
    rows += [(condition, seed, results["epochs"], *line) for line in lines]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def values(
    frame: pd.DataFrame, condition: str, figure: Figure, at: int, epoch: int | str | None = None
) -> pd.Series:
    """A figure of each seed of a condition, as far as it is finite.

    Args:
        frame: of `tidy`, of all runs.
        condition: whose.
        figure: which.
        at: the epoch at which runs are compared.
        epoch: None for that, a number, or `FIRST`.
    """
    rows = frame[(frame[["condition", *COLUMNS[3:6]]] == [condition, *figure]).all(axis=1)]
    if epoch == FIRST:
        rows = rows[(rows.epoch == rows.epoch.min()) & (rows.epoch < at)]
    else:
        rows = rows[rows.epoch == (at if epoch is None else epoch)]
    found = rows.set_index("seed").value
    return found[np.isfinite(found)].sort_index()


def judge(claim: Claim, frame: pd.DataFrame, at: int) -> Finding:
    """What the figures of all runs, from `tidy`, say of a claim where they are compared `at`."""
    paired = claim.first == claim.second
    first = values(frame, claim.first, claim.figure, at, claim.epochs[0])
    second = values(frame, claim.second, claim.than or claim.figure, at, claim.epochs[1])
    if paired:
        first, second = first.align(second, join="inner")
    sums = [summarise(part) if len(part) else None for part in (first, second)]
    missing = None in sums
    compared = None if missing else compare(first, second, paired=paired, margin=claim.margin)
    return Finding(claim, *sums, compared)


def judge_all(frame: pd.DataFrame, dataset: str, at: int) -> tuple[list[Finding], list[Finding]]:
    """What the figures say of the paper's claims, and of the checks.

    Args:
        frame: of `tidy`, of all runs.
        dataset: that they are of. What the paper found on one data set counts on that, is left out
            on its other one, and is a check on all others.
        at: the epoch at which runs are compared.
    """
    claims = [claim for claim in CLAIMS if claim.dataset in (None, dataset)]
    checks = [claim for claim in (*CLAIMS, *CHECKS) if claim not in claims]
    if dataset in LINEAR_SEPARABILITY:
        checks = [claim for claim in checks if claim.dataset in (None, dataset)]
    return tuple([judge(claim, frame, at) for claim in found] for found in (claims, checks))


def _derived(measured: pd.DataFrame, chance: float) -> list[tuple[str, str, str, float]]:
    found = []
    for tile, curve in measured[measured.metric == "occlusion"].groupby("of"):
        shares, accuracies = curve.figure.astype(float).to_numpy(), curve.value.to_numpy()
        above = accuracies[0] - chance
        left = (accuracies - chance) / (above if above > 0 else np.nan)
        lost = 1 - np.interp(_OCCLUDED_SHARE, shares, left)
        area = np.trapezoid(left, shares)
        found += [("occlusion", tile, "lost_accuracy", lost), ("occlusion", tile, "area", area)]
    ratios = measured[measured.figure == "intra_inter_ratio"].set_index("of").value
    if {"trained", "untrained"} <= set(ratios.index):
        gap = abs(ratios["trained"] - ratios["untrained"])
        found.append(("distances", "from_untrained", "intra_inter_ratio", gap))
    return found
