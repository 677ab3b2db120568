from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from danling.callback import Callback
from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.preemption import Preemption
from danling.callbacks.run_directory import RunDirectory
from danling.callbacks.run_record import RunRecord
from danling.errors import CallbackError
from danling.testing import CallbackContract
from tests.support.clock import SetClock

SCRIPT = """
import sys, time, torch, danling as dl
from danling.callbacks import LambdaCallback
data = torch.utils.data.TensorDataset(torch.randn(40, 4), torch.randn(40, 1))
model = torch.nn.Linear(4, 1)
def tell(runner):
    time.sleep(0.01)
    if runner.global_step == 3:
        print("ready", flush=True)
runner = dl.AccelerateRunner(
    dict(seed=0, max_epochs=100, dataloader=dict(batch_size=4, num_workers={workers})),
    model=model, criterion=torch.nn.MSELoss(), optimizer=torch.optim.SGD(model.parameters(), 0.01),
    datasets=dict(train=data, val=data), callbacks=[LambdaCallback(on_step=tell)],
)
runner.train()
print("after the training", flush=True)
"""


def interrupted(directory: Path, *signals: int, workers: int = 0) -> tuple[int, str, str]:
    """Exit code and output of a training that gets signals in its third step."""
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(workers=workers)],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    for number in signals:
        os.killpg(child.pid, number)  # as a terminal and most schedulers do
        time.sleep(0.005)
    out, err = child.communicate(timeout=60)
    return child.returncode, out, err


def status_of_the_run(directory: Path) -> str:
    (record,) = directory.glob("experiments/*/run.json")
    return str(json.loads(record.read_text())["status"])


THINNED = [
    pytest.param(signal.SIGTERM, 2),
    pytest.param(signal.SIGUSR1, 2, marks=pytest.mark.exhaustive),
    pytest.param(signal.SIGTERM, 0, marks=pytest.mark.exhaustive),
    pytest.param(signal.SIGUSR1, 0, marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize(("number", "workers"), THINNED)
def test_a_preempted_run_saves_and_leaves(tmp_path: Path, number: int, workers: int):
    code, out, err = interrupted(tmp_path, number, workers=workers)

    assert code == 128 + number, err
    assert "after the training" not in out
    assert status_of_the_run(tmp_path) == "preempted"
    assert len(list(tmp_path.glob("experiments/*/checkpoints/latest.pth"))) == 1


def test_ctrl_c_saves_and_interrupts_the_script(tmp_path: Path):
    code, out, err = interrupted(tmp_path, signal.SIGINT)

    assert code in (-signal.SIGINT, 130)
    assert "Ctrl-C again stops at once" in err
    assert "KeyboardInterrupt" in err
    assert "after the training" not in out
    assert status_of_the_run(tmp_path) == "interrupted"
    assert len(list(tmp_path.glob("experiments/*/checkpoints/latest.pth"))) == 1


def test_a_script_ends_although_its_workers_live_on():
    options = "num_workers=1, persistent_workers=True"
    script = SCRIPT.format(workers=0).replace("num_workers=0", options)
    script = script.replace("max_epochs=100", "max_epochs=1")

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert "after the training" in done.stdout


def kill_at(step: int, number: int) -> LambdaCallback:
    def kill(runner: Any) -> None:
        if runner.global_step == step:
            os.kill(os.getpid(), number)

    return LambdaCallback(name="kill", on_step=kill)


def test_the_training_ends_after_the_step_of_the_signal(make_runner):
    runner = make_runner([Preemption(), kill_at(4, signal.SIGTERM)], max_epochs=9)

    with pytest.raises(SystemExit) as exit_code:
        runner.train()

    assert exit_code.value.code == 143
    assert 4 <= runner.global_step <= 5
    assert runner.status == "preempted"


def test_a_second_ctrl_c_stops_at_once(make_runner, capfd: pytest.CaptureFixture[str]):
    went_on: list[int] = []

    def kill(runner):
        os.kill(os.getpid(), signal.SIGINT)
        went_on.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        went_on.append(2)

    runner = make_runner([Preemption(), LambdaCallback(on_step=kill)])

    with pytest.raises(KeyboardInterrupt):
        runner.train()

    assert went_on == [1]
    assert capfd.readouterr().err.count("Ctrl-C again stops at once") == 1
    assert runner.status == "interrupted"


def press(times: int) -> Any:
    """What presses Ctrl-C so often, whatever comes of it."""

    def kill(runner: Any, *arguments: Any) -> None:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)

    return kill


@pytest.mark.parametrize("in_step", [1, 2])
def test_no_press_of_ctrl_c_keeps_a_run_from_closing(make_runner, in_step: int):
    """One press, or two, in a step, and one more whenever a hook of the closing returns."""
    pressed: list[str] = []

    def press_between_hooks(frame: FrameType, event: str, argument: object) -> None:
        caller = frame.f_back
        if event == "return" and caller is not None and caller.f_code.co_name == "_unwind":
            pressed.append(frame.f_code.co_name)
            os.kill(os.getpid(), signal.SIGINT)

    last = LambdaCallback(name="last", on_exception=press(2), on_teardown=press(2))
    first = LambdaCallback(name="first", on_step=press(in_step))
    runner = make_runner([RunDirectory(), RunRecord(), Preemption(), first, last])
    sys.setprofile(press_between_hooks)
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    finally:
        sys.setprofile(None)

    record = json.loads((runner.dir / "run.json").read_text())
    assert len(pressed) > 2
    assert record["status"] == "interrupted"
    assert record["launches"][-1]["end_time"] is not None


def test_a_closing_that_hangs_is_interrupted(make_runner, monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr("danling.callbacks.preemption.time.monotonic", lambda: clock[0])
    interrupted: list[bool] = []

    def hang(runner: Any) -> None:
        try:
            press(1)(runner)
            clock[0] += 11
            press(1)(runner)
        except KeyboardInterrupt:
            interrupted.append(True)
            raise

    at = LambdaCallback(name="at", on_step=press(1))
    with pytest.raises(KeyboardInterrupt):
        make_runner([Preemption(), at, LambdaCallback(name="last", on_teardown=hang)]).train()

    assert interrupted == [True]


@pytest.mark.parametrize("attempt", [1, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_after_ten_presses_of_ctrl_c_the_record_says_interrupted(tmp_path: Path, attempt: int):
    for number in range(attempt):
        folder = tmp_path / str(number)
        folder.mkdir()
        code, _, err = interrupted(folder, *[signal.SIGINT] * 10)

        assert code in (-signal.SIGINT, 130), err
        assert status_of_the_run(folder) == "interrupted"


def test_a_signal_during_an_evaluation_is_not_lost(make_runner):
    def kill(runner, batch, output):
        os.kill(os.getpid(), signal.SIGTERM)

    runner = make_runner([Preemption(), LambdaCallback(on_evaluate_batch_end=kill)], max_epochs=9)

    with pytest.raises(SystemExit):
        runner.train()

    assert runner.epoch <= 1


def test_a_handler_that_was_there_is_called_and_put_back(make_runner):
    heard: list[int] = []

    def own(number, frame):
        heard.append(number)

    before = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(SystemExit):
            make_runner([Preemption(), kill_at(2, signal.SIGTERM)]).train()
        after = signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert heard == [signal.SIGTERM]
    assert after is own


def test_handlers_are_put_back_after_an_exception(make_runner):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]

    def fail(runner):
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        make_runner([Preemption(), LambdaCallback(on_step=fail)]).train()

    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_signal_that_is_ignored_stays_ignored(make_runner):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        runner = make_runner([Preemption(), kill_at(2, signal.SIGINT)])
        runner.train()
    finally:
        signal.signal(signal.SIGINT, before)

    assert runner.status == "finished"


def test_a_handler_that_was_installed_meanwhile_is_left(make_runner):
    def own(number, frame):
        """Of another library."""

    before = signal.getsignal(signal.SIGUSR1)
    try:

        def put(runner: Any) -> None:
            signal.signal(signal.SIGUSR1, own)

        install = LambdaCallback(on_train_start=put)
        make_runner([Preemption(), install]).train()
        after = signal.getsignal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert after is own


def test_another_thread_trains_without_handlers(make_runner):
    runner = make_runner([Preemption()])
    thread = threading.Thread(target=runner.train)

    thread.start()
    thread.join()

    assert runner.status == "finished"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_child_process_dies_of_a_signal_as_it_did_before(make_runner, number: int):
    codes: list[int] = []

    def fork(runner):
        if runner.global_step != 2:
            return
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            except KeyboardInterrupt:
                os._exit(77)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    runner = make_runner([Preemption(), LambdaCallback(on_step=fork)])
    runner.train()

    assert codes == [77 if number == signal.SIGINT else -number]
    assert runner.status == "finished"


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        (90, 90),
        (1.5, 1.5),
        ("1h30m", 5400),
        ("2d 1h", 176400),
        ("45 min", 2700),
        ("1.5h", 5400),
        (timedelta(minutes=2), 120),
    ],
)
def test_a_duration_is_seconds_or_a_timedelta_or_text(duration: Any, seconds: float):
    assert Preemption(max_time=duration).max_time == seconds


@pytest.mark.parametrize("duration", ["soon", "1h30", "", 0, -5, float("nan"), True, "5 weeks"])
def test_a_duration_that_cannot_be_meant_is_an_error_at_once(duration: Any):
    with pytest.raises(CallbackError, match="a timedelta, or '1h30m'"):
        Preemption(max_time=duration)


def budgeted(make_runner, clock: SetClock, *callbacks: Callback) -> Any:
    """A training that its time budget stops; each step takes 10 s but where a test says so."""
    runner = make_runner(callbacks, max_epochs=1000, poll_interval=1)
    runner.train()
    assert runner.status == "stopped"
    assert runner.stop_reason.startswith("max_time of")
    return runner


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    return SetClock(monkeypatch)


def test_the_training_stops_before_its_time_is_up(make_runner, clock: SetClock):
    runner = budgeted(make_runner, clock, Preemption(max_time=500), clock.each_step_takes(10))

    assert runner.stop_reason == "max_time of 500 s is reached"
    # a save is taken for 5 % of the budget and half of that again, and the next step for 10 s
    assert 1.5 * 25 < 500 - clock.passed <= 1.5 * 25 + 10


def test_a_save_that_was_measured_takes_the_place_of_the_guess(make_runner, clock: SetClock):
    class SlowSave(Preemption):
        """The hooks as a save of 100 s would have them fired."""

        def on_checkpoint(self, runner: Any) -> None:
            super().on_checkpoint(runner)
            if runner.global_step == 2:
                clock.pass_time(100)
                super().on_save(runner, Path("latest.pth"))

    budgeted(make_runner, clock, SlowSave(max_time=1000), clock.each_step_takes(10))

    assert clock.passed == 1000 - 1.5 * 100 - 10


@pytest.mark.parametrize("long", [100, 300])
def test_the_longest_step_counts_however_long_ago_it_was(make_runner, clock: SetClock, long: int):
    steps = clock.each_step_takes(10, s5=long)
    budgeted(make_runner, clock, Preemption(max_time=2000), steps)

    left = 2000 - clock.passed
    assert 1.5 * 60 + long - 10 < left <= 1.5 * 60 + long


def test_the_end_of_a_slurm_job_preempts(
    make_runner, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 2000))

    runner = make_runner([Preemption(), clock.each_step_takes(10)], max_epochs=1000)
    with pytest.raises(SystemExit):
        runner.train()

    assert 1800 < clock.passed < 2000
    assert runner.status == "preempted"


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return Preemption()
