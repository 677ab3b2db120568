"""The exchanges between processes, on processes that do nothing else."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from danling.distributed.world import World
from danling.errors import CheckpointError, DistributedError
from tests.distributed.processes import leave, results, succeed, together

pytestmark = pytest.mark.distributed


def make_world(timeout: float = 100.0) -> World:
    dist.init_process_group("gloo", timeout=timedelta(seconds=100))
    return World(dist.get_rank(), dist.get_world_size(), timeout)


def test_one_process_touches_nothing_of_torch_distributed() -> None:
    world = World()

    with world.call("anything()"):
        values = [world.gather(1), world.broadcast(2), world.maximum([3]), world.on_main(lambda: 4)]
    world.begin_batch()
    world.agree_on_error(None)

    assert values == [[1], 2, [3], 4]
    assert not dist.is_initialized()


def test_an_error_of_the_only_process_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        World().on_main(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        World().together(lambda: 1 // 0)
    with pytest.raises(ValueError, match="own"):
        World().agree_on_error(ValueError("own"))


def exchanging(folder: Path) -> None:
    world = make_world()
    rank = world.rank
    leave(
        folder,
        [
            world.gather({"rank": rank, "text": "x" * rank * 1000}),
            world.broadcast(f"from {rank}", source=1),
            world.maximum([rank, -rank, 0.5]),
            world.on_main(lambda: f"on {rank}"),
            world.gather(None),
        ],
    )


@pytest.mark.parametrize("size", [2, 3])
def test_values_go_to_all_processes(size: int, tmp_path: Path) -> None:
    succeed(size, exchanging, tmp_path, folder=tmp_path)

    everybody = [{"rank": rank, "text": "x" * rank * 1000} for rank in range(size)]
    expected = [everybody, "from 1", [size - 1, 0, 0.5], "on 0", [None] * size]
    assert results(tmp_path, size) == [expected] * size


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("a message")


def failing(folder: Path, error: Exception, rank: int) -> None:
    world = make_world()

    def fail() -> None:
        if world.rank == rank:
            raise error

    try:
        (world.on_main if rank == 0 else world.together)(fail)
    except Exception as raised:
        notes = getattr(raised, "__notes__", [])
        found = [type(raised).__name__, str(raised), getattr(raised, "errno", None), notes]
    world.barrier()  # the processes can still talk
    leave(folder, found)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CheckpointError(28, "not saved", "latest.pth"), "CheckpointError"),
        (Unpicklable(1, 2), "DistributedError"),
    ],
)
def test_an_error_of_one_process_is_raised_by_all(
    error: Exception, expected: str, rank: int, tmp_path: Path
) -> None:
    succeed(2, failing, tmp_path, error, rank, folder=tmp_path)

    found = results(tmp_path, 2)
    own, other = found[rank], found[1 - rank]
    assert own == [type(error).__name__, str(error), getattr(error, "errno", None), []]
    assert other[0] == expected
    assert str(error) in other[1]
    assert other[2:] == [own[2], [f"raised on rank {rank}, and on this rank with it"]]


def outcome(work: Callable[[], Any]) -> str:
    """The message of the error that this process gets; empty without one."""
    try:
        work()
    except DistributedError as error:
        return str(error)
    return ""


def calling_differently(folder: Path) -> None:
    world = make_world()

    def call() -> None:
        with world.call("save()" if world.rank == 0 else "evaluate()"):
            pass

    leave(folder, outcome(call))


def test_different_calls_are_an_error_that_names_both(tmp_path: Path) -> None:
    succeed(2, calling_differently, tmp_path, folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first.startswith("rank 0 is in save() while rank 1 is in evaluate()")
    assert second.startswith("rank 1 is in evaluate() while rank 0 is in save()")


def going_past(folder: Path) -> None:
    world = make_world()
    world.begin_batch()
    if world.rank == 0:
        leave(folder, outcome(world.barrier))
        (folder / "done").touch()
        return
    world.begin_batch()
    while not (folder / "done").exists():
        time.sleep(0.05)


def test_a_process_that_went_past_is_seen(tmp_path: Path) -> None:
    ended = together(2, going_past, tmp_path, folder=tmp_path, terminates=False)

    (text,) = results(tmp_path, 1)
    assert "rank 0 is in the run while rank 1 is in the next batch" in text
    assert not ended.timed_out


def being_slow(folder: Path) -> None:
    world = make_world()
    if world.rank == 1:
        time.sleep(1.5)
    leave(folder, outcome(world.barrier))


def test_a_slow_process_is_waited_for(tmp_path: Path) -> None:
    succeed(2, being_slow, tmp_path, folder=tmp_path)

    assert results(tmp_path, 2) == ["", ""]


def never_coming(folder: Path) -> None:
    world = make_world(timeout=3.0)
    if world.rank == 0:
        begun = time.monotonic()
        leave(folder, [outcome(world.barrier), time.monotonic() - begun])
    while not (folder / "result-0.json").exists():
        time.sleep(0.05)


def test_a_process_that_never_comes_is_given_up_after_the_time_out(tmp_path: Path) -> None:
    ended = together(2, never_coming, tmp_path, folder=tmp_path, terminates=False)

    ((text, seconds),) = results(tmp_path, 1)
    assert "waited 3 s" in text or "has gone" in text
    assert seconds > 2.5
    assert not ended.timed_out


def leaving(folder: Path) -> None:
    world = make_world()
    if os.environ["RANK"] == "1":
        return
    leave(folder, outcome(world.barrier))


def test_a_process_that_has_gone_is_an_error_at_once(tmp_path: Path) -> None:
    together(2, leaving, tmp_path, folder=tmp_path, terminates=False)

    (text,) = results(tmp_path, 1)
    assert "another process has gone while this one, rank 0, was in the run" in text


def interrupted(folder: Path) -> None:
    world = make_world()
    if world.rank == 1:  # it is there as long as the other needs, and never comes
        deadline = time.monotonic() + 150
        while not (folder / "result-0.json").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        leave(folder, time.monotonic() < deadline)
        return
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        world.barrier()
    except KeyboardInterrupt:
        caught = True
    del world
    gc.collect()
    leave(folder, caught)


def test_a_process_that_was_interrupted_in_a_collective_can_end(tmp_path: Path) -> None:
    together(2, interrupted, tmp_path, folder=tmp_path, terminates=False)

    assert results(tmp_path, 2) == [True, True]
