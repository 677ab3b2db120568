from __future__ import annotations

import errno
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from danling.callback import Callback
from danling.callbacks import LambdaCallback, ModelCheckpoint
from danling.checkpoint.reading import read_checkpoint
from danling.errors import CallbackError, CheckpointError, MetricError
from danling.files.failpoints import set_failpoints
from danling.testing import CallbackContract
from tests.distributed.processes import together
from tests.distributed.runners import At, Regression, die, fail, network
from tests.support.clock import SetClock
from tests.support.resume_harness import in_process
from tests.support.resume_runs import (
    STEPS,
    interrupted,
    log,
    make_runner,
    names,
    trained,
    weights,
)


@pytest.fixture(autouse=True)
def no_failpoints() -> Iterator[None]:
    yield
    set_failpoints("")


def steps(runner: Any) -> dict[str, int]:
    return {entry.name: entry.global_step for entry in runner.checkpoints.candidates()}


def saves(runner: Any) -> tuple[list[int], Any]:
    """The steps at which on_save fired, of a whole training."""
    found: list[int] = []
    watch = LambdaCallback(name="watch", on_save=lambda r, path: found.append(r.global_step))
    runner.callbacks.append(watch)
    runner.train()
    return found, runner


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_top_k": -2}, "save_top_k is -1 for all, or 0 or more"),
        ({"keep_last": 0, "keep_every": "1 epoch"}, "keep_last 1 or more"),
        ({"keep_last": 2}, "set it too"),
        ({"on_save_error": "ignore"}, "'raise' or 'warn'"),
        ({"name": "../auc"}, "it names a file"),
        ({"name": "val/auc"}, "it names a file"),
        ({"name": "best"}, "not best, latest or previous"),
        ({"name": "auc", "save_on_exception": True}, "is for the one without a name"),
    ],
)
def test_what_cannot_be_meant_is_an_error_at_once(arguments: dict[str, Any], message: str):
    with pytest.raises(CallbackError, match=message):
        ModelCheckpoint(**arguments)


# When


def test_by_default_latest_is_saved_after_each_epoch_and_best_when_it_improves():
    found, runner = saves(make_runner(scores=(0.3, 0.1, 0.2), max_epochs=3))

    assert found == [STEPS, 2 * STEPS, 3 * STEPS]
    assert steps(runner) == {
        "latest": 3 * STEPS,
        "previous": 2 * STEPS,
        "best": 2 * STEPS,
    }


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("4 steps", [4, 8, 12, 12]),
        (None, [12]),
        ("2 epochs", [12]),
        ("0.25 run", [3, 6, 9, 12, 12]),
    ],
)
def test_latest_is_saved_as_often_as_said_and_at_the_end(every: str | None, expected: list[int]):
    found, runner = saves(make_runner([ModelCheckpoint(every, save_top_k=0)]))

    assert found == expected
    assert runner.checkpoints.load()[0]["data"]["epoch"] == 2


def test_latest_is_saved_by_time(monkeypatch: pytest.MonkeyPatch):
    pace = SetClock(monkeypatch).each_step_takes(5)

    found, _ = saves(make_runner([ModelCheckpoint("12 s", save_top_k=0), pace]))

    assert found == [3, 6, 9, 12, 12]  # at the end, too


def test_a_stop_saves_where_it_stops():
    stop = LambdaCallback(name="s", on_step=lambda r: r.stop() if r.global_step == 8 else None)

    runner = trained([stop])

    assert steps(runner)["latest"] == 8


def test_numbered_files_are_named_after_their_epoch_or_step():
    by_epoch = trained([ModelCheckpoint(keep_every="1 epoch")])
    by_step = trained([ModelCheckpoint(keep_every="4 steps")])

    assert names(by_epoch) == {"latest", "previous", "best", "epoch-1", "epoch-2"}
    assert by_epoch.checkpoints.load("epoch-2")[0]["data"]["epoch"] == 2
    assert names(by_step) >= {"step-4", "step-8", "step-12"}
    assert by_step.checkpoints.load("step-8")[0]["data"]["global_step"] == 8


def test_a_save_has_the_evaluation_of_its_own_step():
    runner = trained([ModelCheckpoint("3 steps")], evaluate_every="3 steps", scores=(0.5, 0.4))

    assert names(runner) == {"latest", "previous", "best"}
    for entry in runner.checkpoints.candidates():
        result = runner.checkpoints.load(entry.name)[0]["results"][-1]
        is_last_of_epoch = entry.global_step % STEPS == 0  # its evaluation is that of the epoch
        assert result["global_step"] == entry.global_step or (
            is_last_of_epoch and entry.name == "previous"
        )


# Which


def test_nan_and_infinite_scores_are_never_best():
    script = (math.nan, 0.5, math.nan, 0.7, math.inf)

    runner = trained(scores=script, max_epochs=5, monitor_mode="max")

    assert steps(runner)["best"] == 4 * STEPS
    assert runner.best_score == pytest.approx(0.7)


def test_without_a_finite_score_there_is_no_best():
    assert "best" not in names(trained(scores=(math.nan, math.inf)))


def test_of_equal_scores_the_earlier_is_best():
    assert steps(trained(scores=(0.5, 0.5, 0.5), max_epochs=3))["best"] == STEPS


def test_a_second_one_follows_another_value_and_writes_its_own_best_alone():
    high = ModelCheckpoint(name="high", monitor="val/loss", mode="max")

    runner = trained([ModelCheckpoint(), high], scores=(0.3, 0.9, 0.1), max_epochs=3)

    found = steps(runner)
    assert (found["best"], found["best-high"], found["latest"]) == (18, 12, 18)
    assert high.best_score == pytest.approx(0.9)


def test_a_monitor_that_does_not_exist_is_an_error_with_the_names():
    with pytest.raises(MetricError, match="did you mean 'val/loss'"):
        trained([ModelCheckpoint(name="typo", monitor="val/los", mode="min")])


def best_of(script: Sequence[float], k: int, mode: str) -> list[int]:
    finite = [(score, epoch) for epoch, score in enumerate(script, 1) if math.isfinite(score)]
    sign = -1 if mode == "max" else 1
    return sorted(epoch for _, epoch in sorted(finite, key=lambda p: (sign * p[0], p[1]))[:k])


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_the_best_and_the_last_for_any_scores_and_restarts(seed: int):
    chance = random.Random(seed)
    script = [chance.choice([math.nan, round(chance.random(), 1)]) for _ in range(10)]
    mode, k, last = chance.choice(["min", "max"]), chance.choice([1, 2, 3]), chance.choice([1, 2])
    every = chance.choice([1, 2])
    options = {"scores": tuple(script), "max_epochs": 10, "monitor_mode": mode}

    def checkpoint() -> ModelCheckpoint:
        return ModelCheckpoint(save_top_k=k, keep_every=f"{every} epochs", keep_last=last)

    first = interrupted(STEPS * chance.randrange(2, 9) + 2, [checkpoint()], **options)
    runner = trained([checkpoint()], resume=str(first.dir), **options)

    regular = [epoch for epoch in range(1, 11) if epoch % every == 0][-last:]
    best = best_of(script, k, mode)
    expected = {*regular, *(best if k > 1 else [])}
    assert names(runner) - {"latest", "previous", "best"} == {f"epoch-{e}" for e in expected}
    assert steps(runner)["latest"] == 10 * STEPS
    top = best_of(script, 1, mode)
    assert steps(runner).get("best") == (top[0] * STEPS if top else None)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_second_one_keeps_a_top_k_and_a_series_of_its_own(mode: Any):
    script = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.55, 0.45)
    options = {"scores": script, "max_epochs": 8, "monitor": "val/loss"}

    def checkpoints() -> list[Callback]:
        return [
            ModelCheckpoint(save_top_k=2),
            ModelCheckpoint(
                name="own", mode=mode, save_top_k=3, keep_every="2 epochs", keep_last=2
            ),
        ]

    first = interrupted(5 * STEPS + 2, checkpoints(), **options)
    runner = trained(checkpoints(), resume=str(first.dir), **options)

    own, top = best_of(script, 3, mode), best_of(script, 2, "min")
    assert names(runner) - {"latest", "previous", "best", "best-own"} == (
        {f"own-epoch-{epoch}" for epoch in {*own, 6, 8}} | {f"epoch-{epoch}" for epoch in top}
    )
    assert steps(runner)["best-own"] == best_of(script, 1, mode)[0] * STEPS
    assert steps(runner)["best"] == best_of(script, 1, "min")[0] * STEPS


@pytest.mark.parametrize(("name", "prefix"), [("model_checkpoint", ""), ("own", "own-")])
def test_a_top_k_of_minus_one_keeps_every_evaluation(name: str, prefix: str):
    script = (0.5, 0.7, float("nan"), 0.6)
    checkpoint = ModelCheckpoint(
        name=name, save_top_k=-1, keep_every="3 epochs", keep_last=1, monitor="val/loss"
    )

    runner = trained([checkpoint], scores=script, max_epochs=4)

    fixed = {"latest", "previous", "best", "best-own"}
    assert names(runner) - fixed == {f"{prefix}epoch-{epoch}" for epoch in (1, 2, 3, 4)}
    assert steps(runner)["best" if not prefix else "best-own"] == STEPS


def test_a_checkpoint_that_was_saved_by_hand_is_never_removed():
    by_hand = LambdaCallback(
        name="hand",
        on_step=lambda r: r.save_checkpoint("step-3") if r.global_step == 3 else None,
    )

    runner = trained([ModelCheckpoint(keep_every="1 epoch", keep_last=1, save_top_k=2), by_hand])

    assert "step-3" in names(runner)


def test_what_a_user_deletes_is_no_error():
    def delete(runner: Any) -> None:
        if runner.epoch == 2:
            for path in runner.checkpoint_dir.glob("*.pth"):
                path.unlink()

    hand = LambdaCallback(name="hand", on_epoch_start=delete)

    runner = trained([ModelCheckpoint(keep_every="1 epoch", keep_last=2), hand], max_epochs=3)

    assert steps(runner)["latest"] == 3 * STEPS


def test_weights_alone_are_smaller_and_never_what_a_run_goes_on_from():
    options = {"scores": (0.5, 0.4, 0.3), "max_epochs": 3, "evaluate_every": "3 steps"}
    checkpoint = ModelCheckpoint(save_weights_only=True, keep_every="1 epoch")
    first = interrupted(STEPS + 5, [checkpoint], **options)

    best = read_checkpoint(first.checkpoint_dir / "best.pth")
    assert set(best) == {"format", "run", "model", "config"}
    assert steps(first)["best"] > steps(first)["latest"]

    again = trained([ModelCheckpoint(save_weights_only=True)], resume=str(first.dir), **options)

    assert again.resume_report is not None
    assert again.resume_report["global_step"] == STEPS
    assert again.resume_report["checkpoint"] == "latest.pth"


def test_nothing_is_saved_without_a_directory():
    runner = make_runner()
    runner.callbacks.remove("run_directory")

    runner.train()

    assert list(Path().rglob("*.pth")) == []


def test_a_callback_in_a_second_runner_starts_anew():
    checkpoint = ModelCheckpoint()
    trained([checkpoint], scores=(0.1, 0.2))

    second = trained([checkpoint], scores=(0.9, 0.8), seed=5)

    assert steps(second)["best"] == 2 * STEPS


def test_one_that_is_added_on_resume_saves_no_weights_for_a_score_of_before():
    script = (0.9, 0.1, 0.5)
    first = interrupted(STEPS + 2, scores=script, max_epochs=3)

    high = ModelCheckpoint("1 step", name="high", monitor="val/loss", mode="max")
    again = trained([ModelCheckpoint(), high], scores=script, max_epochs=3, resume=str(first.dir))

    assert "best-high" not in names(again)
    assert high.best_score == pytest.approx(0.9)


# Exceptions


def test_a_failing_run_leaves_nothing_unless_asked_and_never_over_latest():
    plain = interrupted(9)
    asked = interrupted(9, [ModelCheckpoint(save_on_exception=True)])

    path = asked.dir / "crash" / "step-9.pth"
    assert not (plain.dir / "crash").exists()
    assert steps(asked)["latest"] == STEPS
    assert read_checkpoint(path)["run"]["crash"] == "RuntimeError: boom"

    again = trained(resume=str(asked.dir))
    assert again.resume_report is not None
    assert again.resume_report["global_step"] == STEPS


def failing_in_parallel(folder: Path, failure: Callable[..., None], rank: int) -> None:
    def note(runner: Any) -> None:
        path = folder / f"rank-{runner.rank}-step-{runner.global_step}.pt"
        torch.save(runner.unwrapped_model.state_dict(), path)

    checkpoint = ModelCheckpoint("2 steps", save_on_exception=True)
    trap = At("on_before_step", failure, rank=rank, step=3)
    watch = LambdaCallback(name="note", on_step=note)
    Regression(folder, callbacks=[checkpoint, watch, trap], default_callbacks=True).train()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("failure", "rank", "cause"),
    [
        (fail, 0, "ZeroDivisionError: on purpose, on rank 0"),
        (die, 1, "process has gone|Connection"),
        (fail, 1, "on rank 1|process has gone|Connection"),
    ],
    ids=["rank 0 fails", "rank 1 dies", "rank 1 fails"],
)
def test_of_several_processes_the_main_one_leaves_what_it_has(
    failure: Callable[..., None], rank: int, cause: str, tmp_path: Path
):
    ended = together(2, failing_in_parallel, tmp_path, failure, rank, folder=tmp_path, timeout=40)

    assert 0 not in ended.codes
    (path,) = tmp_path.glob("experiments/*/crash/step-*.pth")
    left = read_checkpoint(path)
    step = left["data"]["global_step"]
    assert path.stem == f"step-{step}"
    assert re.search(cause, left["run"]["crash"])
    (saved,) = tmp_path.glob("experiments/*/checkpoints/latest.pth")
    assert read_checkpoint(saved)["data"]["global_step"] == 2
    notes = [*tmp_path.glob(f"rank-*-{path.stem}.pt")]
    assert notes
    for noted in notes:
        for name, weight in torch.load(noted).items():
            assert torch.equal(weight, left["model"][name])

    runner = Regression(tmp_path, {"elastic": True})
    runner.load_checkpoint(path)
    assert runner.global_step == step
    assert runner.resume_report is not None
    assert "in the middle of a step that failed" in str(runner.resume_report["reasons"])


class AsItIs(Accelerator):  # type: ignore[misc]  # Accelerate has no types
    def prepare_model(self, model: nn.Module, *args: Any, **options: Any) -> nn.Module:
        self._models.append(model)
        return model


class Sharded(Regression):
    def make_accelerator(self) -> Accelerator:
        return AsItIs(cpu=True)


def sharded_network() -> nn.Module:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


def failing_sharded(folder: Path) -> None:
    callbacks = [ModelCheckpoint(save_on_exception=True), At("on_before_step", fail, rank=0)]
    Sharded(folder, model=sharded_network, callbacks=callbacks, default_callbacks=True).train()


@pytest.mark.distributed
def test_where_each_process_holds_a_part_nothing_is_left_and_that_is_said(tmp_path: Path):
    ended = together(2, failing_sharded, tmp_path, folder=tmp_path, timeout=40)

    assert 0 not in ended.codes
    assert list(tmp_path.glob("experiments/*/crash")) == []
    assert ended.output.count("no crash/step-3.pth is written: each process holds a part") == 1
    assert "ZeroDivisionError: on purpose, on rank 0" in ended.output


def test_a_failure_that_cannot_be_saved_hides_no_error():
    def block(runner: Any) -> None:
        (runner.dir / "crash").write_text("in the way")

    block_it = LambdaCallback(name="block", on_train_start=block)

    runner = interrupted(9, [ModelCheckpoint(save_on_exception=True), block_it])

    assert "no crash/step-9.pth is written: " in log(runner)


# Errors


def test_a_directory_that_cannot_be_written_fails_before_the_first_step():
    taken: list[int] = []
    watch = LambdaCallback(name="watch", on_step=lambda r: taken.append(r.global_step))

    def block(runner: Any) -> None:
        (runner.dir / "checkpoints").write_text("in the way")

    block_it = LambdaCallback(name="block", on_setup=block)

    with pytest.raises(CheckpointError, match="checkpoints cannot be saved") as caught:
        trained([watch, block_it])

    assert caught.value.errno == errno.ENOTDIR
    assert taken == []


def test_a_save_that_fails_ends_the_run_and_keeps_what_was_there():
    def break_disk(runner: Any) -> None:
        if runner.epoch == 1:
            set_failpoints("checkpoint.before_write=raise:28")

    runner = make_runner([LambdaCallback(name="b", on_epoch_start=break_disk)], max_epochs=3)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        runner.train()

    assert caught.value.errno == errno.ENOSPC
    assert steps(runner)["latest"] == STEPS
    set_failpoints("")
    assert weights(trained(resume=str(runner.dir), max_epochs=3)) == weights(trained(max_epochs=3))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_save_that_fails_can_be_a_warning_until_the_run_ends(asynchronous: bool):
    set_failpoints("checkpoint.before_open=raise:28@2")
    checkpoint = ModelCheckpoint(on_save_error="warn", asynchronous=asynchronous)
    runner = make_runner([checkpoint], max_epochs=4)

    with pytest.raises(CheckpointError, match="1 saves failed in this run"):
        runner.train()

    assert "save failed (1 so far)" in log(runner)
    assert runner.global_step == steps(runner)["latest"] == 4 * STEPS


def test_a_checkpoint_directory_that_vanishes_is_made_again_and_a_run_that_vanishes_is_an_error():
    def vanish(what: str) -> Any:
        def act(runner: Any) -> None:
            if runner.epoch == 1:
                if what == "project":  # another folder takes its place
                    runner.dir.parent.rename("elsewhere")
                    runner.dir.parent.mkdir()
                else:
                    shutil.rmtree(runner.checkpoint_dir if what == "checkpoints" else runner.dir)

        return LambdaCallback(name="vanish", on_epoch_start=act)

    kept = trained([vanish("checkpoints")], max_epochs=3)
    assert steps(kept)["latest"] == 3 * STEPS

    for what in ("run", "project"):
        with pytest.raises(CheckpointError, match="No such file") as caught:
            trained([vanish(what)], max_epochs=3)
        assert caught.value.errno == errno.ENOENT
    assert list(Path("experiments").glob("danling-*")) == []


REAL = """
    import os, subprocess, sys
    from pathlib import Path
    from danling.callbacks import LambdaCallback
    from danling.errors import CheckpointError
    from tests.support.resume_runs import make_runner

    def mount(*arguments):
        if subprocess.run(["mount", *arguments]).returncode:
            sys.exit("mount failed")

    root = Path("experiments").resolve()
    root.mkdir()
    mount("-t", "tmpfs", "-o", "size=600k", "none", str(root))
    def read_only(folder):  # files of the run are open: only a mount of its own can be
        mount("--bind", folder, folder)
        mount("-o", "remount,bind,ro", folder)
    def fault(runner):
        if runner.epoch == 1:
            {fault}
    runner = make_runner([LambdaCallback(name="fault", on_epoch_start=fault)], max_epochs=3)
    try:
        runner.train()
    except CheckpointError as error:
        print("errno", error.errno)
    {repair}
    print(sorted(os.listdir(runner.checkpoint_dir)))
    again = make_runner(max_epochs=3, resume=str(runner.dir))
    again.train()
    print(again.resume_report["global_step"], again.global_step)
"""


@pytest.mark.parametrize(
    ("fault", "repair", "number"),
    [
        (
            'os.system(f"dd if=/dev/zero of={root}/big bs=1k 2>/dev/null")',
            '(root / "big").unlink()',
            errno.ENOSPC,
        ),
        (
            "read_only(str(runner.checkpoint_dir))",
            'os.system(f"umount {runner.checkpoint_dir}")',
            errno.EROFS,
        ),
    ],
    ids=["full", "read-only"],
)
def test_a_disk_that_fails_in_the_middle_of_a_run_costs_one_epoch(
    fault: str, repair: str, number: int
):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no private mount namespaces here")
    script = textwrap.dedent(REAL).format(fault=fault, repair=repair)

    result = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", script], capture_output=True, text=True
    )

    if "mount failed" in result.stderr:
        pytest.skip("nothing may be mounted here")
    lines = result.stdout.splitlines()
    assert lines[0] == f"errno {number}", result.stderr
    assert ".tmp" not in lines[1]
    assert lines[2] == f"{STEPS} {3 * STEPS}"


# In the background


def test_a_background_save_is_told_on_the_main_thread_and_leaves_no_thread():
    told: list[tuple[str, str]] = []
    watch = LambdaCallback(
        name="watch",
        on_save=lambda r, path: told.append((path.name, threading.current_thread().name)),
    )

    runner = trained([ModelCheckpoint("2 steps", asynchronous=True), watch])

    assert {name for _, name in told} == {threading.main_thread().name}
    assert len(told) == 8  # 2, 4, ..., 12, the best of the first epoch, the end of the last
    assert not [t for t in threading.enumerate() if t.name == "danling-writer"]
    assert steps(runner)["latest"] == 2 * STEPS
    assert weights(runner) == weights(trained())


def test_a_background_save_is_of_the_step_it_names():
    seen: dict[int, dict[str, list[Any]]] = {}
    watch = LambdaCallback(name="watch", on_step=lambda r: seen.update({r.global_step: weights(r)}))

    runner = trained([ModelCheckpoint(asynchronous=True, keep_every="1 step"), watch])

    for step in range(1, 2 * STEPS):
        state = runner.checkpoints.load(f"step-{step}")[0]["model"]
        assert {name: value.tolist() for name, value in state.items()} == seen[step]


def test_an_error_in_the_background_is_raised_at_the_next_step():
    set_failpoints("checkpoint.after_open=raise:5")
    runner = make_runner([ModelCheckpoint("2 steps", asynchronous=True)])

    def wait(r: Any) -> None:
        while r.global_step == 2 and r.callbacks["model_checkpoint"]._saver.is_busy:
            threading.Event().wait(0.01)

    runner.callbacks.append(LambdaCallback(name="w", on_fetch_start=wait))
    with pytest.raises(CheckpointError) as caught:
        runner.train()

    assert caught.value.errno == errno.EIO
    assert runner.global_step == 3
    assert not [t for t in threading.enumerate() if t.name == "danling-writer"]


def test_a_run_that_fails_ends_its_background_save_first():
    set_failpoints("checkpoint.after_write=sleep:0.3")

    runner = interrupted(STEPS + 1, [ModelCheckpoint(asynchronous=True)])

    assert steps(runner)["latest"] == STEPS


def die_in_a_background_save(place: str) -> None:
    torch.set_num_threads(1)
    set_failpoints(f"checkpoint.{place}=kill@2")
    make_runner([ModelCheckpoint("2 steps", asynchronous=True)]).train()


@pytest.mark.parametrize("place", ["after_write", "after_replace"])
def test_a_run_that_dies_in_a_background_save_goes_on_exactly(place: str):
    assert in_process(die_in_a_background_save, place) == -signal.SIGKILL

    again = trained([ModelCheckpoint("2 steps")], resume="auto")

    assert again.resume_report is not None
    assert again.resume_report["global_step"] in (2, 4)
    assert not list(again.checkpoint_dir.glob(".tmp.*"))
    assert weights(again) == weights(trained())


class TestContract(CallbackContract):
    default_callbacks = True
    keeps_times = True  # when was saved last: a period may be one of seconds

    def make(self):
        return ModelCheckpoint("2 steps", save_top_k=2)
