"""The trial of Optuna that a run is, as `danling sweep --optimize` tells the process of the run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Self

from danling.errors import ConfigError

__all__ = ["PRUNED", "VARIABLE", "SweepTrial"]


VARIABLE = "DANLING_TRIAL"
"""The environment variable that holds it."""

PRUNED = "the trial is pruned"
"""The beginning of the reason of a run that a pruner has ended."""


@dataclass(frozen=True)
class SweepTrial:
    """The place of a trial in Optuna.

    Example:
        >>> trial = SweepTrial("sqlite:///study.db", "moons", 7, "val/accuracy", "MedianPruner")
        >>> SweepTrial.read({VARIABLE: trial.text}) == trial
        True
    """

    storage: str
    """Address of the storage."""
    study: str
    number: int
    monitor: str
    """The score that is reported, as `split/metric`."""
    pruner: str
    """Name of a class in `optuna.pruners`."""

    @property
    def text(self) -> str:
        """The value of the environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, environment: dict[str, str] | None = None) -> Self | None:
        """The trial of this process; None where no sweep has started it.

        Raises:
            ConfigError: The variable holds something else.
        """
        text = (os.environ if environment is None else environment).get(VARIABLE)
        if not text:
            return None
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{VARIABLE} holds no trial of a sweep: {error}") from error
