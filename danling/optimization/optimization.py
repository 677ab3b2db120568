"""One optimizer step: backward, unscale, clip, optimizer, scheduler."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from danling.checkpoint.encoding import named, unnamed
from danling.checkpoint.sharded.state import ModelState
from danling.errors import ConfigError, MetricError, RunError, did_you_mean
from danling.metrics.history import split_of
from danling.optimization.checks import (
    check_lists,
    check_optimizers,
    check_schedulers,
    needs_closure,
)
from danling.optimization.models import Models, parts_of
from danling.optimization.movement import moving, read_schedules, state_of
from danling.optimization.replicas import Replicas
from danling.optimization.together import Together, WithClosure, names_of_steps, separate

__all__ = ["Optimization", "accelerate_adds_nothing"]


def accelerate_adds_nothing(accelerator: Accelerator) -> bool:
    """Whether a step through Accelerate's wrappers is the step of torch, only slower.

    True for one process without gradient scaler and without an engine that owns the step: then
    `Accelerator.backward` is `loss.backward()` and `AcceleratedOptimizer.step` is
    `optimizer.step()`, after a look
    for a package on disk and at a signature on every call.
    """
    return (
        accelerator.num_processes == 1
        and accelerator.distributed_type == DistributedType.NO
        and getattr(accelerator, "scaler", None) is None
        and accelerator.mixed_precision in ("no", "bf16", "fp16")
        and accelerator.device.type != "xla"
    )


_NOTHING: Mapping[str, Any] = {}


class Optimization:
    """The optimizers of a run and all that happens around their steps.

    Args:
        accelerator: Decides the way of a step.
        optimizers: The optimizers by name; a single one is `""`. Those in a list share a loss.
        schedulers: The schedulers by optimizer; `read_schedules` tells what they may be.
        max_norm: Clip the total norm of the gradients to this.
        max_value: Clip each gradient to this magnitude.
        interval: Whether schedulers move with each step or each epoch.

    Attributes:
        optimizers: The optimizers, each by a name of its own.
        schedulers: The schedulers, each by a name of its own.

    Raises:
        ConfigError: An optimizer or a scheduler cannot be used.
    """

    readable = True
    """Whether gradients, and their norm, can be read before the step."""

    def __init__(
        self,
        accelerator: Accelerator,
        optimizers: Mapping[str, Any],
        schedulers: Mapping[str, Any],
        *,
        max_norm: float | None = None,
        max_value: float | None = None,
        interval: Literal["step", "epoch"] = "step",
    ) -> None:
        check_optimizers(optimizers)
        self._given = read_schedules(schedulers)
        check_schedulers(self._given, optimizers)
        self.direct = accelerate_adds_nothing(accelerator)
        self.optimizers = separate(optimizers)
        self._steps = names_of_steps(optimizers)  # what is stepped, and which optimizers in it
        self._only = next(iter(optimizers)) if len(optimizers) == 1 else None
        self.needs_closure = any(map(needs_closure, self.optimizers.values()))
        self.max_norm = max_norm
        self.max_value = max_value
        self._plain = set(filter(lambda name: forgets_as_torch(optimizers[name]), optimizers))
        self._moving = moving(self._given, interval)
        self.schedulers = {name: part.scheduler for name, part in self._moving.items()}
        self._after_step = self._moves_after_steps()
        self._accelerator = accelerator
        self.model_state = ModelState(None, None)
        """The object that answers for the model in checkpoints."""
        self.made_with: dict[str, Any] | None = None
        """The values that optimizers and schedulers were made with: see `hyperparameters`."""
        self._model: Any = None
        self._prepared: dict[str, Any] = self._steppable(self.optimizers)
        self._used_rates: dict[str, list[Any]] = {}  # of optimizers with a scheduler
        self._current = ""  # the optimizer whose step is open
        self._is_open = False  # its gradients are complete, and not forgotten yet
        self._is_unscaled = False  # and a scaler has judged them
        self.pending: dict[str, list[Any]] = {}
        """The micro-batches of open windows that closures evaluate, by the name of their step."""
        self.replicas = Replicas()
        """The object that keeps the model, and other modules, equal on all processes."""
        self._averages = False  # whether there are other processes with the same weights
        self.vetoed = False
        """Whether the next step moves nothing."""
        self.vetoes = 0
        """The number of steps that were vetoed in this process."""
        self.used_norm: Tensor | None = None
        """The norm of the open step, if anybody asked for it."""

    def configure(
        self,
        max_norm: float | None,
        max_value: float | None,
        interval: Literal["step", "epoch"],
        length: Callable[[str], int | None],
    ) -> None:
        """Take the settings of the run that opens: they may have changed since the last one.

        Args:
            max_norm: Clip the total norm of the gradients to this.
            max_value: Clip each gradient to this magnitude.
            interval: Whether schedulers move with each step or each epoch.
            length: The number of moves of the training at an interval; None where it is unknown.
        """
        self.max_norm, self.max_value = max_norm, max_value
        for part in self._moving.values():
            part.settle(interval)
            part.follow(length)
        self._after_step = self._moves_after_steps()

    def check_monitors(self, splits: Sequence[str]) -> None:
        """Refuse a schedule that watches a value of none of the splits.

        Raises:
            MetricError: A schedule watches such a value.
        """
        for part in self._moving.values():
            if part.monitor is not None and split_of(part.monitor, splits) is None:
                raise MetricError(
                    f"the schedule of {type(part.scheduler).__name__} watches "
                    f"{part.monitor!r}, which is of no split: there are {', '.join(splits)}"
                )

    def _moves_after_steps(self) -> dict[str, list[Callable[[], object]]]:
        """The functions to call after a step, by the name of the optimizer."""
        moves = {
            key: [
                move for name in schedules if (move := self._moving[name].after_step()) is not None
            ]
            for key, schedules in self._given.items()
        }
        return {key: own for key, own in moves.items() if own}

    def _steppable(self, optimizers: Mapping[str, Any]) -> dict[str, Any]:
        """The optimizers that a step calls, by the name of the optimizer."""
        scaler = getattr(self._accelerator, "scaler", None)
        return {
            key: WithClosure(optimizers[key])
            if needs_closure(self.optimizers.get(key, []))
            else optimizers[names[0]]
            if names == (key,)
            else Together([optimizers[name] for name in names], scaler)
            for key, names in self._steps.items()
        }

    def prepare(self, model: nn.Module | None) -> Any:
        """Let Accelerate place and wrap the model and the optimizers; returns the model.

        Several models are placed and wrapped one by one; what no optimizer trains is only placed.
        """
        if self.needs_closure and getattr(self._accelerator, "scaler", None) is not None:
            raise ConfigError(
                "the gradient scaler of fp16 takes no closure: use bf16 or full precision for an "
                "optimizer that evaluates the model again"
            )
        several = isinstance(model, Models)
        models: dict[str, nn.Module] = {} if model is None else {"": model}
        if isinstance(model, Models):
            models = dict(model)
        if not models and not self.optimizers:
            return None
        wrapped = self._place(models, several=several)
        if several:
            self._model = Models(wrapped, self._accelerator.unwrap_model)
        else:
            self._model = wrapped.get("")
        check_schedulers(self._given, self._listed())  # Accelerate has made groups anew
        check_lists(self.optimizers)  # and may have replaced parameters
        if self._accelerator.num_processes > 1 and self.readable:
            self._averages = True
            self.replicas.watch(self._model)
        return self._model

    def _place(self, models: Mapping[str, nn.Module], *, several: bool) -> dict[str, Any]:
        """Let Accelerate prepare models, and the optimizers; returns the models by name."""
        trained = {
            name: model
            for name, model in models.items()
            if not several or self._optimizers_of(model)
        }
        if several and self._accelerator.is_fsdp2:
            prepared = self._place_one_by_one(trained)
        else:
            prepared = self._prepare({**trained, **self._marked(self.optimizers)})
        if not self.direct:
            self._prepared = self._steppable(
                {name: prepared[("", name)] for name in self.optimizers}
            )
        return {
            name: prepared[name] if name in trained else self._only_placed(model)
            for name, model in models.items()
        }

    def _only_placed(self, model: nn.Module) -> Any:
        placed = self._accelerator.prepare_model(model, evaluation_mode=True)
        return placed.to(self._accelerator.device)  # Accelerate leaves it there under FSDP

    def _marked(self, names: Iterable[str]) -> dict[Any, Any]:
        """Optimizers under keys that no model has."""
        return {("", name): self.optimizers[name] for name in names}

    def _prepare(self, parts: Mapping[Any, Any]) -> dict[Any, Any]:
        if not parts:
            return {}
        prepared = self._accelerator.prepare(*parts.values())
        return dict(zip(parts, prepared if len(parts) > 1 else [prepared], strict=True))

    def _place_one_by_one(self, models: Mapping[str, nn.Module]) -> dict[Any, Any]:
        """Shard each model with its own optimizers: Accelerate takes one of them at a time.

        Raises:
            ConfigError: An optimizer has parameters of several models.
        """
        prepared: dict[Any, Any] = {}
        for name, model in models.items():
            own = self._optimizers_of(model)
            if taken := [each for each in own if ("", each) in prepared]:
                raise ConfigError(
                    f"the optimizer {taken[0]!r} has parameters of several models, one of them "
                    f"{name!r}: FSDP needs an optimizer for each, as optimizer={{name: ...}}"
                )
            prepared |= self._prepare({name: model, **self._marked(own)})
        return prepared

    def _optimizers_of(self, model: nn.Module) -> list[str]:
        """The names of the optimizers that train a model."""
        own = {id(parameter) for parameter in model.parameters()}
        return [
            name
            for name, optimizer in self.optimizers.items()
            if any(id(p) in own for group in optimizer.param_groups for p in group["params"])
        ]

    def choose(self, name: str | None) -> str:
        """The name of the optimizer to step."""
        if name is None and self._only is not None:
            return self._only
        if name is not None and name in self._steps:
            return name
        if not self.optimizers:
            raise RunError(
                "step() needs an optimizer: pass `optimizer=` to the runner or set runner.optimizer"
            )
        known = ", ".join(repr(key) for key in self._steps)
        if name is None:
            raise RunError(
                f"there are several optimizers ({known}): say which: step(loss, optimizer=...)"
            )
        raise RunError(f"there is no optimizer {name!r}: {did_you_mean(name, self._steps)}")

    def synchronise(self, model: Any, enabled: bool) -> None:
        """Whether the next forward and backward average gradients over the processes.

        Set on the model, not by its `no_sync()`: a context around a `yield` would leak into the
        caller.
        """
        if self.direct:
            return
        part: Any
        for part in parts_of(model):
            if hasattr(part, "require_backward_grad_sync"):  # DistributedDataParallel
                part.require_backward_grad_sync = enabled
            elif hasattr(part, "set_requires_gradient_sync"):  # FSDP2
                part.set_requires_gradient_sync(enabled or len(self._steps) > 1)

    def backward(self, loss: Tensor, name: str) -> None:
        """Add the gradients of a loss to the parameters of the named optimizer.

        A single optimizer leaves none out: `backward` reaches whatever requires a gradient. Of
        several each gets its own loss's gradients alone, as the critic of a GAN does not learn from
        the loss of the generator.
        """
        if self._only is not None:
            if self.direct:
                loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            else:
                self._accelerator.backward(loss)
        elif not self.direct:
            with self._kept_from_others(name):
                self._accelerator.backward(loss)
        else:
            own = [parameter for parameter in self._parameters(name) if parameter.requires_grad]
            torch.autograd.backward(loss, inputs=own)

    @contextmanager
    def _kept_from_others(self, name: str) -> Iterator[None]:
        """Put the gradients of other optimizers back: DDP has a backward reach all parameters."""
        own = {id(parameter) for parameter in self._parameters(name)}
        parameters = [p for other in self._steps for p in self._parameters(other)]
        others = [parameter for parameter in parameters if id(parameter) not in own]
        gradients = [None if p.grad is None else p.grad.clone() for p in others]
        yield
        for parameter, gradient in zip(others, gradients, strict=True):
            parameter.grad = gradient

    def open_empty(self, name: str) -> None:
        """Open the step of a window that holds nothing: it moves nothing, and its norm is 0."""
        self._current, self._is_open, self.used_norm = name, True, None
        self._is_unscaled, self.vetoed = False, True

    def open(self, name: str, rescale: Tensor | float | None = None) -> None:
        """Gradients of the named optimizer are complete: make them readable.

        Args:
            name: The name of the optimizer.
            rescale: The factor that its gradients are multiplied by.
        """
        self._current, self._is_open, self.used_norm = name, True, None
        if self._averages:
            self.replicas.average(self._parameters(name))
        if rescale is not None:
            for parameter in self._parameters(name):
                if parameter.grad is not None:
                    parameter.grad.mul_(rescale)
        if not self.direct and getattr(self._accelerator, "scaler", None) is not None:
            prepared = self._prepared[name]
            self._accelerator.unscale_gradients(getattr(prepared, "optimizers", prepared))
            self._is_unscaled = True

    def _pass_over(self) -> None:
        """End a step that was vetoed: nothing moves, but the scaler has seen the gradients."""
        self.vetoed = False
        self.vetoes += 1
        if self._is_unscaled:
            self._accelerator.scaler.update()

    def step(self) -> None:
        """Clip, move the parameters, and the schedule unless the scaler skipped the step.

        One that was vetoed moves nothing.
        """
        if self.vetoed:
            self._pass_over()
            return
        name = self._current
        if self.max_norm is not None:
            self._clip_norm(name, self.max_norm)
        if self.max_value is not None:
            clip_values(self._parameters(name), self.max_value)
        if name in self._given:
            self._note_rates(name)
        self._prepared[name].step()
        if name in self._after_step and (self.direct or not self._prepared[name].step_was_skipped):
            for move in self._after_step[name]:
                move()

    def step_with(self, name: str, closure: Callable[[], Tensor]) -> None:
        """Let an optimizer step that evaluates the model itself, and move its schedule.

        Args:
            name: The name of the optimizer.
            closure: The function that evaluates the loss and its gradients.

        Raises:
            RunError: There is a gradient scaler, which takes no closure.
        """
        if getattr(self._accelerator, "scaler", None) is not None:
            raise RunError(
                "the gradient scaler of fp16 takes no closure: use bf16 or full precision for an "
                "optimizer that evaluates the model again"
            )
        if name in self._given:
            self._note_rates(name)
        self._prepared[name].step(closure)
        for move in self._after_step.get(name, ()):
            move()

    def clip(self, name: str) -> None:
        """Clip the gradients of an optimizer as configured."""
        if self.max_norm is not None:
            self._clip_norm(name, self.max_norm)
        if self.max_value is not None:
            clip_values(self._parameters(name), self.max_value)

    def forget(self, name: str) -> None:
        """Forget the gradients of an optimizer, which are computed again."""
        for parameter in self._parameters(name):
            parameter.grad = None

    def optimizer_of(self, name: str) -> Optimizer:
        """The first optimizer of a step."""
        return self.optimizers[self._steps[name][0]]

    def _note_rates(self, name: str) -> None:
        """Keep the learning rates of a step, which a schedule moves after it."""
        for own in self._steps[name]:
            self._used_rates[own] = rates_of(self.optimizers[own])

    def zero_grad(self) -> None:
        """Forget the gradients of the optimizer that was stepped."""
        name = self._current
        if self.direct and name in self._plain:
            for group in self.optimizers[name].param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            self._prepared[name].zero_grad()
        self._is_open, self.used_norm = False, None

    def discard(self) -> None:
        """Forget all gradients, of a window that will not be stepped."""
        self.vetoed = False
        self.pending.clear()
        for optimizer in self._prepared.values():
            optimizer.zero_grad()

    @property
    def grad_norm(self) -> Tensor:
        """Total norm of the gradients of this step, before clipping; computed on first use."""
        if not self._is_open:
            raise RunError("grad_norm is of a step: ask for it in on_before_step or on_step")
        if self.used_norm is None:
            gradients = [
                whole(parameter)
                for parameter in self._parameters(self._current)
                if parameter.grad is not None
            ]
            norm = get_total_norm(gradients)
            self.used_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return self.used_norm

    def end_epoch(self, epoch: int = 0) -> None:
        """Move the schedules that count epochs.

        Args:
            epoch: The number of epochs completed.
        """
        for part in self._moving.values():
            part.end_epoch(epoch)

    def end_evaluation(self, score: float | None, result: Mapping[str, Any] = _NOTHING) -> None:
        """Move the schedules that watch a value.

        Args:
            score: The monitored value of the run; None where it is not new.
            result: The new values by split, for schedules with a monitor of their own.

        Raises:
            MetricError: A schedule watches a value that is not there.
        """
        for part in self._moving.values():
            part.end_evaluation(score, result)

    def learning_rates(self, *, used: bool = False) -> dict[str, float]:
        """The learning rate of every parameter group, by tag.

        Groups of one name have their number after it.

        Args:
            used: Whether it is that which the last step used, and not that of the next one.
        """
        rates = {}
        for name, optimizer in self.optimizers.items():
            prefix = f"optim/lr/{name}/" if name else "optim/lr/"
            names = [str(group.get("name", i)) for i, group in enumerate(optimizer.param_groups)]
            rates_now = rates_of(optimizer)
            found = self._used_rates.get(name, rates_now) if used else rates_now
            for index, (own, rate) in enumerate(zip(names, found, strict=False)):
                tag = own if names.count(own) == 1 else f"{own}-{index}"
                rates[f"{prefix}{tag}"] = float(rate)
        return rates

    def groups(self, name: str) -> list[list[Any]]:
        """The parameters of each group, as the state of the optimizer names them."""
        numbers = itertools.count()
        groups = self.optimizers[name].param_groups
        return [[next(numbers) for _ in group["params"]] for group in groups]

    def _parameters(self, name: str) -> list[Tensor]:
        optimizers = [self.optimizers[own] for own in self._steps[name]]
        return [p for each in optimizers for group in each.param_groups for p in group["params"]]

    def _listed(self) -> dict[str, list[Optimizer]]:
        return {key: [self.optimizers[name] for name in own] for key, own in self._steps.items()}

    def _clip_norm(self, name: str, limit: float) -> None:
        with torch.no_grad():
            norm, parameters = self.grad_norm, self._parameters(name)
            sparse = [p for p in parameters if p.grad is not None and p.grad.is_sparse]
            for parameter in sparse:
                whole(parameter).mul_((limit / (norm + 1e-6)).clamp(max=1.0))
            dense = [p for p in parameters if p.grad is None or not p.grad.is_sparse]
            clip_grads_with_norm_(dense if sparse else parameters, limit, norm)

    # State

    def state_dict(self, whole: bool = True) -> dict[str, Any]:
        """State of optimizers, schedulers and scaler; that of a single optimizer is torch's own.

        Args:
            whole: Whether to gather what is sharded; a collective then.
        """
        scaler = getattr(self._accelerator, "scaler", None)
        return {
            "optimizer": unnamed(
                {
                    name: self.model_state.optimizer_state(part, whole=whole)
                    for name, part in self.optimizers.items()
                }
            ),
            **self._schedule_state(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _schedule_state(self) -> dict[str, Any]:
        """The states of the schedulers, and what else is to be known of those that count."""
        states = {name: state_of(part) for name, part in self.schedulers.items()}
        own = {name: each.state_dict() for name, each in self._moving.items() if each.has_state}
        return {"scheduler": unnamed(states)} | ({"schedules": own} if own else {})

    def _load_schedules(self, state: Mapping[str, Any]) -> None:
        states, own = named(state["scheduler"]), state.get("schedules", {})
        for name in self.schedulers.keys() & states.keys():
            if states[name]:
                self.schedulers[name].load_state_dict(states[name])
            if name in own:
                self._moving[name].load_state_dict(own[name])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self._used_rates = {}
        states = named(state["optimizer"])
        for name in self.optimizers.keys() & states.keys():
            self.model_state.load_optimizer_state(self.optimizers[name], states[name])
        self._load_schedules(state)
        scaler = getattr(self._accelerator, "scaler", None)
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])


def forgets_as_torch(optimizer: Any) -> bool:
    """Whether `zero_grad` is torch's: a loop, and a range for the profiler of 9 us a step."""
    function = getattr(getattr(optimizer, "zero_grad", None), "__func__", None)
    return function is Optimizer.zero_grad


def rates_of(optimizer: Optimizer) -> list[Any]:
    """The learning rates of an optimizer as they are now; a scheduler changes tensors in place."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]


def whole(parameter: Tensor) -> Tensor:
    """The gradient of a parameter; of a sparse one the values, added up where an index is twice."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient
    if not gradient.is_coalesced():
        parameter.grad = gradient = gradient.coalesce()
    return gradient.values()  # they share memory with it


def clip_values(parameters: list[Tensor], limit: float) -> None:
    """Clip each element of the gradients; in a sparse one those that are there."""
    sparse = [p for p in parameters if p.grad is not None and p.grad.is_sparse]
    for parameter in sparse:
        whole(parameter).clamp_(-limit, limit)
    clip_grad_value_([p for p in parameters if p.grad is None or not p.grad.is_sparse], limit)
