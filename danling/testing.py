"""For the tests of callbacks: what records hooks, what trains in milliseconds, what must hold."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from danling.callback import HOOKS, Callback
from danling.errors import CallbackError, did_you_mean
from danling.runner.accelerate import AccelerateRunner

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
        hooks: Those to record; all without any.
        name: Under which it is attached, where a runner has several.

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
        """How often a hook fired."""
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
        samples: Of each split.
        callbacks: Those to test.
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
    """What every callback must keep to, as tests that a class of yours inherits.

    Override `make`. A callback that writes files, or needs the run directory for another reason,
    sets `default_callbacks = True`.

    Example:
        >>> class TestRecordingCallback(CallbackContract):  # pytest collects it by its name
        ...     def make(self):
        ...         return RecordingCallback()
        >>> TestRecordingCallback().test_two_instances_are_independent(Path("."))
    """

    default_callbacks = False

    def make(self) -> Callback:
        """A new callback, as a user would make it."""
        raise NotImplementedError(f"{type(self).__name__}.make() must return the callback to test")

    def runner(self, folder: Path, *callbacks: Callback) -> TinyRunner:
        """A runner that writes into a folder, if it writes at all."""
        config = {"project_root": str(folder), "log_interval": 1}
        return TinyRunner(config, callbacks=callbacks, default_callbacks=self.default_callbacks)

    def test_name_is_the_same_for_every_instance(self) -> None:
        """State in checkpoints is found by it."""
        assert self.make().name == self.make().name

    def test_state_round_trips_through_a_checkpoint(self, tmp_path: Path) -> None:
        """What `state_dict` gives is plain, and a new instance that takes it gives it back."""
        callback, successor = self.make(), self.make()
        self.runner(tmp_path, callback).train()
        stored = io.BytesIO()
        torch.save(callback.state_dict(), stored)
        stored.seek(0)

        successor.load_state_dict(torch.load(stored, weights_only=True))

        assert is_equal(successor.state_dict(), callback.state_dict())

    def test_two_instances_are_independent(self, tmp_path: Path) -> None:
        """Nothing that happens to one changes another: no state is on the class."""
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


class Failing(Callback):
    """Raises in one hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, partial(self._fail, hook))

    def _fail(self, hook: str, *_: Any) -> None:
        raise ZeroDivisionError(f"on purpose, in {hook}")


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
