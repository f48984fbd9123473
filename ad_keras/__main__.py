"""`ad-keras COMMAND` and `python -m ad_keras COMMAND`: all commands under one name."""

import importlib
from collections.abc import Sequence

from ad_keras.cli import run
from ad_keras.errors import UsageError, advice

COMMANDS = {
    "train": "trains PAD, shows its dreams, exports its encoder",
    "evaluate": "measures what the paper measures, beside the published numbers",
    "dream": "draws what a trained model perceives, replays and dreams",
    "reproduce": "trains, measures and reports on the paper's conditions",
    "tune": "searches hyper-parameters and writes a flagfile of the best",
    "export": "exports the networks of a run's newest checkpoint",
}


def main() -> None:
    """What `ad-keras` calls."""
    run(run_command)


def run_command(argv: Sequence[str]) -> None:
    """Runs the command that is named, loading only what it needs, or lists all."""
    if len(argv) < 2 or argv[1] in ("--help", "-help", "-h", "--h"):
        print("ad-keras COMMAND [flags]\n")
        for name, description in COMMANDS.items():
            print(f"  {name:<11}{description}")
        print("\nad-keras COMMAND --help lists the flags of a command.")
        return
    program, name, *arguments = argv
    if name not in COMMANDS:
        raise UsageError(f"'{name}' is not a command. {advice(name, COMMANDS)}")
    importlib.import_module(f"ad_keras.{name}").main([f"{program} {name}", *arguments])


if __name__ == "__main__":
    main()
