"""Accumulation windows: which micro-batches make one optimizer step together, and what they weigh.

A window is the mean over what it holds. Micro-batches weigh the same, or as much as they have
samples; one that was skipped weighs nothing. What a window holds is known when it closes, so that
the gradients that were gathered are put right then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, repeat
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from danling.errors import RunError

if TYPE_CHECKING:
    from danling.distributed.world import World
    from danling.optimization.optimization import Optimization

__all__ = ["Tally", "Window", "windowed"]

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Window:
    """The place of a micro-batch in its window.

    Attributes:
        size: The number of micro-batches that the window is to hold.
        closes: Whether the optimizer steps after it.
        tally: The tally of what the window holds; None where that is this micro-batch alone.
    """

    size: int = 1
    closes: bool = True
    tally: Tally | None = None


class Tally:
    """The contents of the open window of each optimizer, on this process and on all.

    Several processes agree on it when a window closes: the messages travel while the last backward
    runs. Where each has only a part of the weights, no batch can be skipped by one of them, and
    there is nothing to agree on.

    Args:
        world: The processes.
        optimization: The optimizers.
        device: The device on which samples are added up.
        by_samples: Whether a micro-batch weighs as much as it has samples.

    Attributes:
        by_samples: Whether a micro-batch weighs as much as it has samples.
    """

    def __init__(
        self, world: World, optimization: Optimization, device: Any, *, by_samples: bool
    ) -> None:
        self._world = world
        self._optimization = optimization
        self._device = device
        self.by_samples = by_samples
        self._agrees = world.size > 1 and not optimization.model_state.is_partial
        self._left: dict[str, int] = {}  # micro-batches that were not skipped
        self._samples: dict[str, Tensor | float] = {}

    def backward(
        self, loss: Tensor | None, samples: Tensor | int, window: Window, name: str
    ) -> None:
        """Add the gradients of a micro-batch to the window, or skip it: the loss is None then.

        Raises:
            RunError: It is skipped, and others would wait for this process.
        """
        optimization, is_skipped = self._optimization, loss is None
        may_skip = optimization.replicas.stand_in is not None or self._world.size == 1
        if self.by_samples and may_skip and not isinstance(samples, Tensor) and not samples:
            is_skipped = True  # the mean of no samples, which is no number
        if not is_skipped:
            self._left[name] = self._left.get(name, 0) + 1
        if window.closes and self._agrees:
            own = self._left.get(name, 0), optimization.vetoed, optimization.vetoes
            self._world.begin_total(own)
        if is_skipped or loss is None:
            self._skip(window)
            return
        if self.by_samples:
            self._samples[name] = self._samples.get(name, 0) + samples
            loss = weighed(loss, samples)
        elif window.size > 1:
            loss = loss / window.size
        optimization.backward(loss, name)
        if optimization.replicas.stand_in is not None:
            optimization.replicas.stand_in.end_batch()

    def _skip(self, window: Window) -> None:
        if self._world.size == 1:
            return
        if self._optimization.replicas.stand_in is None:
            raise RunError(
                f"the step of a batch returned None on rank {self._world.rank}, and the processes "
                "of this run share the work of each batch: return the loss and say that it weighs "
                'nothing, {"loss": loss, "n": 0}, with accumulate="samples" in the configuration'
            )
        self._optimization.replicas.stand_in.skip(closes=window.closes)

    def open(self, name: str, window: Window) -> None:
        """End a window and open its step, with the mean over what it held.

        A collective, as gradients are. A step that is vetoed on one process is on all of them.

        Raises:
            RunError: A step was vetoed by some processes, after all gradients were known.
        """
        left, samples = self._left.pop(name, 0), self._samples.pop(name, 0.0)
        size, optimization = 1, self._optimization
        if self._agrees:
            total, vetoed, vetoes, _ = self._world.total()
            size, left = self._world.size, int(total)
            if vetoes != size * optimization.vetoes:
                raise RunError(
                    "skip_step() was called in on_before_step on some of the processes only, and "
                    "their weights differ since then: call it there on all of them, or before "
                    "step() on any"
                )
            optimization.vetoed |= vetoed > 0
        if not left:
            optimization.open_empty(name)
            return
        if self.by_samples:
            optimization.open(name, self._share(samples))
        elif left == size * window.size:
            optimization.open(name)
        else:
            optimization.open(name, size * window.size / left)

    def _share(self, samples: Tensor | float) -> Tensor | float:
        """One sample's share of a window, of which each process has its own samples."""
        size = self._world.size
        if size == 1 and not isinstance(samples, Tensor):
            return 1.0 / samples
        kind = torch.float32 if torch.device(self._device).type == "mps" else torch.float64
        total = torch.as_tensor(samples, dtype=kind, device=self._device)
        if size > 1:
            total = total.clone()
            dist.all_reduce(total)
        return torch.where(total > 0, size / total, 0.0)

    def reset(self) -> None:
        """Forget a window that will not be stepped."""
        self._left, self._samples = {}, {}


def weighed(loss: Tensor, samples: Tensor | int) -> Tensor:
    """A mean over samples times their number; without samples it is nothing, whatever the mean."""
    if not isinstance(samples, Tensor):
        return loss * samples
    samples = samples.to(loss.device).reshape(())
    return torch.where(samples > 0, loss * samples, 0.0)


_WHOLE = Window()
_END, _UNREAD = object(), object()


def windowed(
    source: Iterator[Any],
    length: int | None,
    accumulation: int,
    start: int,
    tally: Tally | None = None,
) -> Iterator[tuple[Any, Window]]:
    """Pair batches with their windows.

    Within a window the next batch is read before one is handed out: a source that ends before its
    length says closes the window too.

    Args:
        source: Batches.
        length: The number of batches in the epoch, where that is known.
        accumulation: Micro-batches of a full window.
        start: The index of the first batch in the epoch.
        tally: The tally of what windows hold.

    Example:
        >>> [(batch, w.size, w.closes) for batch, w in windowed(iter("abcde"), 5, 2, 0)]
        [('a', 2, False), ('b', 2, True), ('c', 2, False), ('d', 2, True), ('e', 1, True)]
        >>> [(batch, w.size, w.closes) for batch, w in windowed(iter("abc"), None, 2, 0)]
        [('a', 2, False), ('b', 2, True), ('c', 2, True)]
    """
    if accumulation == 1:
        return zip(source, repeat(_WHOLE if tally is None else Window(tally=tally)))
    return _counted(source, length, accumulation, start, tally)


def _counted(
    source: Iterator[Any],
    length: int | None,
    accumulation: int,
    start: int,
    tally: Tally | None,
) -> Iterator[tuple[Any, Window]]:
    batch = next(source, _END)
    for index in count(start):
        if batch is _END:
            return
        first = index - (index - start) % accumulation
        size = accumulation if length is None else min(accumulation, length - first)
        filled = index - first + 1
        following = _UNREAD if filled == size else next(source, _END)
        closes = filled == size or following is _END
        yield batch, Window(size, closes, tally)
        batch = next(source, _END) if following is _UNREAD else following
