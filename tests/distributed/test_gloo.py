"""A group of processes: what it leaves behind when it, or its process, ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from danling.distributed.world import Group
from tests.distributed.processes import free_port, leave, results, succeed, together

pytestmark = pytest.mark.distributed


def make_group() -> Group:
    dist.init_process_group("gloo")
    return Group(timedelta(seconds=30))


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def ending_a_group(folder: Path) -> None:
    dist.init_process_group("gloo")
    before = threads()
    group = Group(timedelta(seconds=30))
    dist.all_reduce(torch.ones(1), group=group.handle)
    during = threads()
    del group
    gc.collect()
    leave(folder, [during > before, threads() == before])


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_group_that_ends_leaves_no_threads(tmp_path: Path) -> None:
    succeed(2, ending_a_group, tmp_path, folder=tmp_path)

    assert results(tmp_path, 2) == [[True, True]] * 2


def ending_with_a_collective_open(folder: Path) -> None:
    group = make_group()
    if dist.get_rank() == 1:  # it is there as long as the other needs, and never comes
        deadline = time.monotonic() + 150
        while not (folder / "result-0.json").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        leave(folder, [False, time.monotonic() < deadline])
        return
    work = dist.all_reduce(torch.ones(1), group=group.handle, async_op=True)
    group.keep_forever()
    del group
    gc.collect()
    leave(folder, [work.is_completed(), True])


def test_a_group_kept_for_an_open_collective_is_not_waited_for(tmp_path: Path) -> None:
    together(2, ending_with_a_collective_open, tmp_path, folder=tmp_path, terminates=False)

    assert results(tmp_path, 2) == [[False, True]] * 2


# Other threads get the processor and the GIL when the main one waits for something, and not before:
# after the last collective gloo's thread is late, as on a busy machine.
LAST = """
import os, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from danling.distributed import World

sys.setswitchinterval(10)
torch.set_num_threads(1)

def run(rank, port):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo")
    world = World(rank, 2)
    world.barrier()
    processor = sorted(os.sched_getaffinity(0))[-1 - rank]
    for thread in map(int, os.listdir("/proc/self/task")):
        os.sched_setaffinity(thread, {processor})
        if thread != os.getpid():
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    model = torch.nn.Linear(2, 1)
    if sys.argv[1] == "ddp":
        model = DistributedDataParallel(model)
        model(torch.ones(3, 2)).sum().backward()
        dist.all_reduce(torch.ones(3))
    else:
        world.gather("the last")
    return world, model

codes = []
for port in sys.argv[2:]:
    children = []
    for rank in range(2):
        children.append(os.fork())
        if not children[-1]:
            kept = run(rank, port)
            sys.exit(5)
    codes += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
print(codes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sets what threads get of the processor")
@pytest.mark.parametrize("last", ["world", pytest.param("ddp", marks=pytest.mark.exhaustive)])
def test_a_process_may_end_right_after_its_last_collective(last: str) -> None:
    ports = [str(free_port()) for _ in range(2)]

    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LAST, last, *ports],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert finished.stdout.strip() == str([5] * 4), finished.stderr
