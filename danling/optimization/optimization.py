"""One optimizer step: backward, unscale, clip, optimizer, scheduler."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from danling.checkpoint.encoding import named, unnamed
from danling.checkpoint.sharded.state import ModelState
from danling.distributed.stand_in import StandIn
from danling.errors import RunError, did_you_mean
from danling.optimization.checks import check_optimizers, check_schedulers

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


class Optimization:
    """The optimizers of a run and all that happens around their steps.

    Args:
        accelerator: Decides the way of a step.
        optimizers: By name; a single one is named `""`.
        schedulers: By name of their optimizer.
        max_norm: Clip the total norm of the gradients to this.
        max_value: Clip each gradient to this magnitude.
        interval: Whether schedulers move with each step or each epoch.

    Raises:
        ConfigError: An optimizer or a scheduler cannot be used.
    """

    readable = True
    """Whether gradients, and their norm, can be read before the step."""

    def __init__(
        self,
        accelerator: Accelerator,
        optimizers: Mapping[str, Optimizer],
        schedulers: Mapping[str, Any],
        *,
        max_norm: float | None = None,
        max_value: float | None = None,
        interval: Literal["step", "epoch"] = "step",
    ) -> None:
        check_optimizers(optimizers)
        check_schedulers(schedulers, optimizers)
        self.direct = accelerate_adds_nothing(accelerator)
        self.optimizers = dict(optimizers)
        self.schedulers = dict(schedulers)
        self._only = next(iter(optimizers)) if len(optimizers) == 1 else None
        self.max_norm = max_norm
        self.max_value = max_value
        self.interval = interval
        # their zero_grad is torch's: a loop, and a range for the profiler that costs 9 us a step
        self._plain = {
            name
            for name, optimizer in optimizers.items()
            if getattr(optimizer.zero_grad, "__func__", None) is Optimizer.zero_grad
        }
        self._accelerator = accelerator
        self.model_state = ModelState(None, None)
        """The object that answers for the model in checkpoints."""
        self.made_with: dict[str, Any] | None = None
        """The values that optimizers and schedulers were made with: see `hyperparameters`."""
        self._model: Any = None
        self._prepared: dict[str, Any] = dict(optimizers)
        self._used_rates: dict[str, list[Any]] = {}  # of optimizers with a scheduler
        self._current = ""  # the optimizer whose step is open
        self._is_open = False  # its gradients are complete, and not forgotten yet
        self._is_unscaled = False  # and a scaler has judged them
        self.apart: list[nn.Module] = []
        """Modules besides the model, which the processes keep equal at each step."""
        self._averaged: set[int] | None = None  # parameters that the model's wrapper averages
        self._is_watched = False  # whether a model that is called past its wrapper is refused
        self.stand_in: StandIn | None = None
        """What takes part for this process in the wrapper's work for a batch that it skips."""
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
    ) -> None:
        """Take the settings of the run that opens: they may have changed since the last one."""
        self.max_norm, self.max_value, self.interval = max_norm, max_value, interval

    def prepare(self, model: nn.Module | None) -> Any:
        """Let Accelerate place and wrap the model and the optimizers; returns the model."""
        parts = [*([model] if model is not None else []), *self.optimizers.values()]
        if not parts:
            return None
        prepared = self._accelerator.prepare(*parts)
        prepared = list(prepared) if len(parts) > 1 else [prepared]
        self._model = model = prepared.pop(0) if model is not None else None
        if not self.direct:
            self._prepared = dict(zip(self.optimizers, prepared, strict=True))
        check_schedulers(self.schedulers, self.optimizers)  # Accelerate has made groups anew
        if self._accelerator.num_processes > 1 and self.readable:
            self._watch_wrapper(model)
        return model

    def _watch_wrapper(self, model: Any) -> None:
        """Remember which gradients the model's wrapper averages, and whether it is called."""
        self._averaged = set()
        if model is None:
            return
        is_wrapped = isinstance(model, DistributedDataParallel)
        self._averaged = {id(p) for p in model.parameters() if p.requires_grad or not is_wrapped}
        inner = getattr(model, "_orig_mod", model)  # a compiled one
        if isinstance(inner, DistributedDataParallel):
            self.stand_in = StandIn(model)
        self._is_watched = is_wrapped

    def begin_together(self) -> None:
        """Let the modules besides the model be equal on all processes; a collective."""
        if self._averaged is None:
            return
        for module in self.apart:
            for tensor in (*module.parameters(), *module.buffers()):
                if not hasattr(tensor, "full_tensor"):
                    dist.broadcast(tensor.data, 0)

    def _keep_together(self, name: str, averaged: set[int]) -> None:
        """Average the gradients that no wrapper averages, and share the buffers of rank 0.

        Raises:
            RunError: The networks of the model were called without the wrapper around it.
        """
        bypassed = self._is_watched and self.stand_in and not self.stand_in.was_called
        if bypassed and any(p.grad is not None for p in self._model.parameters()):
            raise RunError(
                "parts of the model were called one by one, past the DistributedDataParallel that "
                "averages their gradients: the processes would drift apart. Call runner.model as "
                "a whole (its forward may take the name of a part), or make the parts attributes "
                "of the runner in place of its model: their gradients are averaged at each step"
            )
        own = [p for p in self._parameters(name) if p.requires_grad and id(p) not in averaged]
        own = [p for p in own if not hasattr(p, "full_tensor")]
        if own:
            has = torch.tensor([float(p.grad is not None) for p in own], device=own[0].device)
            dist.all_reduce(has, dist.ReduceOp.MAX)
            for parameter in itertools.compress(own, has.tolist()):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad.div_(self._accelerator.num_processes)
        for module in self.apart:
            for buffer in module.buffers() if module.training else ():
                dist.broadcast(buffer, 0)

    def choose(self, name: str | None) -> str:
        """The name of the optimizer to step."""
        if name is None and self._only is not None:
            return self._only
        if name is not None and name in self.optimizers:
            return name
        if not self.optimizers:
            raise RunError(
                "step() needs an optimizer: pass `optimizer=` to the runner or set runner.optimizer"
            )
        known = ", ".join(repr(key) for key in self.optimizers)
        if name is None:
            raise RunError(
                f"there are several optimizers ({known}): say which: step(loss, optimizer=...)"
            )
        raise RunError(f"there is no optimizer {name!r}: {did_you_mean(name, self.optimizers)}")

    def synchronise(self, model: Any, enabled: bool) -> None:
        """Whether the next forward and backward average gradients over the processes.

        Set on the model, not by its `no_sync()`: a context around a `yield` would leak into the
        caller.
        """
        if self.direct:
            return
        if hasattr(model, "require_backward_grad_sync"):  # DistributedDataParallel
            model.require_backward_grad_sync = enabled
        elif hasattr(model, "set_requires_gradient_sync"):  # FSDP2
            model.set_requires_gradient_sync(enabled or len(self.optimizers) > 1)

    def backward(self, loss: Tensor, name: str) -> None:
        """Add the gradients of a loss to the parameters of the named optimizer.

        A single optimizer leaves none out: `backward` reaches whatever requires a gradient. Of
        several each gets its own loss's gradients alone, as the critic of a GAN does not learn from
        the loss of the generator.
        """
        if len(self.optimizers) == 1:
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
        parameters = [p for other in self.optimizers for p in self._parameters(other)]
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
            rescale: What its gradients are multiplied by.
        """
        self._current, self._is_open, self.used_norm = name, True, None
        if self._averaged is not None:
            self._keep_together(name, self._averaged)
        if rescale is not None:
            for parameter in self._parameters(name):
                if parameter.grad is not None:
                    parameter.grad.mul_(rescale)
        if not self.direct and getattr(self._accelerator, "scaler", None) is not None:
            self._accelerator.unscale_gradients(self._prepared[name])
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
        scheduled = name in self.schedulers
        if scheduled:
            self._used_rates[name] = rates_of(self.optimizers[name])  # before it moves them
        self._prepared[name].step()
        if scheduled and self.interval == "step":
            skipped = not self.direct and self._prepared[name].step_was_skipped
            if not skipped:
                self._advance(self.schedulers[name])

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

    def end_epoch(self) -> None:
        """Move the schedules that count epochs."""
        if self.interval == "epoch":
            for scheduler in self.schedulers.values():
                self._advance(scheduler)

    def end_evaluation(self, score: float) -> None:
        """Move the schedules that watch the monitored value."""
        for scheduler in self.schedulers.values():
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(score)

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

    def _advance(self, scheduler: Any) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def _parameters(self, name: str) -> list[Tensor]:
        return [p for group in self.optimizers[name].param_groups for p in group["params"]]

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
            "scheduler": unnamed(
                {name: part.state_dict() for name, part in self.schedulers.items()}
            ),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self._used_rates = {}
        states = named(state["optimizer"])
        for name in self.optimizers.keys() & states.keys():
            self.model_state.load_optimizer_state(self.optimizers[name], states[name])
        states = named(state["scheduler"])
        for name in self.schedulers.keys() & states.keys():
            self.schedulers[name].load_state_dict(states[name])
        scaler = getattr(self._accelerator, "scaler", None)
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])


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
