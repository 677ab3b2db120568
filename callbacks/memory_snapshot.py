"""What is in memory when it runs out."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from danling.callback import Callback
from danling.errors import CallbackError
from danling.triggers import Every, Moment

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["MemorySnapshot"]


class MemorySnapshot(Callback):
    """Write what holds the memory when a run fails because there is no more.

    `memory/rank-0-step-120.txt` in the directory of the run lists the largest tensors that are
    alive, by shape and type, with their number and bytes, on whichever device. On CUDA
    `memory/rank-0-step-120.pickle` is besides the history of the allocations with their places in
    the source, for https://pytorch.org/memory_viz (see
    https://docs.pytorch.org/docs/stable/torch_cuda_memory.html); its recording costs some
    microseconds per allocation. A list of tensors is of those that Python holds: what autograd
    keeps for the backward is in the history alone.

    On the CPU a step costs nothing. It has no state.

    Args:
        every: The time from one snapshot of a run that goes well to the next, as `"100 steps"`;
            None: there are none.
        max_entries: The number of allocations that the history holds at most.
        rows: The number of rows of the list.

    Attributes:
        paths: The lists that were written.

    Raises:
        CallbackError: A number is not positive.

    Example:
        >>> MemorySnapshot(every="1 epoch").max_entries
        100000
    """

    name = "memory_snapshot"
    only_watches = True

    def __init__(
        self, *, every: str | Every | None = None, max_entries: int = 100_000, rows: int = 30
    ) -> None:
        if min(max_entries, rows) < 1:
            raise CallbackError(
                f"MemorySnapshot(max_entries={max_entries}, rows={rows}): at least 1"
            )
        self.every = None if every is None else Every(every)
        self.max_entries = max_entries
        self.rows = rows
        self.paths: list[Path] = []
        self._last = Moment()
        self._is_recording = False

    def on_setup(self, runner: Runner) -> None:
        """Begin to record allocations, where there is a CUDA device."""
        self.paths, self._last = [], runner.now()
        if runner.device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=self.max_entries)
            self._is_recording = True

    def on_checkpoint(self, runner: Runner) -> None:
        """Write a snapshot that is due."""
        if self.every is not None and self.every.is_due(runner.now(), self._last):
            self._last = runner.now()
            self._write(runner)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Write one if memory has run out."""
        if isinstance(error, Exception) and is_out_of_memory(error):
            self._write(runner)

    def on_teardown(self, runner: Runner) -> None:
        """Record no more."""
        if self._is_recording:
            torch.cuda.memory._record_memory_history(enabled=None)
            self._is_recording = False

    def _write(self, runner: Runner) -> None:
        # by the type itself, which asks nothing of the objects
        tensors = [value for value in gc.get_objects() if type(value) in (Tensor, nn.Parameter)]
        text = listing(tensors, self.rows)
        if not runner.has_dir:
            runner.logger.warning("%s\n%s", self.name, text)
            return
        path = runner.dir / "memory" / f"rank-{runner.rank}-step-{runner.global_step}.txt"
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if self._is_recording:
                dump: Any = torch.cuda.memory._dump_snapshot
                dump(str(path.with_suffix(".pickle")))
        except OSError as error:  # the error of the run is the one that matters
            runner.logger.warning("%s: nothing was written: %s", self.name, error)
            return
        self.paths.append(path)
        runner.logger.warning("%s: what is in memory is in %s", self.name, path)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device or the host has no more memory.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("no"))
        (True, False)
    """
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or bool(should_reduce_batch_size(error))


def listing(tensors: Iterable[Tensor], rows: int) -> str:
    """The largest of some tensors, alike ones together; of those that share memory one counts.

    Example:
        >>> weight = torch.zeros(2, 3)
        >>> print(listing([weight, weight.T, torch.zeros(2, 3)], rows=5))
                   bytes  count  what
                      48      2  cpu float32 (2, 3)
                      48         in all
    """
    kinds: dict[str, list[int]] = {}
    seen: set[tuple[str, int]] = set()
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.device.type == "meta" or not tensor.nbytes:
            continue
        storage = tensor.untyped_storage()
        key = str(tensor.device), storage.data_ptr()
        if key in seen:
            continue
        seen.add(key)
        kind = f"{tensor.device} {str(tensor.dtype).partition('.')[2]} {tuple(tensor.shape)}"
        kinds.setdefault(kind, []).append(storage.nbytes())
    largest = sorted(kinds.items(), key=lambda item: -sum(item[1]))
    lines = [f"{sum(sizes):>16,}  {len(sizes):>5}  {kind}" for kind, sizes in largest[:rows]]
    if len(largest) > rows:
        rest = sum(sum(sizes) for _, sizes in largest[rows:])
        lines.append(f"{rest:>16,}         {len(largest) - rows} more kinds")
    total = sum(sum(sizes) for sizes in kinds.values())
    return "\n".join([f"{'bytes':>16}  count  what", *lines, f"{total:>16,}         in all"])
