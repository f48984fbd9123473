"""What a search varies: one table, which keras-tuner, `--help` and docs/tuning.md are made of."""

import dataclasses

from ad_keras.runs.config import Config


@dataclasses.dataclass(frozen=True)
class HyperParameter:
    """A flag that a search varies.

    Attributes:
        name: of the flag.
        sampling: "log" or "linear" of an interval, or "choice" of three values.
        low: lowest value; for "log" and "choice" as a share of the flag's own value.
        high: highest value, likewise.
        phase: without which the flag plays no role.
    """

    name: str
    sampling: str
    low: float
    high: float
    phase: str | None = None

    @property
    def range(self) -> str:
        """The values in words."""
        if self.sampling == "linear":
            return f"{self.low:g} to {self.high:g}"
        if self.sampling == "log":
            return f"{self.low:g} to {self.high:g} times the flag"
        return f"{self.low:g}, 1 or {self.high:g} times the flag"

    def values(self, config: Config) -> tuple[float, ...]:
        """The bounds of the interval, or the values to choose from, in order.

        The flag's own value is always among them.

        Args:
            config: the flags that the search starts from.
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
        """A value within the bounds that is short enough to be read.

        Args:
            value: as sampled.
            config: the flags that the search starts from.
        """
        if self.sampling == "choice":
            return value
        low, high = self.values(config)
        return min(max(float(f"{value:.2g}"), low), high)

    def plays_a_role(self, config: Config) -> bool:
        """Whether training depends on the flag at all.

        Args:
            config: the flags that the search starts from.
        """
        if self.sampling != "linear" and not getattr(config, self.name):
            return False  # a loss that is switched off
        if self.name.startswith("mix_") and config.nrem_memories == "mixed":
            return {"nrem", "rem"} & set(config.phases) != set()
        return self.phase is None or self.phase in config.phases


SPACE = {
    entry.name: entry
    for entry in (
        HyperParameter("encoder_learning_rate", "log", 0.1, 10),
        HyperParameter("generator_learning_rate", "log", 0.1, 10),
        HyperParameter("beta_1", "linear", 0, 0.9),
        HyperParameter("kl_weight", "log", 0.25, 4),
        HyperParameter("external_weight", "log", 0.25, 4),
        HyperParameter("recovery_weight", "log", 0.25, 4, "nrem"),
        HyperParameter("internal_weight", "log", 0.25, 4, "rem"),
        HyperParameter("mix_recent", "linear", 0, 1, "rem"),
        HyperParameter("mix_memories", "linear", 0, 1, "rem"),
        HyperParameter("occlusion_min", "linear", 0, 0.5, "nrem"),
        HyperParameter("occlusion_max", "linear", 0.5, 1, "nrem"),
        HyperParameter("base_filters", "choice", 0.5, 2),
        HyperParameter("latent_dim", "choice", 0.5, 2),
    )
}
"""What can be varied, by name. `--reconstruction_weight` is what the other weights are relative
to: Adam takes no notice of a factor that all losses have in common."""


def table() -> str:
    """The space as a table in Markdown."""
    lines = ["| flag | range | sampling |", "|---|---|---|"]
    lines += [f"| `{entry.name}` | {entry.range} | {entry.sampling} |" for entry in SPACE.values()]
    return "\n".join(lines)
