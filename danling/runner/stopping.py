"""When a run stops early: who asked for it, and what all processes agree on."""

from __future__ import annotations

import signal
import threading
from typing import Literal, NoReturn

from danling.distributed.world import World

__all__ = ["Stopping", "exit_for_signal"]


class Stopping:
    """The stop of a run that any process may ask for; all of them end together.

    Args:
        world: The processes of the run.

    Attributes:
        reason: Why the run stops, once all processes know; None while it goes on.
        signal: The number of the signal that asked for it, if one did.
        seconds: The longest training time of any process, as of the last agreement.

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
        self._asked: str | None = None  # by this process, the others may not know it yet
        self._world = world

    @property
    def status(self) -> Literal["finished", "stopped", "preempted", "interrupted"]:
        """How a run ends that nothing failed in."""
        if self.signal is not None:
            return "interrupted" if self.signal == signal.SIGINT else "preempted"
        return "finished" if self.reason is None else "stopped"

    def reset(self) -> None:
        """Forget what was asked for in a run of before."""
        self.reason, self.signal, self._asked = None, None, None

    def ask(self, reason: str) -> None:
        """Ask for a stop; the first reason is kept."""
        self._asked = self._asked or reason
        if self._world.size == 1:
            self.reason = self._asked

    def interrupt(self, number: int) -> None:
        """Ask for a stop for a signal: the run ends with its exit code."""
        self.signal = self.signal or number
        self.ask(f"signal {signal.Signals(number).name}")

    def agree(self, seconds: float) -> None:
        """Let a stop that any process asked for become that of all; a collective.

        Args:
            seconds: The training time of this process.
        """
        if self._world.size == 1:
            return
        asked, number, self.seconds = self._world.maximum(
            [self._asked is not None, self.signal or 0, seconds]
        )
        if asked and self.reason is None:
            reasons = self._world.gather(self._asked)
            rank = next(rank for rank, reason in enumerate(reasons) if reason is not None)
            self.signal = int(number) or None
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
