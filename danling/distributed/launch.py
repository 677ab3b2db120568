"""The processes that a launcher started: the world of a run, also after torchrun's restart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from danling.distributed.world import World
from danling.errors import ConfigError
from danling.seed import noted_flags, put_flags_back

__all__ = [
    "environment_of_accelerate",
    "forget_accelerate_state",
    "join_after_restart",
    "make_world",
]


def join_after_restart() -> None:
    """Make the process group of a later attempt of `torchrun --max-restarts`, on keys of its own.

    The agent keeps one store for all attempts, and in torch 2.13 nothing tells their keys
    apart: the new processes would look for the old ones at the addresses that those had. In a
    first attempt, and without torchrun, this does nothing, and Accelerate makes the group.

    Example:
        >>> join_after_restart()
        >>> dist.is_initialized()
        False
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    uses_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if attempt == "0" or not uses_agent or dist.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]  # it is public
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.distributed_c10d.PrefixStore(f"attempt-{attempt}", store),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def make_world(accelerator: Accelerator) -> World:
    """The processes that Accelerate found, with the time-out that it was given.

    Raises:
        ConfigError: A launcher has started more of them, and each would train on its own.
    """
    rank, size = accelerator.process_index, accelerator.num_processes
    launched = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if launched > size:
        raise ConfigError(
            f"{launched} processes were launched, and Accelerate sees {size}: without GPUs set "
            "ACCELERATE_USE_CPU=true before the command"
        )
    timeout = getattr(accelerator.init_handler, "timeout", None)
    return World(rank, size) if timeout is None else World(rank, size, timeout.total_seconds())


def forget_accelerate_state() -> None:
    """Let an accelerator differ from an earlier one of this process, which keeps what it has.

    Accelerate shares one dictionary between all of them: a later one would get the precision, the
    device and the plug-ins of the first. An accelerator that is there keeps its own. So it is with
    the variables that plug-ins have set, unless the process was started with them, and with the
    flags of torch that it has set.

    Example:
        >>> first = Accelerator(cpu=True, mixed_precision="bf16")
        >>> forget_accelerate_state()
        >>> Accelerator(cpu=True).mixed_precision, first.mixed_precision
        ('no', 'bf16')
    """
    states = [AcceleratorState, GradientState]
    if not dist.is_initialized():  # else the processes are those that there are
        states.append(PartialState)
    for state in states:
        state._shared_state = type(state._shared_state)()
    put_flags_back()
    while _LEFT_BEHIND:
        os.environ.pop(_LEFT_BEHIND.pop(), None)


_LEFT_BEHIND: set[str] = set()


@contextmanager
def environment_of_accelerate() -> Iterator[None]:
    """Take note of the variables that an accelerator sets: the next one is made without them."""
    before = set(os.environ)
    try:
        with noted_flags():
            yield
    finally:
        new = os.environ.keys() - before
        _LEFT_BEHIND.update(name for name in new if name.startswith(("ACCELERATE_", "FSDP_")))
