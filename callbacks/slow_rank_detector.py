"""Processes that keep all others waiting."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from danling.callback import Callback
from danling.errors import CallbackError
from danling.triggers import Every

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["SlowRankDetector"]


class SlowRankDetector(Callback):
    """Compare how long the processes take for what each does alone, and name the slow ones.

    Measured are the wait for a batch and the forward of the model: in the backward, and from there
    on, all wait for the slowest, and all take the same time. On CUDA the forward is timed by events
    on the device, which nobody waits for until the times are compared. Of a model that is spread
    over processes the forward waits for others as well; the wait for data still tells.

    A slow process is a warning. `perf/slowest_rank_ratio`, the time of the slowest divided by the
    median, is logged. One process alone measures nothing.

    A step costs reading a clock four times, a comparison an exchange of two numbers. There is no
    state.

    Args:
        every: The time from one comparison to the next, in steps.
        threshold: The ratio to the median from which on a process is slow.

    Attributes:
        slow: The ranks that were slow at the last comparison, with their ratios.

    Raises:
        CallbackError: An argument cannot be meant.

    Example:
        >>> slow_ranks([0.10, 0.11, 0.25, 0.10], threshold=1.5)
        {2: 2.5}
    """

    name = "slow_rank_detector"
    only_watches = True

    def __init__(self, every: str | Every = "100 steps", *, threshold: float = 1.5) -> None:
        self.every = Every(every)
        if self.every.unit != "steps":
            raise CallbackError(f"SlowRankDetector({str(self.every)!r}): in steps")
        if not threshold > 1:
            raise CallbackError(f"SlowRankDetector(threshold={threshold!r}): more than 1")
        self.threshold = threshold
        self.slow: dict[int, float] = {}
        self._handles: list[RemovableHandle] = []
        self._forget()

    def _forget(self) -> None:
        self._fetching = self._computing = 0.0  # seconds since the last comparison
        self._begin = 0.0
        self._events: list[tuple[Any, Any]] = []
        self._is_expected = False  # a forward, of the batch in hand
        self._is_open = False  # this forward
        self._is_measuring = False

    def on_setup(self, runner: Runner) -> None:
        """Forget another run."""
        self._let_go()
        self._forget()
        self.slow = {}

    def on_train_start(self, runner: Runner) -> None:
        """Begin to measure, where there are several processes."""
        self._let_go()
        self._forget()
        self._is_measuring = runner.distributed
        if self._is_measuring and runner.unwrapped_model is not None:
            cuda, model = runner.device.type == "cuda", runner.unwrapped_model
            # of the model itself: the wrapper around it may wait for others before its forward
            self._handles = [
                model.register_forward_pre_hook(lambda *_: self._begin_forward(cuda)),
                model.register_forward_hook(lambda *_: self._end_forward(cuda)),
            ]

    def on_fetch_start(self, runner: Runner) -> None:
        """Start the clock."""
        if self._is_measuring:
            self._begin = self._now()

    def on_fetch_end(self, runner: Runner, batch: Any) -> None:
        """Take the time of the fetch."""
        if self._is_measuring:
            self._fetching += self._now() - self._begin

    def on_batch_start(self, runner: Runner, batch: Any) -> None:
        """Expect a forward: an evaluation has none that counts."""
        self._is_expected = self._is_measuring

    def on_step(self, runner: Runner) -> None:
        """Compare, when it is due."""
        if self._is_measuring and runner.global_step % self.every.value == 0:
            self._compare(runner)

    def on_train_end(self, runner: Runner) -> None:
        """Let go of the model."""
        self._let_go()

    def on_teardown(self, runner: Runner) -> None:
        """Let go of the model, also after an error."""
        self._let_go()

    def _now(self) -> float:
        return time.perf_counter()

    def _begin_forward(self, cuda: bool) -> None:
        """Start the clock of the first forward after a batch came."""
        if not self._is_expected:
            return
        self._is_expected, self._is_open = False, True
        if cuda:
            self._events.append((_event(), None))
        else:
            self._begin = self._now()

    def _end_forward(self, cuda: bool) -> None:
        """Take its time."""
        if not self._is_open:
            return
        self._is_open = False
        if cuda:
            self._events[-1] = (self._events[-1][0], _event())
        else:
            self._computing += self._now() - self._begin

    def _compare(self, runner: Runner) -> None:
        pairs, self._events = self._events, []
        for begin, end in pairs:
            if end is not None:
                end.synchronize()
                self._computing += begin.elapsed_time(end) / 1000
        own = self._fetching, self._computing
        self._fetching = self._computing = 0.0
        times = runner.world.gather(own)
        seconds = [fetching + computing for fetching, computing in times]
        self.slow = slow_ranks(seconds, self.threshold)
        runner.log("perf/slowest_rank_ratio", max(ratios(seconds)))
        if not runner.is_main_process:
            return
        for rank, ratio in self.slow.items():
            runner.logger.warning(
                "%s: rank %d takes %.1f times as long as the others: %.3g s for data and %.3g s in "
                "the forward, in %s up to global step %d",
                self.name,
                rank,
                ratio,
                *times[rank],
                self.every,
                runner.global_step,
            )

    def _let_go(self) -> None:
        handles, self._handles, self._is_measuring = self._handles, [], False
        for handle in handles:
            handle.remove()


def ratios(seconds: Sequence[float]) -> list[float]:
    """The times of processes as multiples of the median; 1 where that is zero.

    Example:
        >>> ratios([1.0, 1.0, 3.0])
        [1.0, 1.0, 3.0]
    """
    median = statistics.median_low(seconds)
    return [time / median if median > 0 else 1.0 for time in seconds]


def slow_ranks(seconds: Sequence[float], threshold: float) -> dict[int, float]:
    """The ranks that take longer than a multiple of the median, with their ratios to it."""
    return {rank: ratio for rank, ratio in enumerate(ratios(seconds)) if ratio > threshold}


def _event() -> Any:
    make: Any = torch.cuda.Event
    event = make(enable_timing=True)
    event.record()
    return event
