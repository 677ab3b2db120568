"""Tools for the tests of callbacks: a recorder of hooks, a tiny runner, a contract."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from danling.callback import HOOKS, Callback, Priority
from danling.errors import CallbackError, did_you_mean
from danling.runner.accelerate import AccelerateRunner
from danling.seed import rng_state

__all__ = ["CallbackContract", "Event", "RecordingCallback", "TinyRunner"]


PAIRS: Final = {
    "on_teardown": "on_setup",
    "on_train_end": "on_train_start",
    "on_epoch_end": "on_epoch_start",
    "on_fetch_end": "on_fetch_start",
    "on_batch_end": "on_batch_start",
    "on_step": "on_before_step",
    "on_evaluate_end": "on_evaluate_start",
    "on_evaluate_batch_end": "on_evaluate_batch_start",
    "on_predict_end": "on_predict_start",
}
"""The hooks that end something, and those that began it."""


class Event(NamedTuple):
    """A hook that fired, and the counters at that moment."""

    hook: str
    epoch: int
    batch_index: int
    global_step: int


class RecordingCallback(Callback):
    """Records which hooks fire, in which order, and what the counters are then.

    Args:
        hooks: The hooks to record; all of them if none is given.
        name: The name under which it is attached, where a runner has several.

    Attributes:
        events: One `Event` per hook that fired.

    Raises:
        CallbackError: There is no such hook.

    Example:
        >>> recording = RecordingCallback("on_epoch_start", "on_epoch_end")
        >>> TinyRunner({"max_epochs": 1}, callbacks=[recording]).train()
        >>> recording.events[1]
        Event(hook='on_epoch_end', epoch=1, batch_index=0, global_step=4)
        >>> recording.hooks, recording.is_paired
        (['on_epoch_start', 'on_epoch_end'], True)
    """

    name = "recording"

    def __init__(self, *hooks: str, name: str = "recording") -> None:
        self.name = name
        self.events: list[Event] = []
        for hook in hooks or HOOKS:
            if hook not in HOOKS:
                raise CallbackError(f"{hook!r} is not a hook: {did_you_mean(hook, HOOKS)}")
            setattr(self, hook, partial(self._record, hook))

    @property
    def hooks(self) -> list[str]:
        """The names of the hooks that fired."""
        return [event.hook for event in self.events]

    @property
    def is_paired(self) -> bool:
        """Whether every start has its end, and what began last ended first."""
        begun: list[str] = []
        for hook in self.hooks:
            if hook in PAIRS.values():
                begun.append(hook)
            elif hook in PAIRS and (not begun or begun.pop() != PAIRS[hook]):
                return False
        return not begun

    def count(self, hook: str) -> int:
        """The number of times that a hook fired."""
        return self.hooks.count(hook)

    def _record(self, hook: str, runner: AccelerateRunner, *_: Any) -> None:
        self.events.append(Event(hook, runner.epoch, runner.batch_index, runner.global_step))


class TinyRunner(AccelerateRunner):
    """A linear classifier of 16 random samples per split: it trains in milliseconds.

    It has the splits `train`, `val` and `test`, the metric `accuracy`, and, unless `config` says
    otherwise, the seed 0, batches of 4 and 2 epochs. Data and weights depend on nothing but the
    seed.

    Args:
        config: Keys besides those, or instead of them.
        samples: The number of samples of each split.
        callbacks: The callbacks to test.
        default_callbacks: Whether the default ones are there: without them nothing is written.

    Example:
        >>> runner = TinyRunner({"max_steps": 3})
        >>> runner.train()
        >>> runner.global_step, runner.epoch_complete
        (3, False)
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        samples: int = 16,
        callbacks: Iterable[Callback] = (),
        default_callbacks: bool = False,
    ) -> None:
        settings = {"seed": 0, "max_epochs": 2, "dataloader": {"batch_size": 4}}
        super().__init__(
            {**settings, **(config or {})},
            callbacks=callbacks,
            default_callbacks=default_callbacks,
            datasets={split: tiny_data(samples, split) for split in ("train", "val", "test")},
            criterion=nn.functional.cross_entropy,
            metrics={"accuracy": accuracy},
        )
        self.model = nn.Linear(4, 3)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)


def tiny_data(samples: int, split: str) -> TensorDataset:
    """Random points in four dimensions, labelled by which of the first three is largest."""
    generator = torch.Generator().manual_seed(sum(split.encode()))
    points = torch.randn(samples, 4, generator=generator)
    return TensorDataset(points, points[:, :3].argmax(1))


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """The share of samples whose largest output is at the target."""
    return (output.argmax(1) == target).float().mean()


class CallbackContract:
    """The rules that every callback must keep, as tests that a class of yours inherits.

    Override `make`. What a callback is meant to do besides is said by the attributes.

    Attributes:
        default_callbacks: Whether it needs the default callbacks, as one that writes files does.
        changes_training: Whether a training with it ends with other weights than one without.
        syncs_every_step: Whether it may wait for the device on every step.
        needs_one_process: Whether it refuses several processes, with a `CallbackError`.
        keeps_times: Whether its state has seconds in it, which no two trainings have in common.
        runner_class: The runner that trains, where the callback needs another model or other data.

    Example:
        >>> class TestRecordingCallback(CallbackContract):  # pytest collects it by its name
        ...     def make(self):
        ...         return RecordingCallback()
        >>> TestRecordingCallback().test_two_instances_are_independent(Path("."))
    """

    default_callbacks = False
    changes_training = False
    syncs_every_step = False
    needs_one_process = False
    keeps_times = False
    runner_class: type[TinyRunner] = TinyRunner

    def make(self) -> Callback:
        """A new callback, as a user would make it."""
        raise NotImplementedError(f"{type(self).__name__}.make() must return the callback to test")

    def runner(self, folder: Path, *callbacks: Callback, **config: Any) -> TinyRunner:
        """A runner that writes into a folder, if it writes at all."""
        settings = {"project_root": str(folder), "log_interval": 1, **config}
        return self.runner_class(
            settings, callbacks=callbacks, default_callbacks=self.default_callbacks
        )

    def test_name_is_the_same_for_every_instance(self) -> None:
        """State in checkpoints is found by it."""
        assert self.make().name == self.make().name

    def test_state_round_trips_through_a_checkpoint(self, tmp_path: Path) -> None:
        """The state of `state_dict` is plain, and a new instance that loads it gives it back."""
        callback, successor = self.make(), self.make()
        self.runner(tmp_path, callback).train()
        stored = io.BytesIO()
        torch.save(callback.state_dict(), stored)
        stored.seek(0)

        successor.load_state_dict(torch.load(stored, weights_only=True))

        assert is_equal(successor.state_dict(), callback.state_dict())

    def test_a_killed_run_goes_on_exactly(self, tmp_path: Path) -> None:
        """A run that SIGKILL ends within an epoch, and that goes on, ends as if nothing was."""
        whole, lasting = self.make(), self.make()
        undisturbed = self._lasting(tmp_path / "whole", whole)
        undisturbed.train()

        code = in_child(lambda: self._lasting(tmp_path, self.make(), kill_at=6).train())
        resumed = self._lasting(tmp_path, lasting)
        resumed.train()

        if undisturbed.global_step >= 6:  # else it ended before
            assert code == -signal.SIGKILL
            assert resumed.resume_report is not None
            assert resumed.resume_report["exact"], resumed.resume_report["reasons"]
        assert is_equal(outcome(resumed), outcome(undisturbed))
        assert self.keeps_times or is_equal(lasting.state_dict(), whole.state_dict())

    def _lasting(self, folder: Path, callback: Callback, kill_at: int | None = None) -> TinyRunner:
        """A runner that saves every step, and may be killed."""
        config = {"project_root": str(folder), "log_interval": 1, "resume": "auto"}
        return self.runner_class(
            config, callbacks=[callback, Lasting(kill_at)], default_callbacks=True
        )

    def test_two_instances_are_independent(self, tmp_path: Path) -> None:
        """One instance never changes another: no state is on the class."""
        idle, busy = self.make(), self.make()
        before = idle.state_dict()

        self.runner(tmp_path, busy).train()

        assert is_equal(idle.state_dict(), before)
        assert is_equal(self.make().state_dict(), before)

    def test_works_without_batches(self, tmp_path: Path) -> None:
        """An epoch in which nothing is trained, and a training that is over at its start."""
        with self.runner(tmp_path, self.make()) as runner:
            for _ in runner.epochs():
                pass
        over = self.runner(tmp_path, self.make())
        over.config.max_epochs = 0
        over.train()

        assert (runner.epoch, runner.global_step, over.epoch) == (2, 0, 0)

    def test_works_under_accumulation(self, tmp_path: Path) -> None:
        """An optimizer step of several batches is one step."""
        accelerate = {"gradient_accumulation_steps": 3}
        runner = self.runner(tmp_path, self.make(), accelerate=accelerate)
        runner.train()

        assert runner.global_step > 0
        assert self.changes_training or runner.global_step == 4

    def test_works_in_two_processes(self, tmp_path: Path) -> None:
        """Two processes that train together end at the same step with the same weights.

        They are real ones, forked here, that talk over gloo.
        """

        def train() -> Any:
            runner = self.runner(tmp_path, self.make())
            try:
                runner.train()
            except CallbackError:
                if self.needs_one_process:
                    return "refused"
                raise
            return outcome(runner)

        first, second = in_two_processes(train, tmp_path)

        assert is_equal(first, second)
        assert (first == "refused") is self.needs_one_process

    def test_hooks_of_others_stay_paired(self, tmp_path: Path) -> None:
        """Start and end hooks stay paired, even if this callback stops training or evaluates."""
        recording = RecordingCallback(name="pairs")
        self.runner(tmp_path, self.make(), recording).train()

        assert recording.is_paired

    def test_draws_no_random_numbers(self, tmp_path: Path) -> None:
        """The streams of Python, NumPy and torch are where they are without this callback."""
        self.runner(tmp_path / "without").train()
        without = rng_state()
        self.runner(tmp_path / "with", self.make()).train()

        assert is_equal(rng_state(), without)

    def test_changes_the_training_only_where_it_says_so(self, tmp_path: Path) -> None:
        """The weights are those of a training without this callback, or it says `changes_training`.

        One that says so and changes nothing fails as well. One that `only_watches` changes nothing
        else of what is computed: neither results nor the length of the training.
        """
        callback = self.make()
        plain, observed = self.runner(tmp_path), self.runner(tmp_path, callback)
        plain.train()
        observed.train()

        same = is_equal(outcome(observed)["model"], outcome(plain)["model"])
        assert same is not self.changes_training
        assert not callback.only_watches or is_equal(outcome(observed), outcome(plain))

    def test_does_not_wait_for_the_device_on_every_step(self, tmp_path: Path) -> None:
        """No value is asked of the device between two logs: more steps, no more waits."""
        few, many = self._waits(tmp_path, 16), self._waits(tmp_path, 64)

        assert self.syncs_every_step or many == few

    def _waits(self, folder: Path, samples: int) -> int:
        config = {"project_root": str(folder), "log_interval": 1000, "evaluate_every": None}
        callbacks = [self.make()]
        runner = self.runner_class(
            {**config, "max_epochs": 1, "max_steps": samples // 4},
            samples=samples,
            callbacks=callbacks,
            default_callbacks=self.default_callbacks,
        )
        with CountingWaits() as counting:
            runner.train()
        waits: int = counting.waits
        return waits

    def test_leaves_nothing_behind(self, tmp_path: Path) -> None:
        """No thread, no hook on a module, and the garbage collector as it was."""
        threads, collecting = set(threading.enumerate()), gc.isenabled()
        runner = self.runner(tmp_path, self.make())
        runner.train()

        hooks = [
            hook
            for module in runner.model.modules()
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        ]
        assert hooks == []
        assert set(threading.enumerate()) <= threads
        assert gc.isenabled() is collecting

    def test_stays_out_of_the_way_of_another_callback_s_error(self, tmp_path: Path) -> None:
        """The error of another reaches the user, and this one lets go of what it holds."""
        for hook in ("on_setup", "on_step", "on_epoch_end", "on_teardown"):
            runner = self.runner(tmp_path, Failing(hook), self.make())
            try:
                runner.train()
            except ZeroDivisionError as error:
                raised = error
            else:
                raise AssertionError(f"the error of another callback in {hook} was swallowed")

            assert not [note for note in raised.__notes__ if note.startswith("and then")]

    def test_the_cost_of_a_step_is_told(self, tmp_path: Path) -> None:
        """Prints what the callback adds to a step, seen with `pytest -s`; no bound is asserted."""
        without, within = Clocked(), Clocked()
        for clock, callbacks in ((without, ()), (within, (self.make(),))):
            config = {"project_root": str(tmp_path), "log_interval": 1000, "max_epochs": 1}
            defaults = self.default_callbacks
            self.runner_class(
                config, samples=256, callbacks=[*callbacks, clock], default_callbacks=defaults
            ).train()

        added = (within.per_step - without.per_step) * 1e6
        print(f"{self.make().name}: {added:.1f} us a step on {without.per_step * 1e6:.1f} us")
        assert without.steps == 64


class Failing(Callback):
    """Raises in one hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, partial(self._fail, hook))

    def _fail(self, hook: str, *_: Any) -> None:
        raise ZeroDivisionError(f"on purpose, in {hook}")


class Lasting(Callback):
    """Saves at every safe point, and dies by SIGKILL in the middle of a step."""

    priority = Priority.LOWEST + 1

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at

    def on_step(self, runner: AccelerateRunner) -> None:
        if runner.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_checkpoint(self, runner: AccelerateRunner) -> None:
        runner.save_checkpoint()


class Clocked(Callback):
    """Takes the time of the steps between the first and the last one."""

    def __init__(self) -> None:
        self.steps, self._first, self._last = 0, 0.0, 0.0

    @property
    def per_step(self) -> float:
        """Seconds of a step."""
        return (self._last - self._first) / max(self.steps - 1, 1)

    def on_step(self, runner: AccelerateRunner) -> None:
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self.steps += 1


class CountingWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types
    """Counts how often a value of a tensor was asked for, for which a device would be waited."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.waits += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def in_child(work: Callable[[], None]) -> int:
    """Do something in a forked process; returns its exit code, negative for a signal."""
    return exit_code(fork(work))


def in_two_processes(work: Callable[[], Any], folder: Path) -> list[Any]:
    """Run a function in two forked processes, one world over gloo; returns both results.

    Args:
        work: Makes a runner, for example; what it returns must be plain values and tensors.
        folder: An existing folder, for what the processes tell each other.

    Raises:
        AssertionError: A process failed; it has printed why.
    """

    def join(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # asked for, and not used
        os.environ["ACCELERATE_USE_CPU"] = "true"
        PartialState._reset_state()  # the process that was forked was alone
        store = f"file://{folder.resolve()}/processes"
        patience = timedelta(seconds=60)  # of one that waits for another that has died
        dist.init_process_group("gloo", store, patience, world_size=2, rank=rank)
        torch.save(work(), folder / f"process-{rank}.pt")

    children = [fork(partial(join, rank)) for rank in range(2)]
    codes = [exit_code(child) for child in children]
    assert codes == [0, 0], f"two processes left with {codes}: what they have printed says why"
    return [torch.load(folder / f"process-{rank}.pt", weights_only=True) for rank in range(2)]


def fork(work: Callable[[], None]) -> int:
    """Start a process that does something and ends; returns its id."""
    with warnings.catch_warnings():  # of threads that are idle here
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return process


def exit_code(process: int) -> int:
    """Wait for a process that `fork` has started; returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def outcome(runner: TinyRunner) -> dict[str, Any]:
    """The results that a resumed training must share with an uninterrupted one."""
    return {
        "model": runner.unwrapped_model.state_dict(),
        "optimizer": runner.optimizer.state_dict(),
        "results": runner.results,
        "global_step": runner.global_step,
        "stop_reason": runner.stop_reason,
    }


def is_equal(one: Any, other: Any) -> bool:
    """Whether two states are the same, tensors by value and NaN equal to itself."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.dtype == other.dtype and torch.allclose(one, other, equal_nan=True)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return bool(one == other or (one != one and other != other))
