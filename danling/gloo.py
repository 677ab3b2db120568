"""A group of processes that talk through the CPU, and that a process can leave in order."""

from __future__ import annotations

import contextlib
import ctypes
import time
import weakref
from datetime import timedelta
from typing import Any

import torch.distributed as dist

__all__ = ["Group"]

_LETTING_GO = 0.05  # seconds for the threads of other groups to drop tensors of Python


class Group:
    """A group of all processes, which ends with this object or before the interpreter does.

    A thread of gloo drops the tensors of a collective after it has told those who wait. It takes
    the GIL for that, and a thread that asks an interpreter on its way out for the GIL aborts the
    process (github.com/pytorch/pytorch/issues/190489). So the threads are joined before.

    Args:
        timeout: Of its collectives.
    """

    def __init__(self, timeout: timedelta) -> None:
        self._handles: list[Any] = [dist.new_group(backend="gloo", timeout=timeout)]
        weakref.finalize(self, _destroy, self._handles)

    @property
    def handle(self) -> Any:
        """What `torch.distributed` takes; to be kept by nobody else."""
        return self._handles[0]

    def keep_forever(self) -> None:
        """Let the process end with a collective open: a join would wait for who does not come."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.handle))


def _destroy(handles: list[Any]) -> None:
    handle = handles.pop()
    with contextlib.suppress(ValueError, RuntimeError):  # it went with the default group
        dist.destroy_process_group(handle)
    del handle  # the last reference: this joins its threads
    time.sleep(_LETTING_GO)  # DDP holds the default group to the end: nobody can join those
