"""Optimizers that step together, on the gradients of one loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from danling.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["Together", "by_name", "names_of_steps", "separate"]


class Together:
    """Several optimizers as one, for what a step asks of an optimizer.

    Args:
        optimizers: The optimizers, as Accelerate has wrapped them.
        scaler: The gradient scaler, if there is one.
    """

    def __init__(self, optimizers: Sequence[Any], scaler: Any = None) -> None:
        self.optimizers = optimizers
        self.step_was_skipped = False
        self._scaler = scaler

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Let all of them step, after one call of the closure if there is one."""
        loss = None if closure is None else closure()
        if self._scaler is not None:
            self._step_scaled(self._scaler)
        else:
            for optimizer in self.optimizers:
                optimizer.step()
        return loss

    def _step_scaled(self, scaler: Any) -> None:
        """Step where no gradient of any of them has overflowed: one loss has one scale."""
        plain = [getattr(optimizer, "optimizer", optimizer) for optimizer in self.optimizers]
        states = [scaler._per_optimizer_states[id(part)] for part in plain]
        for part, state in zip(plain, states, strict=True):
            if not state["found_inf_per_device"]:
                scaler.unscale_(part)
        found = [scaler._per_optimizer_states[id(part)]["found_inf_per_device"] for part in plain]
        self.step_was_skipped = any(float(flag) for flags in found for flag in flags.values())
        if not self.step_was_skipped:
            for optimizer in plain:
                scaler.step(optimizer)
        scaler.update()

    def zero_grad(self) -> None:
        """Forget the gradients of all of them."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()


class WithClosure:
    """An optimizer that cannot step without evaluating the model.

    Args:
        optimizer: The optimizer, as Accelerate has wrapped it.
    """

    step_was_skipped = False

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.zero_grad = optimizer.zero_grad

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Let it step.

        Raises:
            RunError: There is no closure.
        """
        if closure is None:
            inner = getattr(self.optimizer, "optimizer", self.optimizer)
            raise RunError(
                f"{type(inner).__name__} evaluates the model itself: hand over how, as in "
                "runner.step(closure=lambda: runner.train_step(batch)); train() does so"
            )
        loss: Tensor | None = self.optimizer.step(closure)
        return loss


def separate(optimizers: Mapping[str, Any]) -> dict[str, Optimizer]:
    """The optimizers, each by a name of its own: those of a list have their numbers.

    Example:
        >>> list(separate({"": [1, 2], "critic": [3, 4], "actor": 5}))
        ['0', '1', 'critic.0', 'critic.1', 'actor']
    """
    return {
        name: optimizer
        for key, part in optimizers.items()
        for name, optimizer in zip(numbered(key, part), listed(part), strict=True)
    }


def names_of_steps(optimizers: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of the optimizers that step together, by the name of their step."""
    return {key: numbered(key, part) for key, part in optimizers.items()}


def by_name(part: Any) -> dict[str, Any]:
    """Several parts by name; a single one, and a list of those that belong together, is `""`."""
    if part is None:
        return {}
    if isinstance(part, Mapping) and not is_named(part):
        return dict(part)
    return {"": part}


def is_named(part: Any) -> bool:
    """Whether it is a schedule by its name, as `{"name": "cosine"}`."""
    return isinstance(part, Mapping) and isinstance(part.get("name"), str)


def listed(part: Any) -> list[Any]:
    """The parts of a list; a single one is a list of one."""
    return list(part) if isinstance(part, list) else [part]


def numbered(name: str, part: Any) -> tuple[str, ...]:
    """The names of parts: a single one has the name of its place."""
    if not isinstance(part, list):
        return (name,)
    return tuple(f"{name}.{index}".lstrip(".") for index in range(len(part)))
