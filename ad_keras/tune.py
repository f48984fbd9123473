"""`python -m ad_keras.tune`: searches hyper-parameters and writes a flagfile of the best."""

from collections.abc import Sequence

from ad_keras.cli import parse, quiet_start, run
from ad_keras.data import resolve
from ad_keras.tuning.config import TuneConfig


def main(argv: Sequence[str]) -> None:
    """Searches as a command line says and prints what came out."""
    config = parse(TuneConfig, argv, "python -m ad_keras.tune")
    resolve(config.dataset)
    with quiet_start():
        from ad_keras.tuning.search import search
    results = search(config)
    print()
    if results is None:
        print(f"The search is finished; its chief writes the results in {config.run_path}")
        return
    print(results.summary())
    print(f"All trials: {config.run_path / 'trials.md'}")
    print(f"Train with the best: python -m ad_keras.train --flagfile={results.flagfile}")
    print(f"Watch: tensorboard --logdir={config.run_path}")


if __name__ == "__main__":
    run(main)
