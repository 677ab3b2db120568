"""Weights that matter least are set to zero, and stay there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import (
    BasePruningMethod,
    L1Unstructured,
    LnStructured,
    PruningContainer,
    RandomStructured,
    RandomUnstructured,
)

from danling.callback import Callback, Priority
from danling.errors import CallbackError, did_you_mean
from danling.seed import derive, isolated_rng
from danling.triggers import Every

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["ModelPruning"]

_METHODS: dict[str, type[BasePruningMethod]] = {
    "l1_unstructured": L1Unstructured,
    "random_unstructured": RandomUnstructured,
    "ln_structured": LnStructured,
    "random_structured": RandomStructured,
}
_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


class ModelPruning(Callback):
    """Set weights to zero by the rules of `torch.nn.utils.prune`, a share at a time.

    The masks are those that `torch.nn.utils.prune` computes. They are applied to the weights
    themselves: the model keeps the names of its parameters, a checkpoint holds the pruned weights,
    and loads without this callback. Pruned weights get no gradient and stay zero.

    The masks are its state, so that a resumed run goes on exactly. Where something is pruned, a
    step costs a multiplication of the pruned weights and one of their gradients.

    Args:
        pruning_fn: The rule: `"l1_unstructured"`, `"random_unstructured"`, `"ln_structured"` or
            `"random_structured"`; or a pruning method of torch.
        amount: The share of the weights not pruned yet (or their number, as an integer) that each
            time is pruned; or a function that gives it for the number of epochs completed.
        parameters: The patterns of the names of parameters or modules that are pruned, as
            `("encoder.*.weight",)`; None: the parameters named `weight` with two or more
            dimensions.
        every: The time from one pruning to the next, as `"1 epoch"` (at its start) or
            `"500 steps"`.
        start: The time of the first pruning; None: after the first period.
        until: The time after which nothing more is pruned; None: to the end.
        use_global_unstructured: Whether an unstructured rule compares the weights of all parameters
            with each other, instead of within each.
        dim: The dimension of what a structured rule removes.
        norm: The norm by which `"ln_structured"` compares.
        use_lottery_ticket_hypothesis: Whether the weights that stay go back to their initial values
            at each pruning ("The Lottery Ticket Hypothesis", Frankle and Carbin, 2019).

    Raises:
        CallbackError: An argument cannot be meant, or the weights are spread over processes.

    Example:
        >>> pruning = ModelPruning("l1_unstructured", amount=0.2, every="2 epochs")
        >>> pruning.sparsity
        0.0
    """

    name = "model_pruning"
    priority = Priority.VERY_HIGH  # before anybody reads the norm of the gradients

    def __init__(
        self,
        pruning_fn: str | type[BasePruningMethod] = "l1_unstructured",
        amount: float | Callable[[int], float] = 0.5,
        *,
        parameters: tuple[str, ...] | None = None,
        every: str | Every = "1 epoch",
        start: str | Every | None = None,
        until: str | Every | None = None,
        use_global_unstructured: bool = True,
        dim: int = 0,
        norm: float = 2,
        use_lottery_ticket_hypothesis: bool = False,
    ) -> None:
        if isinstance(pruning_fn, str) and pruning_fn not in _METHODS:
            near = did_you_mean(pruning_fn, _METHODS)
            raise CallbackError(f"ModelPruning({pruning_fn!r}): {near}")
        self.method = _METHODS[pruning_fn] if isinstance(pruning_fn, str) else pruning_fn
        self.amount = amount
        if not callable(amount):
            self._checked(amount)
        self.parameters = parameters
        self.every = self._period("every", every)
        self.start = self.every if start is None else self._period("start", start)
        self.until = None if until is None else self._period("until", until)
        is_structured = getattr(self.method, "PRUNING_TYPE", "") == "structured"
        self.use_global_unstructured = use_global_unstructured and not is_structured
        self.dim, self.norm = dim, norm
        self.use_lottery_ticket_hypothesis = use_lottery_ticket_hypothesis
        self._masks: dict[str, Tensor] = {}
        self._initial: dict[str, Tensor] = {}
        self._last = (-1, -1)  # epoch and step of the last pruning

    @property
    def sparsity(self) -> float:
        """The share of the weights of the pruned parameters that is zero for good."""
        total = sum(mask.numel() for mask in self._masks.values())
        kept = sum(int(mask.count_nonzero()) for mask in self._masks.values())
        return 1 - kept / total if total else 0.0

    def on_setup(self, runner: Runner) -> None:
        """Look whether the patterns name something."""
        kind = runner.accelerator.distributed_type.value
        if kind in _SHARDED:
            raise CallbackError(f"ModelPruning: with {kind} no process has all weights")
        known = [name for name, _ in runner.unwrapped_model.named_parameters()]
        for pattern in self.parameters or ():
            if not any(_matches(name, pattern) for name in known):
                raise CallbackError(
                    f"ModelPruning(parameters=({pattern!r},)) matches no parameter: "
                    f"{did_you_mean(pattern, known)}"
                )
        if runner.global_step == 0:
            self._masks, self._initial, self._last = {}, {}, (-1, -1)
        if not dict(self._pruned(runner)):
            raise CallbackError(
                "ModelPruning: no parameter named weight has two dimensions: give `parameters`"
            )

    def on_train_start(self, runner: Runner) -> None:
        """Keep the initial weights, where they are wanted again."""
        if self.use_lottery_ticket_hypothesis and runner.global_step == 0:
            self._initial = {name: p.detach().clone() for name, p in self._pruned(runner)}

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Put the masks where the weights are; the model may hold their average now."""
        for name, parameter in self._pruned(runner) if self._masks else ():
            self._masks[name] = self._masks[name].to(parameter)

    def on_epoch_start(self, runner: Runner) -> None:
        """Prune, where that is counted in epochs."""
        if self.every.unit == "epochs":
            self._prune_if_due(runner, runner.epoch)

    def on_before_step(self, runner: Runner) -> None:
        """Leave the gradients of pruned weights out."""
        if self._masks:
            for name, parameter in self._pruned(runner):
                if parameter.grad is not None:
                    parameter.grad.mul_(self._masks[name])

    def on_step(self, runner: Runner) -> None:
        """Put pruned weights back to zero, and prune where that is counted in steps."""
        if self._masks:
            self._apply(runner)
        if self.every.unit == "steps":
            self._prune_if_due(runner, runner.global_step)

    @torch.no_grad()
    def prune(self, runner: Runner) -> None:
        """Prune now, whatever the periods say."""
        amount = self.amount(runner.epoch) if callable(self.amount) else self.amount
        parameters = dict(self._pruned(runner))
        masks = {name: self._masks.get(name, torch.ones_like(p)) for name, p in parameters.items()}
        with isolated_rng():
            torch.manual_seed(derive(int(runner.config.seed or 0), "prune", runner.global_step))
            self._masks = self._new_masks(parameters, masks, self._checked(amount))
        for name, parameter in parameters.items():
            if name in self._initial:
                parameter.copy_(self._initial[name])
        self._apply(runner)
        runner.logger.info(
            "%s: %.1f %% of %d weights are pruned",
            self.name,
            100 * self.sparsity,
            sum(mask.numel() for mask in self._masks.values()),
        )

    def state_dict(self) -> dict[str, Any]:
        """The masks, and the initial weights where they are wanted again."""
        return {
            "masks": {name: mask.bool() for name, mask in self._masks.items()},
            "initial": dict(self._initial),
            "last": list(self._last),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._masks = dict(state["masks"])
        self._initial = dict(state["initial"])
        self._last = state["last"][0], state["last"][1]

    # How

    def _period(self, argument: str, period: str | Every) -> Every:
        period = Every(period)
        if period.unit not in ("steps", "epochs"):
            raise CallbackError(f"ModelPruning({argument}={str(period)!r}): in steps or epochs")
        return period

    def _checked(self, amount: float) -> float:
        is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not is_number or amount < 0 or (isinstance(amount, float) and amount > 1):
            raise CallbackError(
                f"ModelPruning(amount={amount!r}): a share from 0.0 to 1.0, or a number of weights"
            )
        return amount

    def _pruned(self, runner: Runner) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in runner.unwrapped_model.named_parameters():
            if self.parameters is None:
                chosen = name.rpartition(".")[2] == "weight" and parameter.ndim > 1
            else:
                chosen = any(_matches(name, pattern) for pattern in self.parameters)
            if chosen:
                yield name, parameter

    def _prune_if_due(self, runner: Runner, count: int) -> None:
        place = runner.epoch, runner.global_step
        if place == self._last or count == 0 or count % self.every.value:
            return
        if not _is_over(self.start, place) or (self.until and not _is_within(self.until, place)):
            return
        self._last = place
        self.prune(runner)

    def _new_masks(
        self, parameters: dict[str, nn.Parameter], masks: dict[str, Tensor], amount: float
    ) -> dict[str, Tensor]:
        if not self.use_global_unstructured:
            return {
                name: self._method(amount).compute_mask(parameter * masks[name], masks[name])
                for name, parameter in parameters.items()
            }
        flat = torch.cat([(p * masks[name]).flatten() for name, p in parameters.items()])
        before = torch.cat([mask.flatten() for mask in masks.values()])
        after = self._method(amount).compute_mask(flat, before)
        parts = after.split([mask.numel() for mask in masks.values()])
        return {name: part.view_as(masks[name]) for name, part in zip(masks, parts, strict=True)}

    def _method(self, amount: float) -> Any:
        """The rule for one pruning, which leaves out what was pruned before."""
        arguments = {"amount": amount, "dim": self.dim, "n": self.norm}
        taken = inspect.signature(self.method).parameters
        make: Callable[..., BasePruningMethod] = self.method
        rule = make(**{key: value for key, value in arguments.items() if key in taken})
        container = PruningContainer()
        rule._tensor_name = container._tensor_name = "weight"
        container.add_pruning_method(rule)
        return container

    @torch.no_grad()
    def _apply(self, runner: Runner) -> None:
        for name, parameter in self._pruned(runner):
            parameter.mul_(self._masks[name])


def _matches(name: str, pattern: str) -> bool:
    """Whether a parameter has this name, or is in a module of it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _is_over(period: Every, place: tuple[int, int]) -> bool:
    return place[period.unit == "steps"] >= period.value


def _is_within(period: Every, place: tuple[int, int]) -> bool:
    return place[period.unit == "steps"] <= period.value
