"""Runs the trials: keras-tuner chooses the values, training trains and scores them."""

import contextlib
import os
import shutil
import socket
import time
import warnings
from pathlib import Path

import grpc
import keras
import keras_tuner
import tensorflow as tf
from sklearn.exceptions import ConvergenceWarning
from tensorboard.plugins.hparams import api as hparams

from ad_keras import data
from ad_keras.cli import interruptible
from ad_keras.compute.cluster import refuse_workers
from ad_keras.errors import Interrupted, RunError, UsageError, first_line
from ad_keras.runs.folder import (
    FolderKind,
    disk_question,
    failures_explained,
    load_config,
    open_run,
    refuse_other_flags,
    write_atomically,
)
from ad_keras.runs.reports import Probe
from ad_keras.runs.training import train
from ad_keras.tuning.config import MAY_CHANGE, TuneConfig
from ad_keras.tuning.results import FAILURE, PROBES, SEEDS, UNTUNED, Results, Trial, as_flags
from ad_keras.tuning.space import SPACE

_ORACLE = "oracle"  # folder of keras-tuner's own files
_SEARCH = FolderKind(
    "search",
    "--tuner_dir",
    TuneConfig,
    "search.json",
    ("trials", "logs", "trials.json", "trials.md", "tuned_*.flags", _ORACLE),
    MAY_CHANGE,
)
_HOPELESS = 5  # failed trials after which a search ends if none has worked
_VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
_SECONDS_TO_WAIT = 300.0  # the chief may be started later, and loads TensorFlow first


def search(flags: TuneConfig) -> Results | None:
    """Searches, or continues to search, and trains the best trials again with other seeds.

    Args:
        flags: of the command line.

    Returns:
        The trials; None for a worker of a distributed search, whose chief has them.

    Raises:
        UsageError: if the data, the folder or the environment are not as they must be.
        RunError: if no trial worked, or the disk or the connection fails.
        Interrupted: after SIGINT or SIGTERM; calling again continues.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    refuse_workers("the workers of a search are named by KERASTUNER_TUNER_ID: unset TF_CONFIG.")
    part, address = _part()
    with interruptible(), warnings.catch_warnings(), failures_explained(flags.run_path):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # of failed trials
        _refuse_unlabelled(flags)
        if part == "worker":
            _work(flags, address)
            return None
        with open_run(flags, _SEARCH):
            _describe(flags)
            tuner = _Tuner(flags, part)
            if part == "chief":
                print(f"chief: serving {address}, trials in {flags.run_path}", flush=True)
            try:
                tuner.run()
                tuner.retrain()
            finally:
                tuner.results().write()
    results = tuner.results()
    results.require_one()
    return results


def _part() -> tuple[str, str]:
    """What this process does, "single", "chief" or "worker", and the address of the chief."""
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if len(missing) == len(_VARIABLES):
        return "single", ""
    if missing:
        raise UsageError(
            f"no value in {' and '.join(missing)}: a distributed search needs all of "
            f"{', '.join(_VARIABLES)}, a search by one process none."
        )
    tuner_id, ip, port = (os.environ[name] for name in _VARIABLES)
    if "chief" not in tuner_id:  # by which keras-tuner knows it
        return "worker", f"{ip}:{port}"
    try:
        if not (port.isdecimal() and 0 < int(port) < 2**16):
            raise OSError("a port is a number from 1 to 65535")
        # gRPC would share a port with another chief, which then gets half of the requests.
        socket.create_server((ip, int(port))).close()
    except OSError as error:
        raise UsageError(
            f"no chief can serve at {ip}:{port} ({first_line(error)}): choose an address of this "
            "machine and a free port."
        ) from error
    return "chief", f"{ip}:{port}"


def _refuse_unlabelled(flags: TuneConfig) -> None:
    images = data.load(flags.dataset, "train", data_dir=flags.data_dir, image_size=flags.image_size)
    if not Probe(images.take(flags.train_examples or len(images)), flags.seed).possible:
        raise UsageError(
            f"--dataset={flags.dataset} has no labels of several classes, which the probes need: "
            "sort the images into a folder for each class."
        )


def _work(flags: TuneConfig, address: str) -> None:
    print(f"worker: waiting for the chief at {address}", flush=True)
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(_SECONDS_TO_WAIT)
        refuse_other_flags(load_config(flags.run_path, _SEARCH), flags, _SEARCH)
        _Tuner(flags, "worker").run()
    except grpc.FutureTimeoutError:
        raise RunError(
            f"no chief answers at {address}. Start it, then this worker again; if the search is "
            "finished, its results are in --tuner_dir."
        ) from None
    except grpc.RpcError as error:
        raise RunError(
            f"the chief at {address} failed or was stopped ({error.code().name}). Start it and "
            "this worker again: the search continues."
        ) from error


def _oracle(flags: TuneConfig) -> keras_tuner.Oracle:
    space = keras_tuner.HyperParameters()
    for name in flags.varied:
        entry, default = SPACE[name], getattr(flags, name)
        values = entry.values(flags)
        if entry.sampling == "choice":
            space.Choice(name, list(values), default=default)
        else:
            space.Float(name, *values, sampling=entry.sampling, default=default)
    settings = {
        "objective": keras_tuner.Objective(flags.objective, "max"),
        "hyperparameters": space,
        "seed": 1 + flags.seed % 2**31,  # 0 would be a random one
        # It would end for good a search in which some in a row failed, and a chief would hang.
        "max_consecutive_failed_trials": None,
    }
    if flags.tuner == "random":
        oracle = keras_tuner.oracles.RandomSearchOracle(**settings)
    elif flags.tuner == "bayesian":
        # Neither its usual number of random trials at first, three for each flag, nor its trust in
        # exact scores suit trainings that take long and readings that vary.
        points = max(3, 1 + len(space.space))
        oracle = keras_tuner.oracles.BayesianOptimizationOracle(
            num_initial_points=points, alpha=0.05, **settings
        )
    else:
        oracle = keras_tuner.oracles.HyperbandOracle(
            max_epochs=flags.epochs_per_trial, hyperband_iterations=float("inf"), **settings
        )
    oracle.max_trials = flags.max_trials  # Hyperband's has no argument for it
    return oracle


class _Tuner(keras_tuner.Tuner):
    """Trains what the oracle chooses."""

    def __init__(self, flags: TuneConfig, part: str) -> None:
        self._flags, self._part = flags, part
        try:
            with contextlib.redirect_stdout(None):  # it tells of files that it reloads
                super().__init__(
                    _oracle(flags), directory=str(flags.run_path), project_name=_ORACLE
                )
            if part != "worker" and Path(self.project_dir, "oracle.json").exists():
                # What it reloads by itself depends on whether a chief searched last, or one alone.
                self.oracle.reload()
        except (ValueError, KeyError, RuntimeError, tf.errors.OpError) as error:
            raise UsageError(
                f"the search in {flags.run_path} cannot be read ({first_line(error)}): start again "
                "with --overwrite, or choose another --tuner_dir."
            ) from error

    def run(self) -> None:
        """Trains trials until there are enough; a chief has workers do it."""
        try:
            self.search(verbose=0)
        except keras_tuner.errors.FatalError as error:
            raise error.__cause__ from None

    def retrain(self) -> None:
        """Trains the best trials again with other seeds, unless that was done."""
        for trial in self.results().finalists:
            for seed in list(trial.runs)[1:]:
                if self._train(trial, seed):
                    print(f"trial {trial.number} again: {_outcome(trial, seed)}", flush=True)
                    self.results().write()

    def results(self) -> Results:
        """The trials so far."""
        trials = sorted(self.oracle.trials.values(), key=lambda trial: int(trial.trial_id))
        return Results(self._flags, tuple(map(self._read, trials)))

    def pre_create_trial(self) -> None:
        """Gives a chief time, which a worker would ask again at once."""
        if self._part == "worker":
            time.sleep(0.2)

    def on_trial_begin(self, trial) -> None:
        """Gives trial 0 the untuned values, which `end_trial` passes on to the oracle."""
        if int(trial.trial_id) == UNTUNED:
            untuned = {name: getattr(self._flags, name) for name in self._flags.varied}
            trial.hyperparameters.values.update(untuned)

    def run_trial(self, trial, **_) -> float:
        """Trains a trial, unless that was done, and returns its score; NaN if it failed."""
        tried, seed = self._read(trial), self._flags.seed
        try:
            self._train(tried, seed)
        except Exception as error:
            # Otherwise keras-tuner takes an interruption or a full disk for the trial's failure.
            raise keras_tuner.errors.FatalError from error
        if seed in tried.scores:
            return tried.scores[seed][self._flags.objective]
        # By NaN, keras-tuner knows a failure; FailedTrialError would print a stack trace. Hyperband
        # would not promote the last of the others without a score for each.
        return 0.0 if self._flags.tuner == "hyperband" else float("nan")

    def on_trial_end(self, trial) -> None:
        """Tells what came out."""
        super().on_trial_end(trial)
        tried, of = self._read(trial), self._flags.max_trials
        told = _outcome(tried, self._flags.seed)
        print(f"trial {tried.number}, {tried.number + 1} of {of}: {told}", flush=True)
        if self._part == "single":
            results = self.results()
            results.write()
            if len(results.trials) >= _HOPELESS:
                results.require_one()

    def _read(self, trial) -> Trial:
        flags, values, first = self._flags, trial.hyperparameters.values, trial
        while "tuner/trial_id" in first.hyperparameters.values:  # whose run Hyperband continues
            first = self.oracle.get_trial(first.hyperparameters.values["tuner/trial_id"])
        number, folder = int(trial.trial_id), flags.run_path / "trials"
        runs = {flags.seed: str(folder / f"{int(first.trial_id):03}")}
        for seed in range(flags.seed + 1, flags.seed + SEEDS):
            runs[seed] = str(folder / f"{number:03}-seed-{seed}")
        chosen = {name: getattr(flags, name) for name in flags.varied}
        if number != UNTUNED:
            chosen = {name: SPACE[name].rounded(values[name], flags) for name in chosen}
        return Trial(number, chosen, values.get("tuner/epochs", flags.epochs_per_trial), runs)

    def _train(self, trial: Trial, seed: int) -> bool:
        """Trains one of the runs of a trial and returns whether that was still to be done."""
        if seed in trial.scores or seed in trial.failures:
            return False
        flags, folder = self._flags, Path(trial.runs[seed])
        config = flags.training(
            **trial.values,
            epochs=trial.epochs,
            seed=seed,
            hold_out=True,
            run_dir=str(folder),
            overwrite=False,
            dream_every=0,
            probe_every=0,
        )
        print(f"trial {trial.number}, seed {seed}: {' '.join(as_flags(trial.values))}", flush=True)
        keras.utils.clear_session()
        try:
            train(config, export=False, split_seed=flags.seed)
        except (Interrupted, UsageError):
            raise
        except (RunError, ValueError) as error:
            if disk_question(error.__cause__ or error):
                raise
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / FAILURE, first_line(error) + "\n")
        shutil.rmtree(folder / "checkpoints" / "epochs", ignore_errors=True)  # frees the disk
        return True


def _outcome(trial: Trial, seed: int) -> str:
    if seed in trial.failures:
        return f"failed: {trial.failures[seed]}"
    return ", ".join(f"{PROBES[name]} {score:.1%}" for name, score in trial.scores[seed].items())


def _describe(flags: TuneConfig) -> None:
    """Tells TensorBoard's HParams which flags are varied and what is measured."""
    logs = flags.run_path / "logs"
    if logs.exists():
        return
    metrics = [
        hparams.Metric(f"{name}/validation_accuracy", display_name=PROBES[name]) for name in PROBES
    ]
    writer = tf.summary.create_file_writer(str(logs))
    with contextlib.closing(writer), writer.as_default(step=0):
        hparams.hparams_config([hparams.HParam(name) for name in flags.varied], metrics)
