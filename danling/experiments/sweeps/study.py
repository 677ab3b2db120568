"""Configurations that Optuna chooses: its storage, samplers and pruners.

The trials are in the storage, so that a study that was killed goes on: a trial without an end is
tried again with the values that it had, and so with the run that it had. Every trial gets a sampler
of its own, seeded by its number: what it suggests depends on the trials before it, and not on how
often the sweep was started.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from danling.errors import ConfigError, did_you_mean
from danling.experiments.sweeps.grid import RANGE, Configuration, text_of_number
from danling.experiments.sweeps.job import Job
from danling.run.trial import PRUNED, VARIABLE, SweepTrial

__all__ = ["Study", "direction_of"]


_SMALLER = re.compile(r"(?i)loss|error|perplexity|bits|nll|mae|mse|rmse|wer|cer|time")


class Study:
    """The trials of a sweep that looks for the best score.

    Args:
        axes: The values of each key, as `read_axes` gives them.
        metric: The score, such as `val/accuracy`.
        trials: The number of configurations to try.
        direction: `"maximize"` or `"minimize"`.
        seed: The seed of the sampler.
        sampler: The name of a class in `optuna.samplers`.
        pruner: The name of a class in `optuna.pruners`.

    Raises:
        ConfigError: There is no such sampler or pruner.
        ImportError: Optuna is not installed.
    """

    def __init__(
        self,
        axes: Mapping[str, Sequence[str]],
        metric: str,
        trials: int,
        *,
        direction: str,
        seed: int = 0,
        sampler: str = "TPESampler",
        pruner: str = "MedianPruner",
    ) -> None:
        try:
            self._optuna: Any = import_module("optuna")
        except ImportError as error:
            raise ImportError("--optimize needs Optuna: pip install 'danling[optuna]'") from error
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        self.axes = {key: list(values) for key, values in axes.items()}
        self.metric, self.trials, self.direction = metric, trials, direction
        self._seed = seed
        self._sampler = _class_of(self._optuna.samplers, sampler)
        try:
            self._pruner = _class_of(self._optuna.pruners, pruner)()
        except TypeError as error:
            raise ConfigError(f"--pruner {pruner}: it needs arguments; take median") from error
        self._study: Any = None
        self._storage = ""
        self._left: list[Any] = []
        self._open: dict[int, Any] = {}

    @property
    def words(self) -> list[str]:
        """The words that tell this study from others of the same script."""
        spaces = [f"{key}={','.join(values)}" for key, values in self.axes.items()]
        return ["optimize", self.metric, self.direction, *spaces]

    def open(self, folder: Path, storage: str | None = None) -> int:
        """Open the storage, a file in `folder` by default, and return how many trials are in it.

        Raises:
            ConfigError: The storage cannot be opened.
        """
        self._storage = storage or f"sqlite:///{folder / 'study.db'}"
        try:
            self._study = self._optuna.create_study(
                storage=self._storage,
                study_name=folder.name,
                direction=self.direction,
                pruner=self._pruner,
                load_if_exists=True,
            )
        except Exception as error:  # of whatever library the address belongs to
            raise ConfigError(f"--storage {self._storage}: {error}") from error
        found = self._study.get_trials(deepcopy=False)
        self._left = [trial for trial in found if not trial.state.is_finished()]
        return len(found)

    def ask(self) -> Job | None:
        """The next configuration; first those of trials that have begun and not ended."""
        if self._left:
            left = self._left.pop(0)
            self._seed_sampler(left.number)
            return self._job(self._optuna.trial.Trial(self._study, left._trial_id))
        number = len(self._study.get_trials(deepcopy=False))
        if number >= self.trials:
            return None
        self._seed_sampler(number)
        return self._job(self._study.ask())

    def tell(self, job: Job) -> None:
        """Tell Optuna how a trial ended; one whose run is unfinished stays open."""
        states, trial = self._optuna.trial.TrialState, self._open[job.number]
        score = job.run.metric(self.metric) if job.run is not None else None
        if job.status == "finished" and job.run is not None:
            if (job.run.reason or "").startswith(PRUNED):
                job.status = "pruned"
                self._study.tell(trial, state=states.PRUNED)
            elif score is None:
                job.status = "failed"
                self._study.tell(trial, state=states.FAIL)
            else:
                self._study.tell(trial, score)
        elif job.status == "failed":
            self._study.tell(trial, state=states.FAIL)

    def best(self) -> tuple[int, float] | None:
        """The number of the best trial, and its score; None where there is none."""
        states = [self._optuna.trial.TrialState.COMPLETE]
        if not self._study.get_trials(deepcopy=False, states=states):
            return None
        return self._study.best_trial.number, self._study.best_value

    def _seed_sampler(self, number: int) -> None:
        try:
            self._study.sampler = self._sampler(seed=self._seed + number)
        except TypeError:  # one that draws nothing
            self._study.sampler = self._sampler()

    def _job(self, trial: Any) -> Job:
        configuration: Configuration = {
            key: _suggested(trial, key, values) for key, values in self.axes.items()
        }
        self._open[trial.number] = trial
        told = SweepTrial(
            storage=self._storage,
            study=self._study.study_name,
            number=trial.number,
            monitor=self.metric,
            pruner=type(self._pruner).__name__,
        )
        return Job(trial.number, configuration, environment={VARIABLE: told.text})


def direction_of(metric: str, mode: str | None) -> str:
    """Whether a score is maximised or minimised: by its name where no mode says it.

    Example:
        >>> direction_of("val/loss", None), direction_of("val/accuracy", None)
        ('minimize', 'maximize')
    """
    smaller = _SMALLER.search(metric) if mode is None else mode == "min"
    return "minimize" if smaller else "maximize"


def _suggested(trial: Any, key: str, values: Sequence[str]) -> str:
    """The suggestion of Optuna: a number within a range, or one of the values of a list."""
    if len(values) == 1:
        found = RANGE.fullmatch(values[0])
        if found is None:
            return values[0]
        low, high = sorted(map(float, found.group(1, 2)))
        if found[3] and low <= 0:
            raise ConfigError(f"--{key} {values[0]}: the bounds must be above zero for :log")
        return text_of_number(trial.suggest_float(key, low, high, log=bool(found[3])))
    if all(re.fullmatch(r"-?\d+", value) for value in values):
        numbers = sorted(map(int, values))
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return str(trial.suggest_int(key, numbers[0], numbers[-1]))
    return str(trial.suggest_categorical(key, list(values)))


def _class_of(module: Any, name: str) -> Any:
    """A class of Optuna by its name, with or without the last part: `tpe`, `TPESampler`."""
    kind = "Sampler" if module.__name__.endswith("samplers") else "Pruner"
    known = {each.removesuffix(kind).lower(): each for each in module.__all__ if kind in each}
    found = known.get(name.removesuffix(kind).lower())
    if found is None:
        raise ConfigError(f"--{kind.lower()} {name}: {did_you_mean(name, list(known))}")
    return getattr(module, found)
