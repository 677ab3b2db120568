"""The callback: every hook there is, in the order in which they fire."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from danling.errors import did_you_mean

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["HOOKS", "Callback", "Priority"]


class Priority(IntEnum):
    """Named levels of `Callback.priority`: the lower, the earlier; any integer will do."""

    HIGHEST = 0
    VERY_HIGH = 10
    HIGH = 30
    NORMAL = 50
    LOW = 70
    VERY_LOW = 90
    LOWEST = 100


class Callback:
    """Base of everything that is attached to a runner: override the hooks you need.

    The order in which the hooks fire:

        on_setup                        the run directory exists after this hook
          on_train_start
            on_epoch_start
              on_fetch_start
              on_fetch_end(batch)
              on_batch_start(batch)     a batch is a micro-batch
                on_before_step          gradients complete and unscaled, not yet clipped
                on_step                 after optimizer and scheduler, gradients still there
              on_batch_end(batch, output)
              on_evaluate_start(split)
                on_evaluate_batch_start(batch)
                on_evaluate_batch_end(batch, output)
              on_evaluate_end(split, result)
              on_checkpoint             safe point of a step
            on_epoch_end                the epoch's result, evaluation included, is complete
            on_checkpoint               safe point of an epoch
          on_train_end
        on_teardown                     always, in reverse order

    `on_log`, `on_save`, `on_load`, `on_exception` and the three `on_predict` hooks fire where their
    names say.
    Hooks of one event run by `priority` (lower first), then in list order; `on_teardown` runs in
    reverse.
    Only hooks that a class (or an instance) overrides are called: the others cost nothing.

    Attributes:
        name: The name, unique in a runner: the key of this callback's state in checkpoints and of
            `runner.callbacks["..."]`. By default it is the class in snake case.
        priority: The place among the callbacks of one hook, see `Priority`.
        only_watches: Whether it changes nothing of what a run computes: what the configuration says
            of it is then no part of the `run_id`.

    Raises:
        TypeError: When a subclass defines a function named `on_...` that is no hook, or a hook that
            does not take the arguments it is called with.

    Example:
        >>> class Greeter(Callback):
        ...     def on_epoch_end(self, runner):
        ...         print(f"epoch {runner.epoch}: {runner.latest_result}")
        >>> Greeter().name
        'greeter'
        >>> class Typo(Callback):
        ...     def on_epoch_ends(self, runner): ...
        Traceback (most recent call last):
        TypeError: Typo.on_epoch_ends is not a hook: did you mean 'on_epoch_end'?
    """

    name: str = "callback"
    priority: int = Priority.NORMAL
    only_watches: bool = False
    _has_own_name: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for attribute, value in vars(cls).items():
            if attribute.startswith("on_") and isinstance(value, FunctionType):
                check_hook(f"{cls.__name__}.{attribute}", attribute, value)
        if "name" in vars(cls):
            cls._has_own_name = True
        elif not cls._has_own_name:  # a name set by hand is inherited, one made from a class is not
            cls.name = re.sub(
                r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__
            ).lower()

    # The run

    def on_setup(self, runner: Runner) -> None:
        """Fires when the run opens, before anything is loaded or trained.

        The run directory exists once `RunDirectory`, the first, has run. May open files. Must not
        train.
        """

    def on_train_start(self, runner: Runner) -> None:
        """Fires before the first epoch of `train()` or `epochs()`; a checkpoint is loaded then."""

    def on_epoch_start(self, runner: Runner) -> None:
        """Fires before the first batch of an epoch; `runner.epoch` counts the epochs before it.

        Does not fire again when a run is resumed in the middle of an epoch: `on_load` does.
        """

    def on_fetch_start(self, runner: Runner) -> None:
        """Fires before a batch is asked of the loader: with `on_fetch_end` it measures the wait.

        At the end of a stream whose length nobody knows it fires once more, without `on_fetch_end`.
        """

    def on_fetch_end(self, runner: Runner, batch: Any) -> None:
        """Fires after the loader gave a batch."""

    def on_batch_start(self, runner: Runner, batch: Any) -> None:
        """Fires before a batch (or micro-batch) is used. May change it in place."""

    def on_before_step(self, runner: Runner) -> None:
        """Fires before an optimizer step. May change the gradients, unscaled and unclipped."""

    def on_step(self, runner: Runner) -> None:
        """Fires after an optimizer step; `runner.global_step` counts it, gradients are still there.

        Must not move values to the host on every step: `runner.is_log_step` says when it is cheap.
        """

    def on_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Fires after a batch; `output` is what the train step returned."""

    # Evaluation

    def on_evaluate_start(self, runner: Runner, split: str) -> None:
        """Fires before a split is evaluated."""

    def on_evaluate_batch_start(self, runner: Runner, batch: Any) -> None:
        """Fires before a batch is evaluated."""

    def on_evaluate_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Fires after a batch was evaluated; `output` is what the evaluate step returned.

        That of the runner's own step is a mapping with `"loss"`, the model's `"output"` and the
        metrics that are functions.
        """

    def on_evaluate_end(self, runner: Runner, split: str, result: Mapping[str, float]) -> None:
        """Fires after a split was evaluated; `result` has its means over all processes."""

    # The ends of epoch, training and run

    def on_epoch_end(self, runner: Runner) -> None:
        """Fires after an epoch and its evaluation: `runner.epoch` and `latest_result` have it.

        `runner.epoch_complete` is False for an epoch cut by `stop()`, `max_steps` or a `break`.
        """

    def on_checkpoint(self, runner: Runner) -> None:
        """Fires at every safe point, of a step or of an epoch: every other hook of it has run.

        The place to save: all state, that of the callbacks too, is of one moment.
        """

    def on_train_end(self, runner: Runner) -> None:
        """Fires after the last epoch, also when training was stopped; not after an exception."""

    def on_teardown(self, runner: Runner) -> None:
        """Fires last, in reverse order, once for each callback whose `on_setup` was called."""

    # Things that happen

    def on_log(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Fires at the log interval and after an evaluation; `metrics` are numbers with full tags.

        A value is the mean since the last time its tag was logged, over all processes:
            `train/loss`.
        """

    def on_save(self, runner: Runner, path: Path) -> None:
        """Fires after a checkpoint was committed: it is durable on disk."""

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Fires after a checkpoint was loaded; this callback's own state has been restored."""

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Fires while an exception leaves the run, before teardown. Must not use collectives."""

    # Prediction

    def on_predict_start(self, runner: Runner, split: str) -> None:
        """Fires before a split is predicted."""

    def on_predict_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Fires after a batch was predicted."""

    def on_predict_end(self, runner: Runner, split: str) -> None:
        """Fires after a split was predicted."""

    # State

    def state_dict(self) -> dict[str, Any]:
        """The state that must survive a resume, in plain values and tensors; saved under `name`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        It comes before the optimizers are compared with the checkpoint and restored, so that a
        callback that has added a parameter group can add it again; `on_load` comes after all.
        """


HOOKS: tuple[str, ...] = tuple(name for name in vars(Callback) if name.startswith("on_"))


FOREIGN_HOOKS: Final = {
    # Lightning: https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.callbacks.Callback.html
    "on_fit_start": "on_train_start",
    "on_fit_end": "on_train_end",
    "on_train_epoch_start": "on_epoch_start",
    "on_train_epoch_end": "on_epoch_end",
    "on_train_batch_start": "on_batch_start",
    "on_train_batch_end": "on_batch_end",
    "on_validation_start": "on_evaluate_start",
    "on_validation_end": "on_evaluate_end",
    "on_validation_epoch_start": "on_evaluate_start",
    "on_validation_epoch_end": "on_evaluate_end",
    "on_validation_batch_start": "on_evaluate_batch_start",
    "on_validation_batch_end": "on_evaluate_batch_end",
    "on_test_start": "on_evaluate_start",
    "on_test_end": "on_evaluate_end",
    "on_test_epoch_start": "on_evaluate_start",
    "on_test_epoch_end": "on_evaluate_end",
    "on_test_batch_start": "on_evaluate_batch_start",
    "on_test_batch_end": "on_evaluate_batch_end",
    "on_predict_epoch_start": "on_predict_start",
    "on_predict_epoch_end": "on_predict_end",
    "on_save_checkpoint": "on_save",
    "on_load_checkpoint": "on_load",
    "on_after_backward": "on_before_step",
    "on_before_optimizer_step": "on_before_step",
    "on_before_zero_grad": "on_step",
    # Keras: https://keras.io/api/callbacks/base_callback
    "on_train_begin": "on_train_start",
    "on_epoch_begin": "on_epoch_start",
    "on_batch_begin": "on_batch_start",
    "on_train_batch_begin": "on_batch_start",
    "on_test_begin": "on_evaluate_start",
    "on_test_batch_begin": "on_evaluate_batch_start",
    "on_predict_begin": "on_predict_start",
    # Transformers: https://huggingface.co/docs/transformers/main_classes/callback
    "on_init_end": "on_setup",
    "on_step_begin": "on_batch_start",
    "on_step_end": "on_step",
    "on_substep_end": "on_batch_end",
    "on_pre_optimizer_step": "on_before_step",
    "on_optimizer_step": "on_step",
    "on_evaluate": "on_evaluate_end",
    "on_predict": "on_predict_end",
    "on_prediction_step": "on_evaluate_batch_end",
}
"""The hook that fires where one of another library does, by its name there."""


def check_hook(where: str, name: str, function: FunctionType) -> None:
    """Refuse a function that is named as a hook and cannot be called as one.

    Raises:
        TypeError: There is no such hook, or it is called with other arguments.
    """
    if name in FOREIGN_HOOKS:
        raise TypeError(f"{where} is not a hook: here it is called {FOREIGN_HOOKS[name]!r}")
    if name not in HOOKS:
        raise TypeError(f"{where} is not a hook: {did_you_mean(name, HOOKS)}")
    arguments = inspect.signature(getattr(Callback, name)).parameters
    given = inspect.signature(function)
    try:
        given.bind(*arguments)
    except TypeError:
        have = f"({', '.join(given.parameters)})"
        raise TypeError(
            f"{where}{have} cannot be called as a hook: define {name}({', '.join(arguments)})"
        ) from None
