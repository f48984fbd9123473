"""`python -m ad_keras.evaluate`: measures what the paper measures, beside the published numbers."""

from collections.abc import Sequence

from ad_keras.cli import parse, quiet_start, run
from ad_keras.data import resolve
from ad_keras.evaluation.config import EvaluateConfig


def main(argv: Sequence[str]) -> None:
    """Evaluates as a command line says and prints the table."""
    config = parse(EvaluateConfig, argv, "python -m ad_keras.evaluate")
    if config.dataset:
        resolve(config.dataset)
    with quiet_start():
        from ad_keras.evaluation.report import table
        from ad_keras.evaluation.runs import evaluate
    results, folder = evaluate(config)
    print(table(results))
    print(f"\nProtocols and all numbers: {folder / 'results.json'}, {folder / 'results.csv'}")
    print(f"Pictures: {folder / 'figures'}")


if __name__ == "__main__":
    run(main)
