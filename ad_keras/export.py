"""`python -m ad_keras.export`: exports the networks of a run's newest checkpoint."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ad_keras.cli import flag, parse, quiet_start, run
from ad_keras.errors import UsageError


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Exports encoder and generator of a run, trained to its end or not."""

    run_dir: str | None = flag(None, "Flags", "folder of the run")
    saved_model_dir: str | None = flag(
        None,
        "Flags",
        "folder of the exported networks (default: the one of the run's training, or for a copied "
        "run saved_models/<run>)",
    )

    def __post_init__(self):
        if not self.run_dir:
            raise UsageError("--run_dir is missing: name the folder of a run.")


def main(argv: Sequence[str]) -> None:
    """Exports as a command line says."""
    flags = parse(ExportConfig, argv, "python -m ad_keras.export")
    with quiet_start():
        from ad_keras.runs.export import check_export_folder, export_networks
        from ad_keras.runs.folder import failures_explained
        from ad_keras.runs.restore import export_metadata, restore_run
    config, model = restore_run(Path(flags.run_dir))
    folder = Path(flags.saved_model_dir) if flags.saved_model_dir else config.export_path
    check_export_folder(folder, config.run_path, named=bool(flags.saved_model_dir))
    with failures_explained(config.run_path):
        export_networks(model, folder, export_metadata(config, model))
    print(f"Encoder and generator after {int(model.step.numpy())} steps: {folder}")


if __name__ == "__main__":
    run(main)
