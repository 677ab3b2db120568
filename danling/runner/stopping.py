"""The end of a training: its limits, and a stop that all processes agree on."""

from __future__ import annotations

import math
import signal
import threading
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from danling.distributed.world import World
from danling.errors import ConfigError

if TYPE_CHECKING:
    from danling.config import Config

__all__ = ["Limits", "Stopping", "exit_for_signal"]


class Stopping:
    """The stop of a run that any process may ask for; all of them end together.

    Args:
        world: The processes of the run.

    Attributes:
        reason: Why the run stops, once all processes know; None while it goes on.
        signal: The number of the signal that asked for it, if one did.
        seconds: The longest training time of any process, as of the last agreement.
        held: Whether a stop that is asked for waits until the training may end; not for a signal.
        evaluates: Whether a training that was never evaluated is so at its end, as when its time is
            up.

    Example:
        >>> stopping = Stopping(World())
        >>> stopping.ask("the loss is NaN")
        >>> stopping.ask("another reason")
        >>> stopping.reason
        'the loss is NaN'
    """

    def __init__(self, world: World) -> None:
        self.reason: str | None = None
        self.signal: int | None = None
        self.seconds = 0.0
        self.held = self.evaluates = False
        self._asked: str | None = None  # by this process, the others may not know it yet
        self._world = world

    @property
    def status(self) -> Literal["finished", "stopped", "preempted", "interrupted"]:
        """The status of a run that ends without a failure."""
        if self.signal is not None:
            return "interrupted" if self.signal == signal.SIGINT else "preempted"
        return "finished" if self.reason is None else "stopped"

    def reset(self) -> None:
        """Forget what was asked for in a run of before."""
        self.reason, self.signal, self._asked = None, None, None
        self.held = self.evaluates = False

    @property
    def waiting(self) -> str | None:
        """The reason of a stop that waits until the training may end."""
        return self._asked if self.held else None

    def ask(self, reason: str, *, evaluate: bool = False) -> None:
        """Ask for a stop; the first reason is kept."""
        if self._asked is None:
            self._asked, self.evaluates = reason, evaluate
        self._settle()

    def wait(self, reason: str) -> None:
        """Ask for a stop that waits until `release`."""
        self.held = True
        self.ask(reason)

    def release(self) -> None:
        """Let the training end, as it may from now on."""
        self.held = False
        self._settle()

    def interrupt(self, number: int) -> None:
        """Ask for a stop for a signal: the run ends with its exit code."""
        if self.signal is None and self.held:
            self._asked = None  # a stop that would have to wait
        self.signal, self.evaluates = self.signal or number, False
        self.ask(f"signal {signal.Signals(number).name}")

    def _settle(self) -> None:
        """Stop, where nobody else has to know first."""
        if self._world.size == 1 and (not self.held or self.signal is not None):
            self.reason = self._asked

    def agree(self, seconds: float) -> None:
        """Let a stop that any process asked for become that of all; a collective.

        Args:
            seconds: The training time of this process.
        """
        if self._world.size == 1:
            return
        asked, number, self.seconds, evaluates = self._world.maximum(
            [self._asked is not None, self.signal or 0, seconds, self.evaluates]
        )
        if not asked or self.reason is not None:
            return
        self.signal = int(number) or None
        if self.held and self.signal is None:
            return
        self.evaluates = bool(evaluates) and self.signal is None
        reasons = self._world.gather(self._asked)
        rank = next(rank for rank, reason in enumerate(reasons) if reason is not None)
        self.reason = f"{reasons[rank]} (rank {rank})"

    def agree_on_signal(self) -> int | None:
        """The signal for which all processes leave, if there is one; a collective."""
        if self._world.size > 1:
            self.signal = int(self._world.maximum([self.signal or 0])[0]) or None
        return self.signal


def exit_for_signal(
    number: int, reason: str | None, cause: BaseException | None, *, alone: bool
) -> NoReturn:
    """Leave with the exit code of a signal, once all processes have closed their files.

    Args:
        number: The number of the signal.
        reason: Why the run has stopped.
        cause: The error of a save that failed on the way, if one did.
        alone: Whether there is one process only.

    Raises:
        KeyboardInterrupt: The signal is SIGINT.
        SystemExit: It is another one; the code is 128 and its number.
    """
    if not alone and threading.current_thread() is threading.main_thread():
        # launchers send it to the others when the first one has left
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt(reason) from cause
    raise SystemExit(128 + number) from cause


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
            ConfigError: Neither `max_epochs` nor `max_steps` is set.
        """
        if math.isinf(self.max_epochs) and math.isinf(self.max_steps):
            raise ConfigError(
                "nothing says when training ends: set max_epochs or max_steps in the configuration"
            )

    def may_stop(self, epoch: int, global_step: int) -> bool:
        """Whether a stop that somebody asks for ends the training at this point."""
        return epoch >= self.min_epochs and global_step >= self.min_steps
