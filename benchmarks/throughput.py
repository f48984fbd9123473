"""How fast `ad_keras` trains on this machine, beside PyTorch and as data grow.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --peer             # needs pip install -e ".[benchmark]"
    python benchmarks/throughput.py --parts=scale      # 10k, 50k and 500k images
    python benchmarks/throughput.py --output=FILE.json

Whatever is compared trains in short rounds, one contender after the other, each in a process of
its own that waits while the others work. With `--peer`, all of them compute on the processor. Run
it on a machine that does nothing else: contenders suffer very differently from other programs, and
"others" in the table is how much of the processor those used. Images are noise of the shape of
CIFAR-10 and SVHN: what is on them does not change the time of a step.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from processes import Worker, pin_to_processor, require_torch

from ad_keras.cli import flag, parse, run
from ad_keras.errors import UsageError

PARTS = ("training", "scale")
PRECISIONS = ("float32", "mixed_bfloat16")

_DISTURBED = 0.1  # share of the processor that others may use


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Measures training on this machine."""

    parts: tuple[str, ...] = flag(
        PARTS[:1], "What to measure", f"which of {', '.join(PARTS)}; scale takes minutes"
    )
    peer: bool = flag(False, "What to measure", "train PyTorch's implementations in turn with ours")
    precision: tuple[str, ...] = flag(
        PRECISIONS, "What to measure", "of ours, in the part training"
    )
    rounds: int = flag(5, "How long", "rounds of training for each contender")
    seconds: float = flag(4.0, "How long", "seconds of a round")
    batch_size: int = flag(64, "Sizes", "images of a mini-batch")
    base_filters: int = flag(64, "Sizes", "filters of the first convolution")
    latent_dim: int = flag(256, "Sizes", "size of the latent")
    num_images: int = flag(50_000, "Sizes", "training images of the part training")
    scale_images: tuple[str, ...] = flag(
        ("10000", "50000", "500000"), "Sizes", "training images of the part scale"
    )
    scale_filters: int = flag(8, "Sizes", "base filters of the part scale, small to end in minutes")
    output: str | None = flag(None, "Output", "JSON file for all numbers")

    def __post_init__(self):
        for name, known in (("parts", PARTS), ("precision", PRECISIONS)):
            for value in getattr(self, name):
                if value not in known:
                    raise UsageError(f"--{name}={value} is not one of {', '.join(known)}.")
        for name in ("rounds", "base_filters", "latent_dim"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name}={getattr(self, name)} must be at least 1.")
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"--seconds={self.seconds} must be above 0.")
        if self.batch_size < 2:
            raise UsageError(f"--batch_size={self.batch_size} must be at least 2.")
        for name, count in (
            ("num_images", str(self.num_images)),
            *(("scale_images", count) for count in self.scale_images),
        ):
            if not count.isdecimal() or int(count) < self.batch_size:
                raise UsageError(
                    f"--{name}={count} must be a number of at least --batch_size "
                    f"({self.batch_size})."
                )
        if self.peer:
            require_torch("or leave out --peer")

    @property
    def networks(self) -> dict:
        """What the figures depend on, as flags of a training."""
        names = ("batch_size", "base_filters", "latent_dim")
        return {name: getattr(self, name) for name in names}


def main(argv: Sequence[str]) -> None:
    """Measures, prints tables, and writes the JSON file."""
    config = parse(BenchmarkConfig, argv, "python benchmarks/throughput.py")
    if config.peer:
        pin_to_processor()
    operations = _measure("work", **config.networks)
    results = {
        "machine": _machine(config),
        "settings": dataclasses.asdict(config),
        "operations_per_image": operations,
    }
    for name, value in results["machine"].items():
        print(f"{name}: {value}")
    total = sum(operations.values())
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in operations.items())
    print(f"work: {total / 1e6:.1f} MFLOP an image in training ({shares})")
    for part in PARTS:
        if part in config.parts:
            results[part] = (_training if part == "training" else _scale)(config, operations)
    if config.output:
        Path(config.output).write_text(json.dumps(results, indent=1) + "\n")


def _training(config: BenchmarkConfig, operations: dict[str, float]) -> dict:
    settings = {**config.networks, "images": config.num_images}
    contenders = {
        f"ad_keras {precision}": ("measurements", {"precision": precision})
        for precision in config.precision
    }
    if config.peer:
        for form in ("plain", "tuned", "rewritten"):
            contenders[f"PyTorch {form}"] = ("peer", {"form": form})
    with contextlib.ExitStack() as stack:
        scale = stack.enter_context(Worker("measurements", "product_rounds"))
        scale.receive()
        workers = {}
        for name, (module, own) in contenders.items():
            _say(f"starting {name}")
            workers[name] = stack.enter_context(Worker(module, "train_rounds", **own, **settings))
            workers[name].receive()
        rounds = []
        for number in range(config.rounds):
            _say(f"round {number + 1} of {config.rounds}")
            order = list(workers)
            order = order[number % len(order) :] + order[: number % len(order)]
            rounds.append({name: workers[name].round(config.seconds) for name in order})
            rounds[-1]["products"] = scale.round(config.seconds / 4)
    rates = {
        name: [turn[name]["steps"] * config.batch_size / turn[name]["seconds"] for turn in rounds]
        for name in workers
    }
    products = {
        name: statistics.median(turn["products"][name] for turn in rounds)
        for name in ("float32", "bfloat16")
    }
    total = sum(operations.values())
    results = {"products": products, "contenders": {}, "ratios": {}}
    for name, values in rates.items():
        rate = statistics.median(values)
        scale_of = "float32" if name in ("ad_keras float32", "PyTorch plain") else "bfloat16"
        results["contenders"][name] = {
            "images_per_second": rate,
            "rounds": values,
            "flops": rate * total,
            "share_of_product_rate": rate * total / products[scale_of],
            "peak_bytes": rounds[-1][name]["peak_bytes"],
            "others": statistics.median(turn[name]["others"] for turn in rounds),
        }
    _table(
        f"Training, median of {config.rounds} rounds of {config.seconds:g} s",
        ("", "images/s", "min", "max", "ms/step", "GFLOP/s", "of products", "peak MB", "others"),
        [
            (
                name,
                f"{entry['images_per_second']:.0f}",
                f"{min(entry['rounds']):.0f}",
                f"{max(entry['rounds']):.0f}",
                f"{1000 * config.batch_size / entry['images_per_second']:.1f}",
                f"{entry['flops'] / 1e9:.0f}",
                f"{entry['share_of_product_rate']:.0%}",
                f"{entry['peak_bytes'] / 1e6:.0f}",
                f"{entry['others']:.0%}",
            )
            for name, entry in results["contenders"].items()
        ],
    )
    for name, rate in products.items():
        print(f"Products of large matrices in {name}: {rate / 1e9:.0f} GFLOP/s")
    others = max(entry["others"] for entry in results["contenders"].values())
    if others > _DISTURBED:
        print(
            f"Other programs used up to {others:.0%} of the processor in the median round. That "
            "slows some contenders far more than\nothers (threads wait for each other): neither "
            "rates nor ratios hold. The best rounds are the least wrong."
        )
    ours = [name for name in rates if name.startswith("ad_keras")]
    theirs = [name for name in rates if name.startswith("PyTorch")]
    for mine in ours:
        for other in theirs:
            quotients = [a / b for a, b in zip(rates[mine], rates[other], strict=True)]
            results["ratios"][f"{mine} / {other}"] = {
                "median": statistics.median(quotients),
                "min": min(quotients),
                "max": max(quotients),
                "best": max(rates[mine]) / max(rates[other]),
            }
    if results["ratios"]:
        _table(
            "Ratio of images/s in the same round, and of the best rounds",
            ("", "median", "min", "max", "of best"),
            [
                (name, *(f"{value:.2f}" for value in ratio.values()))
                for name, ratio in results["ratios"].items()
            ],
        )
    return results


def _scale(config: BenchmarkConfig, _: dict[str, float]) -> list:
    sizes = [int(count) for count in config.scale_images]
    cases = [(images, 1) for images in sizes] + [(min(sizes), epochs) for epochs in (2, 4)]
    settings = {**config.networks, "base_filters": config.scale_filters}
    results, rows = [], []
    for images, epochs in cases:
        result = _measure("scale", images=images, epochs=epochs, **settings)
        results.append({"images": images, "epochs": epochs, **result})
        thousands = images * epochs / 1000
        megabytes = {
            name: result[name] / 1e6
            for name in ("bytes_before", "bytes_at_tenth", "bytes_at_end", "peak_bytes")
        }
        rows.append(
            (
                f"{images} images, {epochs} epochs",
                f"{result['seconds']:.1f}",
                f"{result['steps_seconds']:.1f}",
                f"{result['steps_seconds'] / thousands:.3f}",
                *(f"{value:.0f}" for value in megabytes.values()),
            )
        )
    _table(
        f"Whole trainings with base_filters={config.scale_filters}. Memory: with the images but "
        "before training, after a tenth of\nthe first epoch, at the last epoch's end, highest (MB)",
        ("", "s", "s in steps", "per 1000", "before", "tenth", "end", "peak"),
        rows,
    )
    return results


def _measure(function: str, **settings):
    _say(function)
    with Worker("measurements", function, **settings) as worker:
        return worker.receive()


def _machine(config: BenchmarkConfig) -> dict[str, str]:
    names = ["tensorflow", "keras", "numpy", *(["torch"] if config.peer else [])]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "devices": (
            "the processor for all, GPUs are left out" if config.peer else "what TensorFlow finds"
        ),
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _say(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    print(f"\n{title}")
    for row in (head, *rows):
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([f"{row[0]:<{widths[0]}}", *cells]), flush=True)


if __name__ == "__main__":
    run(main)
