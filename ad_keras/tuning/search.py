"""Runs the trials: keras-tuner chooses the values, training trains them, the probe scores them."""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import grpc
import keras
import keras_tuner
import numpy as np
import tensorflow as tf
from keras_tuner.engine.trial import TrialStatus
from sklearn.exceptions import ConvergenceWarning
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.summary import session_end_pb

from ad_keras import data
from ad_keras.cli import interruptible
from ad_keras.compute.cluster import refuse_workers
from ad_keras.errors import Interrupted, RunError, UsageError
from ad_keras.measures.latents import encode
from ad_keras.measures.probe import linear_probe, ridge_probe
from ad_keras.runs.config import Config
from ad_keras.runs.folder import (
    FolderKind,
    failures_explained,
    load_config,
    open_run,
    refuse_other_flags,
    write_atomically,
)
from ad_keras.runs.restore import restore_run
from ad_keras.runs.training import hyper_parameters, train
from ad_keras.tuning.config import MAY_CHANGE, TuneConfig
from ad_keras.tuning.distributed import Role, check_port, role, wait_for_chief
from ad_keras.tuning.results import FAILED, FINISHED, UNFINISHED, UNTUNED, Results, Trial, as_flags
from ad_keras.tuning.space import SPACE

PROBE_SEEDS = 5
"""How many seeds the paper's probe is averaged over: a single one is off by some percent."""

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
_DRAWS = 50  # after which there is taken to be nothing new


def search(flags: TuneConfig) -> Results | None:
    """Searches, or continues to search.

    Args:
        flags: of the command line.

    Returns:
        The trials; None for a worker of a distributed search, whose chief has them.

    Raises:
        UsageError: if the data, the folder or the environment are not as they must be.
        RunError: if no trial worked, or the disk or the connection fails.
        Interrupted: after SIGINT or SIGTERM; calling again continues.
    """
    refuse_workers("the workers of a search are named by KERASTUNER_TUNER_ID: unset TF_CONFIG.")
    part = role()
    with interruptible(), _quiet(), failures_explained(flags.run_path):
        if part.name == "chief":
            check_port(part)
            images = None
        else:
            images = _labelled_images(flags)
        if part.name == "worker":
            _work(flags, part, images)
            return None
        with open_run(flags, _SEARCH):
            _describe(flags)
            tuner = _Tuner(flags, part, images)
            try:
                tuner.serve() if part.name == "chief" else tuner.run()
            finally:
                results = tuner.results()
                results.write()
    if not results.ranking:
        reason = results.trials[-1].message if results.trials else "there was none"
        raise RunError(f"no trial worked, see {flags.run_path / 'trials.md'}. The last: {reason}")
    return results


def _work(flags: TuneConfig, part: Role, images: data.ImageSet) -> None:
    print(f"worker {part.tuner_id}: waiting for the chief at {part.ip}:{part.port}", flush=True)
    wait_for_chief(part)
    refuse_other_flags(load_config(flags.run_path, _SEARCH), flags, _SEARCH)
    try:
        _Tuner(flags, part, images).run()
    except grpc.RpcError as error:
        raise RunError(
            f"the chief at {part.ip}:{part.port} failed or was stopped ({error.code().name}). "
            "Start it and this worker again: the search continues."
        ) from error


class _Oracle:
    """What the search adds to each of keras-tuner's oracles.

    The first trial has the untuned flags. States are written such that a full disk or a crash
    cannot leave half of one. A search in which nothing works ends.
    """

    flags: TuneConfig
    stopped = False

    def create_trial(self, tuner_id: str) -> keras_tuner.engine.trial.Trial:
        trial = super().create_trial(tuner_id)
        self.stopped = self.stopped or trial.status == TrialStatus.STOPPED
        return trial

    def populate_space(self, trial_id: str) -> dict:
        if not self.trials:
            defaults = {entry.name: entry.default for entry in self.hyperparameters.space}
            return {"status": TrialStatus.RUNNING, "values": defaults}
        failed = [trial for trial in self.trials.values() if trial.status == TrialStatus.FAILED]
        worked = any(trial.status == TrialStatus.COMPLETED for trial in self.trials.values())
        if len(failed) >= _HOPELESS and not worked:
            return {"status": TrialStatus.STOPPED}
        return super().populate_space(trial_id)

    def end_trial(self, trial: keras_tuner.engine.trial.Trial) -> None:
        super().end_trial(trial)
        self.save()  # it was saved as one that is still being trained

    def save(self) -> None:
        write_atomically(Path(self._get_oracle_fname()), json.dumps(self.get_state()))

    def _save_trial(self, trial) -> None:
        file = Path(self._get_trial_dir(trial.trial_id), "trial.json")
        write_atomically(file, json.dumps(trial.get_state()))

    def reload(self) -> None:
        super().reload()
        # A crash may have come between a new trial's own file and the list of all.
        self.trials = {key: self.trials[key] for key in self.start_order}


class _Random(_Oracle, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Bayesian(_Oracle, keras_tuner.oracles.BayesianOptimizationOracle):
    def populate_space(self, trial_id: str) -> dict:
        # Where it expects the most it may ask for the same again, which would come out the same.
        response = super().populate_space(trial_id)
        tried = [
            _rounded(trial.hyperparameters.values, self.flags) for trial in self.trials.values()
        ]
        for _ in range(_DRAWS):
            if response["status"] != TrialStatus.RUNNING:
                return response
            if _rounded(response["values"], self.flags) not in tried:
                return response
            response = {"status": TrialStatus.RUNNING, "values": self._random_values()}
            if response["values"] is None:
                break
        return {"status": TrialStatus.STOPPED}


class _Hyperband(_Oracle, keras_tuner.oracles.HyperbandOracle):
    def populate_space(self, trial_id: str) -> dict:
        # It would wait for ever for the score of a failed trial before it promotes the last of the
        # others: here a failed one is the worst.
        failed = [trial for trial in self.trials.values() if trial.status == TrialStatus.FAILED]
        worked = any(trial.status == TrialStatus.COMPLETED for trial in self.trials.values())
        if not worked:
            return super().populate_space(trial_id)
        for trial in failed:
            trial.status, trial.score = TrialStatus.COMPLETED, -1.0
        try:
            return super().populate_space(trial_id)
        finally:
            for trial in failed:
                trial.status, trial.score = TrialStatus.FAILED, None


def _oracle(flags: TuneConfig) -> _Oracle:
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
        "max_consecutive_failed_trials": None,
    }
    if flags.tuner == "random":
        oracle = _Random(**settings)
    elif flags.tuner == "bayesian":
        # Neither its usual number of random trials at first, three for each flag, nor its trust in
        # exact scores suit trainings that take long and readings that vary.
        points = max(3, 1 + len(space.space))
        oracle = _Bayesian(num_initial_points=points, alpha=0.05, **settings)
    else:
        epochs = flags.epochs_per_trial
        oracle = _Hyperband(max_epochs=epochs, hyperband_iterations=float("inf"), **settings)
    oracle.flags, oracle.max_trials = flags, flags.max_trials
    return oracle


def _rounded(values: dict, flags: TuneConfig) -> dict[str, float]:
    """Those of sampled values that are flags, short enough to be read."""
    return {name: SPACE[name].rounded(values[name], flags) for name in flags.varied}


class _Tuner(keras_tuner.Tuner):
    """Trains and scores what the oracle chooses.

    Args:
        flags: of the search.
        part: of this process.
        images: that all trials share; None for the chief, which trains nothing.
    """

    def __init__(self, flags: TuneConfig, part: Role, images: data.ImageSet | None) -> None:
        self._flags, self._part, self._images = flags, part, images
        oracle = _oracle(flags)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it tells of files that it reloads
                super().__init__(oracle, directory=str(flags.run_path), project_name=_ORACLE)
            if part.name != "worker" and (flags.run_path / _ORACLE / "oracle.json").exists():
                # Reloading by itself depends on who searched last, a chief or a single process.
                oracle.reload()
        except (ValueError, KeyError, RuntimeError, tf.errors.OpError) as error:
            raise UsageError(
                f"the search in {flags.run_path} cannot be read ({_one_line(error)}): start again "
                "with --overwrite, or choose another --tuner_dir."
            ) from error

    def run(self) -> None:
        """Trains trials until there are enough."""
        try:
            self.search(verbose=0)
        except keras_tuner.errors.FatalError as error:
            raise error.__cause__ from None

    def serve(self) -> None:
        """Lets workers train trials until there are enough, and tells of each."""
        failures, told = [], len(self.oracle.end_order)

        def search() -> None:
            try:
                self.search(verbose=0)
            except Exception as error:
                failures.append(error)

        print(
            f"chief: serving {self._part.ip}:{self._part.port}, trials in {self._flags.run_path}",
            flush=True,
        )
        # keras-tuner looks only every 20 s whether its workers have left.
        server = threading.Thread(target=search, daemon=True)
        server.start()
        while not (
            self.oracle.stopped and not self.oracle.ongoing_trials and not self.oracle.tuner_ids
        ):
            if failures:
                raise RunError(f"the chief failed: {_one_line(failures[0])}.") from failures[0]
            time.sleep(0.5)
            ended = self.oracle.end_order[told:]
            for trial_id in ended:
                print(self._outcome(self._trial(self.oracle.trials[trial_id])), flush=True)
            if ended:
                told += len(ended)
                self.results().write()
        time.sleep(1)  # the last answer is on its way

    def results(self) -> Results:
        """The trials so far."""
        trials = sorted(self.oracle.trials.values(), key=lambda trial: int(trial.trial_id))
        return Results(self._flags, tuple(map(self._trial, trials)))

    def pre_create_trial(self) -> None:
        """Makes sure of the chief, before keras-tuner would wait for an hour."""
        if self._part.name == "worker":
            wait_for_chief(self._part)
            time.sleep(0.2)  # keras-tuner asks again at once if there is nothing to do yet

    def run_trial(self, trial, **_) -> dict[str, float]:
        """Trains and scores a trial, unless that was done; the score of a failed one is NaN."""
        planned = self._planned(trial)
        folder = self._folder(planned.number)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".trial", "a") as lock:
            # A chief that was started again may give a trial away that is being trained.
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = Trial.load(folder) or self._train(planned, folder)
        trial.message = done.message
        if self._part.name == "worker":
            wait_for_chief(self._part)
        return {self._flags.objective: done.scores.get(self._flags.objective, float("nan"))}

    def on_trial_begin(self, trial) -> None:
        """Tells what is tried."""
        planned = self._planned(trial)
        flags = "untuned" if planned.number == UNTUNED else " ".join(as_flags(planned.values))
        print(f"trial {planned.number}: {flags}", flush=True)

    def on_trial_end(self, trial) -> None:
        """Tells what came out."""
        super().on_trial_end(trial)
        print(self._outcome(self._trial(trial)), flush=True)
        if self._part.name == "single":
            self.results().write()

    def _run_and_update_trial(self, trial, *arguments, **options) -> None:
        # Otherwise keras-tuner takes an interruption or a full disk for the trial's failure.
        try:
            super()._run_and_update_trial(trial, *arguments, **options)
        except Exception as error:
            raise keras_tuner.errors.FatalError from error

    def _train(self, trial: Trial, folder: Path) -> Trial:
        started = time.perf_counter()
        config = self._flags.training(
            **trial.values,
            epochs=trial.epochs,
            hold_out=True,
            run_dir=str(folder),
            overwrite=False,
            dream_every=0,
            probe_every=0,
        )
        keras.utils.clear_session()
        try:
            if trial.continues is not None:
                _take_over(self._folder(trial.continues), folder)
            train(config, export=False)
            done = dataclasses.replace(trial, status=FINISHED, scores=_scores(config, self._images))
        except Interrupted:
            raise
        except (RunError, ValueError) as error:
            done = dataclasses.replace(trial, status=FAILED, message=_one_line(error))
        done = dataclasses.replace(done, seconds=round(time.perf_counter() - started, 1))
        _log(config, done)
        _keep_newest_checkpoint(folder)
        done.save(folder)
        return done

    def _planned(self, trial) -> Trial:
        number, values = int(trial.trial_id), trial.hyperparameters.values
        chosen = _rounded(values, self._flags)
        if number == UNTUNED:
            chosen = {name: getattr(self._flags, name) for name in chosen}
        return Trial(
            number,
            UNFINISHED,
            chosen,
            values.get("tuner/epochs", self._flags.epochs_per_trial),
            int(values["tuner/trial_id"]) if "tuner/trial_id" in values else None,
        )

    def _trial(self, trial) -> Trial:
        planned = self._planned(trial)
        return Trial.load(self._folder(planned.number)) or planned

    def _folder(self, number: int) -> Path:
        return self._flags.run_path / "trials" / f"{number:03}"

    def _outcome(self, trial: Trial) -> str:
        if trial.status == FINISHED:
            said = (
                f"probe {trial.scores['probe']:.1%}, ridge probe {trial.scores['ridge_probe']:.1%}"
            )
        else:
            said = f"{trial.status}: {trial.message}"
        seconds = f" ({trial.seconds:.0f} s)" if trial.seconds is not None else ""
        return (
            f"trial {trial.number}, {trial.number + 1} of {self._flags.max_trials}: {said}{seconds}"
        )


def _labelled_images(flags: TuneConfig) -> data.ImageSet:
    """The training images, of which a tenth scores the trials.

    Raises:
        UsageError: if there are no labels to score them with.
    """
    images = data.load(flags.dataset, "train", data_dir=flags.data_dir, image_size=flags.image_size)
    if flags.train_examples:
        images = images.take(flags.train_examples)
    fitted, _ = data.validation_split(len(images), flags.seed)
    if images.labels is None or not np.ptp(images.labels[fitted]):
        raise UsageError(
            f"--dataset={flags.dataset} has no labels of several classes, which the linear probe "
            "needs: sort the images into a folder for each class."
        )
    return images


def _scores(config: Config, images: data.ImageSet) -> dict[str, float]:
    """Both probes, fitted on what a trial was trained on and scored on what it was not."""
    _, model = restore_run(config.run_path)
    latents = encode(model.encoder, images.images)
    if not np.isfinite(latents).all():
        raise RunError("the latents became infinite or NaN.")
    split = data.validation_split(len(images), config.seed)
    parts = [part[rows] for rows in split for part in (latents, images.labels)]
    classes = len(images.class_names)
    readings = [
        linear_probe(*parts, num_classes=classes, seed=config.seed + offset).accuracy
        for offset in range(PROBE_SEEDS)
    ]
    ridge = ridge_probe(*parts, num_classes=classes, seed=config.seed).accuracy
    return {"probe": float(np.mean(readings)), "ridge_probe": ridge}


def _take_over(earlier: Path, folder: Path) -> None:
    """Lets a trial go on from where an earlier one ended."""
    if (folder / "checkpoints").exists():
        return
    if not (earlier / "checkpoints").exists():
        raise RunError(f"there is nothing in {earlier} to continue from.")
    shutil.copy(earlier / "history.json", folder / "history.json")
    partial = folder / ".checkpoints.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(earlier / "checkpoints", partial)
    os.replace(partial, folder / "checkpoints")


def _keep_newest_checkpoint(folder: Path) -> None:
    """Frees the disk of all states but the last, which a promoted trial or a person may want."""
    shutil.rmtree(folder / "checkpoints" / "epochs", ignore_errors=True)
    saved = (folder / "checkpoints" / "recent").glob("step-*.index")
    for index in sorted(saved, key=lambda path: int(path.stem.removeprefix("step-")))[:-1]:
        for file in index.parent.glob(f"{index.stem}.*"):
            file.unlink()


def _describe(flags: TuneConfig) -> None:
    """Tells TensorBoard's HParams which flags are varied and what is measured."""
    logs = flags.run_path / "logs"
    if logs.exists():
        return
    varied = [
        hparams.HParam(
            name,
            hparams.Discrete(list(SPACE[name].values(flags)))
            if SPACE[name].sampling == "choice"
            else hparams.RealInterval(*map(float, SPACE[name].values(flags))),
        )
        for name in flags.varied
    ]
    metrics = [
        hparams.Metric("search/probe", display_name="linear probe"),
        hparams.Metric("search/ridge_probe", display_name="ridge probe"),
    ]
    writer = tf.summary.create_file_writer(str(logs))
    with contextlib.closing(writer), writer.as_default(step=0):
        hparams.hparams_config(varied, metrics)


def _log(config: Config, trial: Trial) -> None:
    """Writes a trial's scores and how it ended beside what training logged of it."""
    status = api_pb2.STATUS_SUCCESS if trial.status == FINISHED else api_pb2.STATUS_FAILURE
    logs = config.run_path / "logs"
    writer = tf.summary.create_file_writer(str(logs))
    with contextlib.closing(writer), writer.as_default(step=trial.epochs):
        hparams.hparams(hyper_parameters(config))  # it may have failed before training began
        for name, score in trial.scores.items():
            tf.summary.scalar(f"search/{name}", score)
        end = session_end_pb(status).SerializeToString()
        tf.summary.experimental.write_raw_pb(end, step=0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back warnings that say nothing to a person."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        warnings.filterwarnings("ignore", message="All-NaN", category=RuntimeWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="keras_tuner")
        # Of a trial that a crash interrupted after its score was noted.
        warnings.filterwarnings("ignore", "The use case of calling", DeprecationWarning)
        yield


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
