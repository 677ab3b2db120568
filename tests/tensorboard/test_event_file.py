"""Event files: what is written is read back, by every reader, also after a crash and a resume."""

from __future__ import annotations

import math
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from danling.tensorboard.event_file import (
    EventWriter,
    cut_events,
    event_files,
    find_values,
    read_events,
    read_scalars,
)
from tests.support.tensorboard_server import Server


def accumulate(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader in Python makes of a run."""
    reader = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    reader.Reload()
    tags = reader.Tags()["scalars"]
    return {tag: [(p.step, p.value) for p in reader.Scalars(tag)] for tag in tags}


def test_tensorboard_reads_what_is_written(tmp_path: Path):
    with EventWriter(tmp_path) as writer:
        writer.add_scalars({"train/loss": 0.5, "val/loss": 2}, step=1)
        writer.add_scalars({"train/loss": 0.25}, step=2)

    expected = {"train/loss": [(1, 0.5), (2, 0.25)], "val/loss": [(1, 2.0)]}
    assert accumulate(tmp_path) == expected
    assert read_scalars(tmp_path) == expected


def test_all_values_of_a_step_are_one_event(tmp_path: Path):
    with EventWriter(tmp_path) as writer:
        writer.add_scalars({f"train/{index}": index for index in range(10)}, step=1)

    sizes = [len(event.summary.value) for event in read_events(writer.path)]
    assert sizes == [0, 0, 10]


@pytest.mark.parametrize(
    "value",
    [2, 2.0, True, np.float32(2), np.int64(2), torch.tensor(2.0), torch.tensor([[2]]), np.array(2)],
    ids=repr,
)
def test_numbers_of_every_library_are_accepted(value, tmp_path: Path):
    with EventWriter(tmp_path) as writer:
        writer.add_scalars({"train/loss": value}, step=1)

    assert read_scalars(tmp_path) == {"train/loss": [(1, float(value))]}


def test_values_that_are_not_finite_are_written_and_counted(tmp_path: Path):
    with EventWriter(tmp_path) as writer:
        for step, value in enumerate([1.0, math.nan, math.inf, -math.inf]):
            writer.add_scalars({"train/loss": value}, step)

    values = [value for _, value in accumulate(tmp_path)["train/loss"]]
    assert [repr(value) for value in values] == ["1.0", "nan", "inf", "-inf"]
    assert writer.nonfinite == {"train/loss": 3}


def test_a_point_that_goes_back_is_left_out_and_counted(tmp_path: Path):
    with EventWriter(tmp_path) as writer:
        for step in [1, 2, 3, 3, 1, 4]:
            writer.add_scalars({"train/loss": step, "val/loss": step} | {f"only/{step}": 0}, step)

    assert [step for step, _ in read_scalars(tmp_path)["train/loss"]] == [1, 2, 3, 4]
    assert writer.dropped == {"train/loss": 2, "val/loss": 2, "only/3": 1, "only/1": 1}


def test_the_file_of_a_later_session_is_read_later_whatever_the_clock_says(tmp_path: Path):
    (tmp_path / "events.out.tfevents.4102444800.other-host.1.0").touch()  # in the year 2100

    with EventWriter(tmp_path) as first, EventWriter(tmp_path) as second:
        pass

    assert event_files(tmp_path)[1:] == [first.path, second.path]


def test_values_reach_the_file_when_the_time_is_over(tmp_path: Path):
    with EventWriter(tmp_path, flush_seconds=0.0) as eager, EventWriter(tmp_path) as lazy:
        eager.add_scalars({"train/loss": 1}, step=1)
        lazy.add_scalars({"train/loss": 2}, step=1)

        assert read_scalars(tmp_path) == {"train/loss": [(1, 1.0)]}


def test_a_killed_process_leaves_what_was_flushed(tmp_path: Path):
    program = (
        "import os, signal, sys; from danling.tensorboard.event_file import EventWriter\n"
        "writer = EventWriter(sys.argv[1])\n"
        "for step in range(1, 5001):\n"
        "    writer.add_scalars({'train/loss': step}, step)\n"
        "    if step == 1000: writer.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )

    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)])

    assert ended.returncode == -signal.SIGKILL
    steps = [step for step, _ in read_scalars(tmp_path)["train/loss"]]
    assert len(steps) >= 1000
    assert steps == [step for step, _ in accumulate(tmp_path)["train/loss"]]


@pytest.mark.parametrize(
    "end", [b"\x20", b"\x20" + bytes(20), struct.pack("<QI", 3, 0) + b"\xff" * 7]
)
def test_a_broken_end_is_skipped_and_cut_off(end: bytes, tmp_path: Path):
    with EventWriter(tmp_path) as writer:
        writer.add_scalars({"train/loss": 1}, step=1)
    whole = writer.path.read_bytes()
    writer.path.write_bytes(whole + end)

    assert read_scalars(tmp_path) == {"train/loss": [(1, 1.0)]}

    cut_events(tmp_path, lambda tag, step: True)

    assert writer.path.read_bytes() == whole


def test_the_last_values_of_the_tags_that_start_so_are_found(tmp_path: Path):
    with EventWriter(tmp_path) as writer:
        for step in range(1, 100):
            writer.add_scalars({"train/loss": step, "notes/a": step, "train/notes/a": 0}, step)
    size = writer.path.stat().st_size

    def found(head: int | None) -> dict[str, float]:
        values = find_values(writer.path, "notes/", head)
        return {tag: value.simple_value for tag, value in values.items()}

    assert found(None) == {"notes/a": 99.0}
    assert found(size // 2)["notes/a"] < 99
    assert found(10) == {}


def test_a_cut_takes_points_out_and_leaves_valid_files(tmp_path: Path):
    with EventWriter(tmp_path) as writer:
        for step in range(1, 11):
            writer.add_scalars({"train/loss": step, "val/loss": step}, step)

    last_steps = cut_events(tmp_path, lambda tag, step: step <= (5 if tag == "val/loss" else 8))

    assert last_steps == {"train/loss": 8, "val/loss": 5}
    points = accumulate(tmp_path)  # which stops at a wrong checksum
    assert [step for step, _ in points["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in points["val/loss"]] == list(range(1, 6))


def test_a_cut_that_takes_nothing_leaves_the_file_as_it_is(tmp_path: Path):
    with EventWriter(tmp_path) as writer:
        writer.add_scalars({"train/loss": 1}, step=1)
    before = os.stat(writer.path)

    cut_events(tmp_path, lambda tag, step: True)

    assert os.stat(writer.path) == before


@pytest.mark.parametrize("fast", [True, False], ids=["rust", "python"])
def test_a_server_shows_a_resumed_run_without_its_abandoned_part(fast: bool, tmp_path: Path):
    run = tmp_path / "logs" / "run"
    run.mkdir(parents=True)
    with EventWriter(run) as writer:
        for step in range(1, 151):
            writer.add_scalars({"train/loss": step}, step)
        writer.add_scalars({"abandoned": 1, "train/lr": 1}, step=149)
    last_steps = cut_events(run, lambda tag, step: step <= 100)
    with EventWriter(run, start_step=101, last_steps=last_steps) as writer:
        for step in range(101, 121):
            writer.add_scalars({"train/loss": -step}, step)

    with Server(tmp_path / "logs", fast=fast) as server:
        server.wait_until(lambda: len(server.scalars("run", "train/loss")) >= 120)
        shown = server.scalars("run", "train/loss")
        tags = server.scalar_tags("run")

    expected = [(step, float(step if step <= 100 else -step)) for step in range(1, 121)]
    assert shown == expected
    assert tags == {"train/loss"}
    assert accumulate(run) == {"train/loss": expected}


@pytest.mark.parametrize("fast", [True, False], ids=["rust", "python"])
def test_a_server_that_has_the_abandoned_part_drops_it_when_the_run_goes_on(
    fast: bool, tmp_path: Path
):
    run = tmp_path / "logs" / "run"
    run.mkdir(parents=True)
    with EventWriter(run) as writer:
        for step in range(1, 151):
            writer.add_scalars({"train/loss": step}, step)

    with Server(tmp_path / "logs", fast=fast) as server:
        server.wait_until(lambda: len(server.scalars("run", "train/loss")) == 150)
        last_steps = cut_events(run, lambda tag, step: step <= 100)
        with EventWriter(run, start_step=101, last_steps=last_steps) as writer:
            writer.add_scalars({"train/loss": -101}, step=101)
        server.wait_until(lambda: server.scalars("run", "train/loss")[-1] == (101, -101.0))
        shown = server.scalars("run", "train/loss")

    assert shown == [*((step, float(step)) for step in range(1, 101)), (101, -101.0)]
