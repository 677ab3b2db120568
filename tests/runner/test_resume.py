"""How a run goes on: from which checkpoint, how exactly, and what is said about it."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from danling.callback import Callback
from danling.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint
from danling.errors import CheckpointError, ResumeError, RunLockedError
from danling.runner.accelerate import AccelerateRunner
from tests.support.resume_runs import (
    STEPS,
    Noisy,
    failing,
    interrupted,
    log,
    make_runner,
    record,
    trained,
    tree,
    weights,
)


def runs(root: str = "experiments") -> list[Path]:
    return sorted(Path(root).glob("*-*-*"))


# Which run, which checkpoint


def test_the_same_command_twice_starts_and_then_goes_on():
    first = interrupted(9, resume="auto")
    again = trained(resume="auto")

    assert "found no unfinished run" in log(first)
    assert again.dir == first.dir
    assert again.resume_report is not None
    assert again.resume_report["exact"]
    assert (again.resume_report["epoch"], again.resume_report["global_step"]) == (1, STEPS)
    assert weights(again) == weights(trained())
    assert [launch["start_step"] for launch in record(again)["launches"]] == [0, STEPS]


def test_a_run_without_a_checkpoint_begins_again_in_its_directory():
    first = interrupted(3)

    again = trained(resume="auto")

    assert again.dir == first.dir
    assert "it has no checkpoint yet" in log(again)
    steps = [
        json.loads(row)["global_step"]
        for row in (again.dir / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps)
    assert steps.count(1) == 1


@pytest.mark.parametrize(("which", "step"), [("latest", 3 * STEPS), ("best", 2 * STEPS)])
def test_latest_and_best_are_of_the_newest_run_of_this_configuration(which: str, step: int):
    first = trained(scores=(0.5, 0.1, 0.9), max_epochs=3)

    again = trained(scores=(0.5, 0.1, 0.9), max_epochs=3, resume=which)

    assert again.dir == first.dir
    assert again.resume_report is not None
    assert again.resume_report["global_step"] == step
    assert again.global_step == 3 * STEPS


@pytest.mark.parametrize("which", ["latest", "best", "/nowhere/latest.pth"])
def test_what_is_not_there_is_an_error_and_no_fresh_start(which: str):
    with pytest.raises(ResumeError, match="there is no"):
        make_runner(resume=which).train()

    assert runs() == []


def test_auto_says_how_to_extend_a_run_that_differs_in_length_alone():
    first = trained(max_epochs=1)

    again = trained(resume="auto")

    assert again.dir != first.dir
    assert "differs only in its length (max_epochs 1)" in log(again)
    assert "extend it with resume='experiments/" + first.dir.name in log(again)


def test_a_run_extended_by_path_is_the_longer_run_that_nobody_interrupted():
    first = trained(max_epochs=1)

    longer = trained(max_epochs=3, resume=str(first.dir))

    whole = trained(max_epochs=3)
    assert longer.dir == first.dir
    assert weights(longer) == weights(whole)
    assert longer.results == whole.results
    assert "config: max_epochs was 1, now it is 3" in log(longer)


@pytest.mark.parametrize("evaluate_every", ["1 epoch", "2 steps"])
def test_a_save_after_an_epoch_that_was_cut_can_be_extended_too(evaluate_every: str):
    whole = trained(max_epochs=2, evaluate_every=evaluate_every)

    save = LambdaCallback(name="save", on_train_end=lambda runner: runner.save_checkpoint())
    cut = STEPS + 2
    first = trained([save], max_epochs=2, max_steps=cut, evaluate_every=evaluate_every)
    again = trained(max_epochs=2, evaluate_every=evaluate_every, resume=str(first.dir))

    assert "train" in first.results[-1]
    assert again.resume_report is not None
    assert (again.resume_report["global_step"], again.resume_report["exact"]) == (cut, True)
    assert again.results == whole.results
    assert weights(again) == weights(whole)


@pytest.mark.parametrize("max_epochs", [2, 1])
def test_a_finished_run_does_nothing_and_says_so(max_epochs: int):
    first = trained()
    before = tree(first.checkpoint_dir)

    again = trained(max_epochs=max_epochs, resume=str(first.dir))

    assert again.global_step == 2 * STEPS
    assert tree(again.checkpoint_dir) == before
    assert "nothing to do" in log(again)
    assert weights(again) == weights(first)
    assert again.results == first.results


def test_a_run_that_stopped_early_stays_stopped_and_says_why():
    script = (0.1, 0.5, 0.5, 0.5)
    first = trained([EarlyStopping(patience=2)], scores=script, max_epochs=4)

    again = trained([EarlyStopping(patience=2)], scores=script, max_epochs=4, resume=str(first.dir))

    assert first.epoch == again.epoch == 3
    assert "nothing to do: early_stopping: val/loss did not improve" in log(again)


def test_two_resumes_without_a_save_between_them_are_as_one():
    first = interrupted(9)
    interrupted(7, resume=str(first.dir))

    again = trained(resume=str(first.dir))

    assert weights(again) == weights(trained())


def test_an_older_checkpoint_is_a_branch_and_the_newer_ones_stay():
    numbered = ModelCheckpoint(keep_every="1 epoch")
    first = trained([numbered], max_epochs=3)
    before = tree(first.checkpoint_dir)

    path = first.checkpoint_dir / "epoch-1.pth"
    stopped = interrupted(7, max_epochs=3, resume=str(path))

    assert f"goes back from global step {3 * STEPS} to {STEPS}" in log(stopped)
    assert tree(first.checkpoint_dir) == before

    again = trained([ModelCheckpoint(keep_every="1 epoch")], max_epochs=3, resume=str(path))
    entries = again.checkpoints.candidates()
    assert [e.global_step for e in entries if e.name == "latest"] == [3 * STEPS]
    assert weights(again) == weights(first)


def test_damaged_checkpoints_are_an_error_and_no_fresh_start():
    first = interrupted(9)
    for path in first.checkpoint_dir.glob("*.pth"):
        path.write_bytes(path.read_bytes()[:100])

    for resume in ("auto", "auto", str(first.dir)):
        with pytest.raises(CheckpointError, match="no valid checkpoint is left"):
            make_runner(resume=resume).train()

    assert [path.resolve() for path in runs()] == [first.dir]


def test_damage_to_latest_and_all_its_names_costs_one_save_and_nothing_else():
    first = interrupted(2 * STEPS + 3, [ModelCheckpoint(keep_every="1 epoch")], max_epochs=3)
    latest = first.checkpoint_dir / "latest.pth"
    with latest.open("r+b") as file:  # in place: epoch-2.pth is the same file
        file.seek(latest.stat().st_size // 2)
        file.write(b"\xff" * 8)

    again = trained(max_epochs=3, resume=str(first.dir))

    assert again.resume_report is not None
    assert again.resume_report["checkpoint"] in ("previous.pth", "epoch-1.pth", "best.pth")
    assert weights(again) == weights(trained(max_epochs=3))
    assert (again.checkpoint_dir / "latest.pth.corrupt-1").exists()


def test_a_checkpoint_of_another_run_in_the_directory_is_refused():
    other, first = interrupted(9, seed=5), interrupted(9)
    path = first.checkpoint_dir / "epoch-7.pth"
    shutil.copy(other.checkpoint_dir / "latest.pth", path)
    before = tree(first.checkpoint_dir)

    with pytest.raises(ResumeError, match="belongs to the run") as caught:
        make_runner(resume=str(path)).train()

    assert "from_checkpoint" in str(caught.value)
    assert tree(first.checkpoint_dir) == before


def test_a_file_of_somebody_else_is_refused(tmp_path: Path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pth")

    with pytest.raises(ResumeError, match="is not in the directory of a run"):
        make_runner(resume=str(tmp_path / "weights.pth")).train()
    with pytest.raises(CheckpointError, match="the weights of a model alone"):
        make_runner().load_checkpoint(tmp_path / "weights.pth")


def test_checkpoints_in_a_folder_of_another_name_are_no_fresh_start():
    first = interrupted(9, checkpoint_dir_name="saved")

    with pytest.raises(ResumeError, match="set checkpoint_dir_name='saved'"):
        make_runner(resume="auto").train()

    again = trained(resume="auto", checkpoint_dir_name="saved")
    assert again.dir == first.dir


# Where it is


def test_a_run_that_was_moved_goes_on_where_it_is(tmp_path: Path):
    first = interrupted(9)
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    first.dir.rename(moved)

    again = trained(resume=str(moved))

    assert again.dir == moved
    assert not first.dir.exists()
    assert weights(again) == weights(trained())
    for name, content in tree(moved).items():
        if not name.endswith((".pth", "run.json", "run.log")):
            assert str(first.dir).encode() not in content, name


def test_a_copy_goes_on_and_the_original_is_not_touched(tmp_path: Path):
    first = interrupted(9)
    copy = tmp_path / "copy"
    shutil.copytree(first.dir, copy)
    before = tree(first.dir)

    again = trained(resume=str(copy))

    assert again.dir == copy
    assert again.global_step == 2 * STEPS
    assert tree(first.dir) == before


HOLDER = """
    import sys, time
    from danling.run.lock import DirectoryLock
    DirectoryLock(sys.argv[1], run="x").acquire()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_that_another_process_works_on_is_left_to_it():
    first = interrupted(9)
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(first.dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        with pytest.raises(RunLockedError, match=f"in use by process {holder.pid} on "):
            make_runner(resume=str(first.dir)).train()
        fresh = trained(resume="auto")
        holder.kill()

    assert fresh.dir != first.dir
    assert trained(resume=str(first.dir)).dir == first.dir  # free at once


# What was changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0 -> 1"),
        ({"dataloader": {"batch_size": 8}}, "batch_size 4 -> 8"),
        ({"samples": 32}, r"len\(dataset\) 24 -> 32"),
        ({"dataloader": {"batch_size": 4, "drop_last": True}}, "drop_last False -> True"),
        ({"accelerate": {"gradient_accumulation_steps": 2}}, "accum_steps 1 -> 2"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_would_make_it_another_training_is_refused(change: dict[str, Any], message: str):
    first = interrupted(9, [ModelCheckpoint("1 step")])
    before = tree(first.checkpoint_dir)

    with pytest.raises(ResumeError, match=message) as caught:
        make_runner(resume=str(first.dir), **change).train()

    assert "put the old values back" in str(caught.value)
    assert tree(first.checkpoint_dir) == before


def read_once(runner: Any, batch_size: int = 4) -> list[int]:
    """What was read of a dataset that draws: the batch of its first draw is read again."""
    reads: list[int] = runner.datasets["train"].reads
    assert reads[:batch_size] == reads[batch_size : 2 * batch_size]
    return reads[batch_size:]


def test_elastic_covers_the_rest_of_the_epoch_once_and_says_that_it_is_not_exact():
    first = interrupted(STEPS + 3, [ModelCheckpoint("1 step")])
    seen = read_once(first)[STEPS * 4 : (STEPS + 2) * 4]
    more: dict[str, Any] = {
        "dataloader": {"batch_size": 8},
        "elastic": True,
        "resume": str(first.dir),
    }

    again = trained(**more)

    assert sorted(seen + read_once(again, batch_size=8)) == list(range(24))
    assert again.resume_report is not None
    assert not again.resume_report["exact"]
    assert "batch_size 4 -> 8" in log(again)


def test_a_dataset_with_generators_of_its_own_is_doubted_and_goes_on():
    unkeyed: dict[str, Any] = {"dataloader": {"batch_size": 4, "keyed": False}}
    first = interrupted(9, [ModelCheckpoint("1 step")], **unkeyed)

    again = trained(resume=str(first.dir), **unkeyed)

    assert again.resume_report is not None
    assert not again.resume_report["exact"]
    assert "not exactly, since" in log(again)


def test_values_given_now_win_and_are_printed():
    first = interrupted(9)

    again = trained(resume=str(first.dir), max_grad_norm=0.5, max_epochs=3)

    assert again.epoch == 3
    assert again.resume_report is not None
    assert again.resume_report["changes"] == [
        "config: max_epochs was 2, now it is 3",
        "config: max_grad_norm was None, now it is 0.5",
    ]
    assert "config: max_grad_norm was None, now it is 0.5" in log(again)


def test_a_changed_configuration_class_is_no_obstacle():
    first = interrupted(9, removed_key=3)

    again = trained(resume=str(first.dir))

    assert "config: removed_key was 3, now it is '(absent)'" in log(again)


# Callbacks


class Counter(Callback):
    """Counts steps."""

    name = "counter"

    def __init__(self) -> None:
        self.count = 0

    def on_step(self, runner: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Renamed(Counter):
    name = "renamed"


def test_a_checkpoint_has_the_state_of_callbacks_after_its_step():
    first = interrupted(9, [Counter(), ModelCheckpoint("1 step")])

    checkpoint, _ = first.checkpoints.load()

    assert checkpoint["data"]["global_step"] == 8
    assert checkpoint["callbacks"]["counter"] == {"count": 8}


def test_callbacks_are_matched_by_name_and_differences_are_one_line():
    first = interrupted(9, [EarlyStopping(patience=5), Counter()])

    again = trained([Renamed(), EarlyStopping(patience=5)], resume=str(first.dir))

    lines = [line for line in log(again).splitlines() if "the callbacks differ" in line]
    assert len(lines) == 1
    assert "new: renamed; gone: counter" in lines[0]
    assert again.callbacks["renamed"].count == STEPS  # type: ignore[attr-defined]
    kept = again.checkpoints.load()[0]["callbacks"]
    assert kept["counter"] == {"count": STEPS}


def test_the_order_of_callbacks_has_no_effect():
    first = interrupted(9, [EarlyStopping(patience=5), Counter()])

    again = trained([Counter(), EarlyStopping(patience=5)], resume=str(first.dir))

    assert "the callbacks differ" not in log(again)
    assert again.callbacks["counter"].count == 2 * STEPS  # type: ignore[attr-defined]


def test_best_score_and_patience_survive():
    script = (0.5, 0.1, 0.4, 0.3, 0.3, 0.3)
    first = interrupted(3 * STEPS + 2, [EarlyStopping(patience=3)], scores=script, max_epochs=6)
    best = (first.checkpoint_dir / "best.pth").read_bytes()

    again = make_runner(
        [EarlyStopping(patience=3)], scores=script, max_epochs=6, resume=str(first.dir)
    )
    waits = []
    again.callbacks.append(
        LambdaCallback(
            name="look",
            on_train_start=lambda r: waits.append(r.callbacks["early_stopping"].wait),
        )
    )
    again.train()

    assert waits == [1]
    assert again.best_score == pytest.approx(0.1)
    assert again.epoch == 5
    assert (again.checkpoint_dir / "best.pth").read_bytes() == best


# Where it goes on


def test_a_run_goes_on_behind_the_epoch_that_was_complete():
    first, events = interrupted(STEPS + 1), list[tuple[str, int]]()
    watch = LambdaCallback(
        name="watch",
        on_epoch_start=lambda runner: events.append(("epoch", runner.epoch)),
        on_step=lambda runner: events.append(("step", runner.global_step)),
    )

    again = trained([watch], resume=str(first.dir))

    steps = [("step", number) for number in range(STEPS + 1, 2 * STEPS + 1)]
    assert events == [("epoch", 1), *steps]
    assert again.epoch == 2
    reads, before = read_once(again), read_once(first)[: 4 * STEPS]
    assert sorted(reads) == sorted(before)
    assert reads != before


def test_over_any_number_of_resumes_each_step_is_made_once():
    steps: list[int] = []
    watch = LambdaCallback(name="watch", on_checkpoint=lambda r: steps.append(r.global_step))
    first = interrupted(3, [ModelCheckpoint("1 step"), watch])
    for step in (4, 8, 11):
        interrupted(step, [ModelCheckpoint("1 step"), watch], resume=str(first.dir))

    again = trained([ModelCheckpoint("1 step"), watch], resume=str(first.dir))

    assert [step for step in steps if step % STEPS] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert again.global_step == 2 * STEPS
    rows = [json.loads(row) for row in (again.dir / "metrics.jsonl").read_text().splitlines()]
    tagged = [(tag, row["global_step"]) for row in rows for tag in row if "/" in tag]
    assert len(tagged) == len(set(tagged))


# Data that is only read from its start


class Stream:
    """Batches without end, or of one epoch."""

    def __init__(self, length: int | None = STEPS) -> None:
        self.length = length

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number in count() if self.length is None else range(self.length):
            yield torch.randn(4, 4) + number, torch.full((4, 1), float(number))


class StatefulStream(Stream):
    """One that knows where it is."""

    position = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while self.length is None or self.position < self.length:
            self.position += 1
            yield torch.randn(4, 4) + self.position, torch.full((4, 1), float(self.position))
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def stream_run(source: Any, fails_at: int | None = None, **config: Any) -> AccelerateRunner:
    callbacks = [ModelCheckpoint("1 step"), *([failing(fails_at)] if fails_at else [])]
    runner = make_runner(callbacks, **config)
    runner.datasets = {"val": runner.datasets["val"]}
    runner.dataloaders = {"train": source}
    with pytest.raises(RuntimeError, match="boom") if fails_at else nullcontext():
        runner.train()
    return runner


@pytest.mark.parametrize("length", [STEPS, None])
def test_a_stream_with_a_state_goes_on_exactly(length: int | None):
    limits: dict[str, Any] = {"max_epochs": None, "max_steps": 9} if length is None else {}
    first = stream_run(StatefulStream(length), fails_at=8, **limits)

    again = stream_run(StatefulStream(length), resume=str(first.dir), **limits)

    whole = stream_run(StatefulStream(length), **limits)
    assert again.resume_report is not None
    assert (again.resume_report["global_step"], again.resume_report["exact"]) == (7, True)
    assert weights(again) == weights(whole)
    assert again.results == whole.results


def test_a_stream_without_a_state_says_what_can_be_done_and_each_of_it_works():
    first = stream_run(Stream(), fails_at=9)
    again: dict[str, Any] = {"resume": str(first.dir)}

    with pytest.raises(ResumeError, match="Cannot resume 'train' at epoch 1, batch 2") as caught:
        stream_run(Stream(), **again)

    for way in ("implement both methods", "'replay'} (re-reads 2 batches)", "'epoch'}"):
        assert way in str(caught.value)
    replayed = stream_run(Stream(), dataloader={"batch_size": 4, "resume": "replay"}, **again)
    assert weights(replayed) == weights(stream_run(Stream()))
    assert replayed.resume_report is not None
    assert replayed.resume_report["exact"]


def test_a_stream_may_begin_its_epoch_anew_and_that_is_said():
    first = stream_run(Stream(), fails_at=9)

    again = stream_run(
        Stream(), dataloader={"batch_size": 4, "resume": "epoch"}, resume=str(first.dir)
    )

    assert again.resume_report is not None
    assert not again.resume_report["exact"]
    assert "begins epoch 1 anew: 2 items are seen twice" in log(again)


# Validation


def test_a_run_that_dies_in_its_evaluation_evaluates_once_more_and_once_only():
    evaluated: list[int] = []

    def look(runner: Any, split: str, result: Any) -> None:
        evaluated.append(runner.global_step)

    def die(runner: Any, batch: Any, output: Any) -> None:
        if runner.epoch == 1:
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        make_runner(
            [ModelCheckpoint("1 step"), LambdaCallback(name="die", on_evaluate_batch_end=die)]
        ).train()

    again = trained([LambdaCallback(name="look", on_evaluate_end=look)], resume="auto")

    whole = trained()
    assert evaluated == [2 * STEPS]
    assert again.results == whole.results
    assert weights(again) == weights(whole)


def test_evaluation_changes_nothing_of_a_training():
    often = trained(evaluate_every="2 steps")
    never = trained(evaluate_every=None, monitor="train/loss")

    assert weights(often) == weights(never)


# A disk that cannot be written


READ_ONLY = """
    import subprocess, sys
    from pathlib import Path
    from danling.errors import RunDirectoryError
    from tests.support.resume_runs import interrupted, make_runner, tree
    root = Path("experiments").resolve()
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(root)]).returncode:
        sys.exit("mount failed")
    first = interrupted(9)
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
    before = tree(first.dir)
    for resume in (str(first.dir), "auto", False):
        try:
            make_runner(resume=resume).train()
        except RunDirectoryError as error:
            print(error.errno, tree(first.dir) == before)
"""


@pytest.mark.exhaustive
def test_a_run_on_a_read_only_disk_cannot_go_on_and_is_not_changed():
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no private mount namespaces here")

    result = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", textwrap.dedent(READ_ONLY)],
        capture_output=True,
        text=True,
    )

    if "mount failed" in result.stderr:
        pytest.skip("nothing may be mounted here")
    assert result.stdout.splitlines() == [f"{errno.EROFS} True"] * 3, result.stderr


# The cost


def test_a_resume_at_batch_10_000_reads_no_sample_that_is_skipped():
    class Counted(Noisy):
        deterministic = True

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            self.reads.append(index)
            return self.inputs[index], self.inputs[index, :1]

    def make(**config: Any) -> AccelerateRunner:
        runner = make_runner(dataloader={"batch_size": 1}, max_steps=10_000, **config)
        runner.datasets = {"train": Counted(10_010)}
        return runner

    first = make()
    with first:
        for _ in first.epochs():
            for index, _ in enumerate(first.batches()):
                if index == 9_999:
                    first.save_checkpoint()
                    first.stop()
                    break

    again = make(resume=str(first.dir))
    with again:
        for _ in again.epochs():
            for _ in again.batches():
                break
            break

    assert len(again.datasets["train"].reads) <= 2
    assert again.datasets["train"].reads[0] not in first.datasets["train"].reads
