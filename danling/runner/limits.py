"""When a training may end and when it must, as its configuration says."""

from __future__ import annotations

import math
import shutil
import tempfile
from typing import TYPE_CHECKING, NamedTuple

from danling.errors import ConfigError

if TYPE_CHECKING:
    from danling.config import Config
    from danling.distributed.world import World

__all__ = ["Limits", "Scratch"]


class Limits(NamedTuple):
    """The epochs and steps that a training has at most, and at least.

    A run with `fast_dev_run` is of one epoch, and may end at any time.

    Attributes:
        max_epochs: The epochs after which it ends; infinite where no limit is set.
        max_steps: The optimizer steps after which it ends.
        min_epochs: The epochs before which no stop that somebody asks for ends it.
        min_steps: The optimizer steps before which none does.
    """

    max_epochs: float = math.inf
    max_steps: float = math.inf
    min_epochs: int = 0
    min_steps: int = 0

    @classmethod
    def of(cls, config: Config) -> Limits:
        """The limits of a configuration.

        Example:
            >>> from danling import Config
            >>> Limits.of(Config(max_epochs=3, min_steps=10))
            Limits(max_epochs=3, max_steps=inf, min_epochs=0, min_steps=10)
        """
        steps = math.inf if config.max_steps is None else config.max_steps
        if config.fast_dev_run:
            return cls(1, steps)
        epochs = math.inf if config.max_epochs is None else config.max_epochs
        return cls(epochs, steps, config.min_epochs or 0, config.min_steps or 0)

    def check(self) -> None:
        """See that a training ends.

        Raises:
            ConfigError: Nothing says when.
        """
        if math.isinf(self.max_epochs) and math.isinf(self.max_steps):
            raise ConfigError(
                "nothing says when training ends: set max_epochs or max_steps in the configuration"
            )

    def may_stop(self, epoch: int, global_step: int) -> bool:
        """Whether a stop that somebody asks for ends the training at this point."""
        return epoch >= self.min_epochs and global_step >= self.min_steps


class Scratch:
    """A folder for the files of a run that keeps nothing and goes on with no other run.

    Args:
        config: The configuration; it is what it was when the folder is removed.
        world: The processes of the run.
    """

    def __init__(self, config: Config, world: World) -> None:
        self._config = config
        self._given = str(config.project_root), config.resume
        self._is_main = world.rank == 0
        self.path: str = world.on_main(lambda: tempfile.mkdtemp(prefix="danling-"))
        config.project_root, config.resume = self.path, False

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        self._config.project_root, self._config.resume = self._given
        if self._is_main:
            shutil.rmtree(self.path, ignore_errors=True)
