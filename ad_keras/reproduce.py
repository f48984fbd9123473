"""`python -m ad_keras.reproduce`: trains, measures and reports on the paper's conditions."""

import shlex
from collections.abc import Sequence

from ad_keras.cli import parse, quiet_start, run
from ad_keras.data import resolve
from ad_keras.reproduction.config import ReproduceConfig


def main(argv: Sequence[str]) -> None:
    """Reproduces the paper's results as a command line says."""
    program = "python -m ad_keras.reproduce"
    config = parse(ReproduceConfig, argv, program)
    if not config.results_dir:
        resolve(config.dataset)
    with quiet_start():
        from ad_keras.reproduction.runs import estimate, reproduce
    if config.dry_run:
        print(estimate(config))
        return
    folder = reproduce(config, shlex.join([*program.split(), *argv[1:]]))
    print(f"Report: {folder / 'report.html'} and {folder / 'report.md'}")


if __name__ == "__main__":
    run(main)
