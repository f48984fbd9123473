"""The control: the published algorithm in PyTorch, trained and measured as a run of ours is.

    python benchmarks/control.py --dataset=cifar10 --probe_every=5 --run_dir=runs/control
    python benchmarks/control.py ... --beside=runs/cifar10

It needs PyTorch: `pip install -e ".[benchmark]"`. What it shares with a run of `ad_keras` is what
measures: the images and their order (`ad_keras.data`), the probes and the evaluation. Networks,
initial weights, losses, optimizers, noise and masks are PyTorch's (`peer.py`), in float32 and on
the processor. `agreement.py --peer` says whether they are the published ones.

The run's folder holds

- `flags.json`, as of a run of ours, and `control.json`, which says that it is none;
- `history.json`: by epoch, mean losses, and the probes' accuracy on held-out training images, the
  same ones as a run of ours with the same `--seed` has;
- `results.json` and `results.csv`, as `python -m ad_keras.evaluate` writes them: the paper's probe
  (five seeds), logistic regression and ridge on the test images. "Untrained" are initial weights
  of ours, which have the same distribution;
- `state.pt`, from which the same command continues exactly: written at the end of every epoch, and
  at the present step when SIGINT or SIGTERM stops it;
- `beside.md`: the table that `--beside` prints.

The trained networks are exported as ours are, so that `python -m ad_keras.evaluate --export=...`
measures what else one likes.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import signal
from collections.abc import Sequence
from pathlib import Path

import joblib
from agreement import CONTROL_FORM, set_weights
from processes import pin_to_processor, require_torch
from tqdm import tqdm

from ad_keras import data
from ad_keras.cli import flag, on_signals, parse, quiet_start, run
from ad_keras.errors import Interrupted, RunError, UsageError, first_line
from ad_keras.evaluation.config import EvaluateConfig
from ad_keras.runs.config import CONDITIONS, RUN_ONLY, Config

RECORD = "control.json"
STATE = "state.pt"

_PROBES = {"probe": "the paper's probe", "ridge_probe": "ridge", "logistic_probe": "logistic"}


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """Trains PAD in PyTorch, and measures its encoder as runs of ad_keras are measured."""

    dataset: str = flag("synth_digits", "Data", "as for ad_keras.train; images become 32 x 32")
    data_dir: str | None = flag(None, "Data", "folder of prepared TensorFlow Datasets")

    condition: str = flag("full", "Training", "of the paper", tuple(CONDITIONS))
    epochs: int = flag(50, "Training", "passes over the training images")
    batch_size: int = flag(64, "Training", "images of a mini-batch; an incomplete one is dropped")
    base_filters: int = flag(64, "Training", "filters of the first convolution")
    latent_dim: int = flag(256, "Training", "size of the latent")
    seed: int = flag(0, "Training", "of weights, order, noise and masks")

    run_dir: str = flag("runs/control", "Run", "losses, probes, results and state")
    saved_model_dir: str | None = flag(
        None, "Run", "the exported networks (default: saved_models/<name of the run>)"
    )
    overwrite: bool = flag(False, "Run", "delete what another control left in --run_dir")
    probe_every: int = flag(1, "Run", "epochs between linear probes (0: only first and last)")
    cache_dir: str = flag(EvaluateConfig.cache_dir, "Run", "as for ad_keras.evaluate")
    beside: str | None = flag(
        None, "Run", "folder of a run of ad_keras, whose probes are shown beside the control's"
    )

    def __post_init__(self):
        require_torch("which the control is trained in")
        self.training  # noqa: B018, which refuses what cannot be

    @property
    def training(self) -> Config:
        """The flags of ours for the same training."""
        names = {field.name for field in dataclasses.fields(Config)}
        own = {name: value for name, value in vars(self).items() if name in names}
        return Config(**own, **CONDITIONS[self.condition])


def main(argv: Sequence[str]) -> None:
    """Trains, measures and prints the table."""
    config = parse(ControlConfig, argv, "python benchmarks/control.py")
    data.resolve(config.dataset)
    pin_to_processor()
    with quiet_start():
        # PyTorch's builds for GPUs load it later, when it crashes because TensorFlow is there.
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401

        from ad_keras.runs.folder import load_config, write_atomically
    if config.beside:
        load_config(Path(config.beside))  # refused before, not after hours
    folder = train(config)
    print(f"Losses, probes and results: {folder}")
    if config.beside:
        table = side_by_side(Path(config.beside), folder)
        write_atomically(folder / "beside.md", table)
        print(f"\n{table}", end="")


def train(config: ControlConfig) -> Path:
    """Trains, or continues to train, the control to its last epoch; measures it; its folder.

    Raises:
        UsageError: if the data or the folder are not as they must be.
        RunError: if a loss or the latents are not finite.
        Interrupted: after SIGINT or SIGTERM; calling again continues.
    """
    import torch

    from ad_keras.runs.build import build_model
    from ad_keras.runs.export import check_export_folder
    from ad_keras.runs.folder import RUN, open_run, read_record
    from ad_keras.runs.parts import describe_model
    from ad_keras.runs.training import chosen_images

    training = config.training
    folder = training.run_path
    if (folder / "flags.json").exists() and not (folder / RECORD).exists():
        raise UsageError(f"{folder} holds a run of ad_keras: choose another --run_dir.")
    train_set = data.load(config.dataset, "train", data_dir=config.data_dir)
    chosen_images(training, train_set, config.seed)  # refuses too few
    check_export_folder(training.export_path, folder, named=bool(config.saved_model_dir))
    state = {} if config.overwrite else _read_state(folder)
    if state and state["step"] > config.epochs * (len(train_set) // config.batch_size):
        raise UsageError(
            f"the control in {folder} is at step {state['step']}, beyond --epochs={config.epochs}: "
            "use more, or another --run_dir."
        )
    record = {
        "images": joblib.hash(train_set.images),
        "form": CONTROL_FORM,
        "torch": torch.__version__,
    }
    kind = dataclasses.replace(
        RUN, name="control", content=(*RUN.content, RECORD, STATE, "beside.md")
    )
    records = {
        RECORD: record,
        # What its export tells, as that of a run does.
        "data.json": {"images": len(train_set)},
        "model.json": describe_model(build_model(training)),
    }
    with open_run(training, kind, records):
        if (before := read_record(folder, RECORD)) != record:
            changed = ", ".join(name for name in record if before.get(name) != record[name])
            raise UsageError(
                f"the control in {folder} was begun with other {changed}: use the same again, "
                "another --run_dir, or --overwrite to delete it."
            )
        _Training(config, train_set, state).run()
    return folder


def _read_state(folder: Path) -> dict:
    """What training continues from; empty if there is nothing."""
    import torch

    try:
        return torch.load(folder / STATE)
    except FileNotFoundError:
        return {}
    except (RuntimeError, ValueError, LookupError, EOFError, pickle.PickleError) as error:
        raise RunError(
            f"{folder / STATE} is damaged ({first_line(error)}): start again with --overwrite."
        ) from error


class _Training:
    """The training loop, between its states."""

    def __init__(self, config: ControlConfig, train_set: data.ImageSet, state: dict) -> None:
        import tensorflow as tf
        import torch
        from peer import Peer

        from ad_keras.runs.build import build_model
        from ad_keras.runs.folder import read_history
        from ad_keras.runs.reports import Probe

        self._config = config
        self._images = tf.convert_to_tensor(train_set.images)  # once, not for every epoch
        self._folder = config.training.run_path
        self._per_epoch = len(train_set) // config.batch_size
        self._probe = Probe(train_set, config.seed)
        self._measured = build_model(config.training)  # of ours, with the weights of the control
        self._history = read_history(self._folder)
        torch.manual_seed(config.seed)
        self._peer = Peer(CONTROL_FORM, config.latent_dim, config.base_filters, config.condition)
        self._step = state.get("step", 0)
        self._totals = state.get("totals", {})  # losses of the epoch so far
        if state:
            self._peer.restore(state["peer"])
        self._signal = None

    def run(self) -> None:
        """Trains from the present step to the last, and measures."""
        with on_signals(self._note):
            while True:
                if self._step % self._per_epoch == 0:
                    self._report()
                if self._step == self._config.epochs * self._per_epoch:
                    break
                self._epoch()
        self._evaluate()

    def _epoch(self) -> None:
        import torch
        from peer import draw

        config = self._config
        number = self._step // self._per_epoch + 1
        last = number * self._per_epoch
        batches = data.batches(self._images, config.batch_size, config.seed, self._step, last)
        title = f"Epoch {number}/{config.epochs}"
        size = config.batch_size
        with tqdm(
            total=(last - self._step) * size, desc=title, unit=" images", disable=None
        ) as bar:
            for batch in batches.as_numpy_iterator():
                images = torch.tensor(batch).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
                losses = self._peer.step(images, *draw(size, config.latent_dim))
                self._step += 1
                for name, loss in losses.items():
                    if not abs(loss) < float("inf"):
                        raise RunError(
                            f"{name} became {loss} at step {self._step} (epoch {number}): "
                            "try another --seed, in another --run_dir. The state before is kept."
                        )
                    self._totals[name] = self._totals.get(name, 0.0) + loss
                bar.update(size)
                if self._step == last:
                    break
                self._stop_if_asked()
        self._save()

    def _report(self) -> None:
        """Writes the losses of the epoch that ended, and probes if it is time."""
        from ad_keras.runs.folder import write_atomically

        epoch = self._step // self._per_epoch
        entry = {name: total / self._per_epoch for name, total in self._totals.items()}
        entry |= self._history.get(str(epoch), {})
        every = self._config.probe_every
        due = epoch in (0, self._config.epochs) or bool(every and epoch % every == 0)
        if due and self._probe.possible and "probe/validation_accuracy" not in entry:
            set_weights(self._measured, self._peer.weights())
            entry |= self._probe(self._measured)
        self._history[str(epoch)] = dict(sorted(entry.items()))
        text = json.dumps(self._history, indent=1) + "\n"
        write_atomically(self._folder / "history.json", text)
        shown = "  ".join(
            f"{name.replace('/validation_accuracy', '')} {value:.4f}"
            for name, value in entry.items()
        )
        print(f"Epoch {epoch}/{self._config.epochs}: {shown}", flush=True)
        self._totals = {}
        self._stop_if_asked()

    def _evaluate(self) -> None:
        """Exports the networks and measures the export on the test images, unless that was done."""
        from ad_keras.evaluation.runs import evaluate
        from ad_keras.runs.export import export_networks
        from ad_keras.runs.restore import export_metadata

        training = self._config.training
        exported = (training.export_path / "metadata.json").is_file()
        if exported and _results(self._folder).get("step") == self._step:
            return
        set_weights(self._measured, self._peer.weights())
        self._measured.step.assign(self._step)
        export_networks(
            self._measured, training.export_path, export_metadata(training, self._measured)
        )
        print(f"Encoder and generator: {training.export_path}", flush=True)
        if self._probe.possible:
            evaluate(
                EvaluateConfig(
                    export=str(training.export_path),
                    data_dir=self._config.data_dir,
                    metrics=tuple(_PROBES),
                    cache_dir=self._config.cache_dir,
                    output_dir=str(self._folder),
                )
            )

    def _save(self) -> None:
        import torch

        beside = self._folder / f".{STATE}.partial"
        state = {"step": self._step, "totals": self._totals, "peer": self._peer.state()}
        torch.save(state, beside)
        os.replace(beside, self._folder / STATE)

    def _stop_if_asked(self) -> None:
        if self._signal is not None:
            if self._step % self._per_epoch:
                self._save()
            raise Interrupted(
                f"{signal.Signals(self._signal).name} at step {self._step}: the state is saved. "
                "The same command, without --overwrite, continues from here.",
                128 + self._signal,
            )

    def _note(self, number: int, _frame) -> None:
        self._signal = number
        signal.signal(number, signal.SIG_DFL)


def side_by_side(ours: Path, control: Path) -> str:
    """A table in Markdown: the probes of a run of ours beside those of the control.

    Args:
        ours: folder of the run.
        control: folder of the control.

    Returns:
        Accuracies in percent by epoch, on held-out training images, then those on the test images
        of what was evaluated. What differs between the trainings stands above it.
    """
    from ad_keras.runs.folder import load_config, read_history

    flags = [dataclasses.asdict(load_config(folder)) for folder in (ours, control)]
    different = [
        f"{name} {flags[0][name]} ({flags[1][name]})"
        for name in flags[0]
        if name not in RUN_ONLY and flags[0][name] != flags[1][name]
    ]
    histories = [read_history(folder) for folder in (ours, control)]
    lines = [
        f"{ours} beside the control in PyTorch ({control}), accuracy in %.",
        f"Other settings than the control's: {'; '.join(different) or 'none'}.",
        "",
        "| | " + " | ".join(f"{title}: ours | control" for title in _PROBES.values()) + " |",
        "|---" * (1 + 2 * len(_PROBES)) + "|",
    ]
    epochs = sorted(map(int, histories[0].keys() & histories[1].keys()))
    for epoch in epochs:
        values = [
            history[str(epoch)].get(f"{name}/validation_accuracy")
            for name in _PROBES
            for history in histories
        ]
        if any(value is not None for value in values):
            lines.append(_line(f"epoch {epoch}, held-out images", values))
    results = [_results(folder) for folder in (ours, control)]
    if any(results):
        values = [_test_accuracy(result, name) for name in _PROBES for result in results]
        reached = " and ".join(dict.fromkeys(str(each["epochs"]) for each in results if each))
        lines.append(_line(f"epoch {reached}, test images", values))
    return "\n".join(lines) + "\n"


def _line(title: str, values: Sequence[float | None]) -> str:
    cells = ["" if value is None else f"{100 * value:.1f}" for value in values]
    return f"| {title} | {' | '.join(cells)} |"


def _results(folder: Path) -> dict:
    from ad_keras.runs.restore import of_test_images

    try:
        results = json.loads((folder / "results.json").read_text())
        return results if of_test_images(results) else {}
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def _test_accuracy(results: dict, probe: str) -> float | None:
    """Of the paper's probe, the mean over its seeds; None if it was not measured."""
    metric = results.get("metrics", {}).get(probe, {})
    trained = metric.get("values", {}).get("trained", {})
    return trained.get("mean_of_seeds", trained.get("accuracy"))


if __name__ == "__main__":
    run(main)
