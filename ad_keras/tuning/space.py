"""What a search varies: one table, which keras-tuner, `--help` and docs/tuning.md are made of."""

import dataclasses
import math
from collections.abc import Callable

from ad_keras.runs.config import Config


@dataclasses.dataclass(frozen=True)
class HyperParameter:
    """A flag that a search varies.

    Attributes:
        name: of the flag.
        sampling: "log" or "linear" of an interval, or "choice" of three values.
        low: lowest value; for "log" and "choice" as a share of the flag's own value.
        high: highest value, likewise.
        used: whether training with some flags depends on this one.
    """

    name: str
    sampling: str
    low: float
    high: float
    used: Callable[[Config], bool] = lambda config: True

    def values(self, config: Config) -> tuple[float, ...]:
        """The bounds of the interval, or the values to choose from.

        That of the flags that the search starts from is among them.
        """
        value = getattr(config, self.name)
        if self.sampling == "choice":
            return tuple(sorted({max(1, int(self.low * value)), value, int(self.high * value)}))
        if self.sampling == "log":
            return self.low * value, self.high * value
        low, high = min(self.low, value), max(self.high, value)
        # The two ends of this range must not cross, whether one or both are varied.
        if self.name == "occlusion_min":
            high = min(high, config.occlusion_max)
        elif self.name == "occlusion_max":
            low = max(low, config.occlusion_min)
        return low, high

    def rounded(self, value: float, config: Config) -> float:
        """A sampled value within the bounds and short enough to be read; the flag's own stays."""
        own = getattr(config, self.name)
        if math.isclose(value, own, rel_tol=1e-6):  # a worker is told of it in single precision
            return own
        if self.sampling == "choice":
            return value
        low, high = self.values(config)
        return min(max(float(f"{value:.2g}"), low), high)

    def plays_a_role(self, config: Config) -> bool:
        """Whether training depends on the flag: neither it nor its part is switched off."""
        return bool(self.sampling != "log" or getattr(config, self.name)) and self.used(config)


def _perturbs(name: str) -> Callable[[Config], bool]:
    return lambda config: (
        name in config.glimpse or ("nrem" in config.phases and name in config.perturbation)
    )


def _mixes(config: Config) -> bool:
    return "rem" in config.phases or ("nrem" in config.phases and config.nrem_memories == "mixed")


def _contrasts(config: Config) -> bool:
    in_nrem = "nrem" in config.phases and config.recovery == "contrast"
    return in_nrem or bool(config.glimpse and config.agreement == "contrast")


SPACE = {
    entry.name: entry
    for entry in (
        HyperParameter("encoder_learning_rate", "log", 0.1, 10),
        HyperParameter("generator_learning_rate", "log", 0.1, 10),
        HyperParameter("beta_1", "linear", 0, 0.9),
        HyperParameter("kl_weight", "log", 0.25, 4),
        HyperParameter("decorrelation_weight", "log", 0.25, 4),
        HyperParameter("external_weight", "log", 0.25, 4),
        HyperParameter("recovery_weight", "log", 0.25, 4, lambda config: "nrem" in config.phases),
        HyperParameter("internal_weight", "log", 0.25, 4, lambda config: "rem" in config.phases),
        HyperParameter("mix_recent", "linear", 0, 1, _mixes),
        HyperParameter("mix_memories", "linear", 0, 1, _mixes),
        HyperParameter("occlusion_min", "linear", 0, 0.5, _perturbs("occlusion")),
        HyperParameter("occlusion_max", "linear", 0.5, 1, _perturbs("occlusion")),
        HyperParameter("crop_area", "linear", 0.05, 1, _perturbs("crop")),
        HyperParameter("colour_strength", "linear", 0, 1, _perturbs("colour")),
        HyperParameter("agreement_weight", "log", 0.25, 4, lambda config: bool(config.glimpse)),
        HyperParameter("temperature", "log", 0.25, 4, _contrasts),
        HyperParameter("base_filters", "choice", 0.5, 2),
        HyperParameter("latent_dim", "choice", 0.5, 2),
    )
}
"""What can be varied, by name. `--reconstruction_weight` is what the other weights are relative
to: Adam takes no notice of a factor that all losses have in common."""
