"""Parts of a model that are not trained, for a while or for good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from danling.callback import Callback, Priority
from danling.errors import CallbackError, did_you_mean
from danling.optimization.models import awaits_all_gradients
from danling.triggers import Every

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["Freeze"]


class Freeze(Callback):
    """Train the named parameters only from some point on, or not at all.

    Frozen parameters need no gradient (`requires_grad` is False), which saves their part of the
    backward. Those that were frozen before the training stay so. With `DistributedDataParallel`,
    which does not allow this, their gradients are computed and left out of the step; the weights
    are the same. Several of them, each with a `name`, unfreeze a model bit by bit.

    Its state is which parameters are frozen, so that a resumed run goes on exactly. A step costs a
    comparison.

    Args:
        patterns: The names of parameters or modules, as `"backbone"` or `"encoder.layer.[0-5].*"`.
        until: The time from which on they are trained, as `"3 epochs"` or `"1000 steps"`; None:
            they never are.
        train_bn: Whether frozen batch normalisation goes on with its running statistics.
        name: The name, to have several in a runner.

    Raises:
        CallbackError: A pattern matches nothing, or `until` is not in steps or epochs.

    Example:
        >>> Freeze("backbone", until="3 epochs").until
        Every('3 epochs')
    """

    name = "freeze"
    priority = Priority.VERY_HIGH  # before anybody reads the norm of the gradients

    def __init__(
        self,
        *patterns: str,
        until: str | Every | None = None,
        train_bn: bool = True,
        name: str | None = None,
    ) -> None:
        if not patterns:
            raise CallbackError("Freeze(): say what, as Freeze('backbone')")
        self.patterns = patterns
        self.until = None if until is None else Every(until)
        if self.until is not None and self.until.unit not in ("steps", "epochs"):
            raise CallbackError(f"Freeze(until={str(self.until)!r}): in steps or epochs")
        self.train_bn = train_bn
        self.name = name or type(self).name
        self._names: list[str] = []
        self._is_frozen = False

    def on_setup(self, runner: Runner) -> None:
        """Find the parameters."""
        if runner.global_step > 0:
            return
        known = [name for name, _ in runner.unwrapped_model.named_parameters()]
        for pattern in self.patterns:
            if not any(_matches(name, pattern) for name in known):
                modules = [name for name, _ in runner.unwrapped_model.named_modules() if name]
                raise CallbackError(
                    f"Freeze({pattern!r}) matches no parameter: "
                    f"{did_you_mean(pattern, [*known, *modules])}"
                )
        self._names = [
            name
            for name, parameter in runner.unwrapped_model.named_parameters()
            if parameter.requires_grad and any(_matches(name, p) for p in self.patterns)
        ]
        self._set(runner, frozen=not self._is_over(runner))

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Freeze what was frozen when the checkpoint was saved."""
        self._set(runner, frozen=self._is_frozen)

    def on_train_start(self, runner: Runner) -> None:
        """Keep frozen batch normalisation in evaluation mode."""
        self._set(runner, frozen=self._is_frozen)

    def on_epoch_start(self, runner: Runner) -> None:
        """Train what is due from this epoch on."""
        self._thaw_if_due(runner)

    def on_before_step(self, runner: Runner) -> None:
        """Leave the gradients out, where they had to be computed."""
        if self._is_frozen and awaits_all_gradients(runner.model):
            for parameter in self._parameters(runner):
                parameter.grad = None

    def on_step(self, runner: Runner) -> None:
        """Train what is due from the next step on."""
        if self._is_frozen and self.until is not None and self.until.unit == "steps":
            self._thaw_if_due(runner)

    def state_dict(self) -> dict[str, Any]:
        """Which parameters are frozen."""
        return {"names": list(self._names), "is_frozen": self._is_frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back; the parameters themselves follow in `on_load`."""
        self._names, self._is_frozen = list(state["names"]), state["is_frozen"]

    def _is_over(self, runner: Runner) -> bool:
        if self.until is None:
            return False
        done = runner.global_step if self.until.unit == "steps" else runner.epoch
        return done >= self.until.value

    def _thaw_if_due(self, runner: Runner) -> None:
        if self._is_frozen and self._is_over(runner):
            self._set(runner, frozen=False)
            runner.logger.info(
                "%s: %d parameters are trained from here on", self.name, len(self._names)
            )

    def _parameters(self, runner: Runner) -> Iterator[nn.Parameter]:
        names = set(self._names)
        return (p for name, p in runner.unwrapped_model.named_parameters() if name in names)

    def _set(self, runner: Runner, *, frozen: bool) -> None:
        self._is_frozen = frozen
        if not awaits_all_gradients(runner.model):
            for parameter in self._parameters(runner):
                parameter.requires_grad_(not frozen)
                if frozen:
                    parameter.grad = None
        if not self.train_bn:
            for name, module in runner.unwrapped_model.named_modules():
                if isinstance(module, _BatchNorm) and any(_matches(name, p) for p in self.patterns):
                    module.train(not frozen)


def _matches(name: str, pattern: str) -> bool:
    """Whether a parameter has this name, or is in a module of it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
