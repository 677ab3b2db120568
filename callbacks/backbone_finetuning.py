"""A backbone that is frozen at first, and then trained with a smaller learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from danling.callback import Callback, Priority
from danling.errors import CallbackError, did_you_mean
from danling.optimization.models import awaits_all_gradients

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["BackboneFinetuning"]


class BackboneFinetuning(Callback):
    """Train the head of a model first, and from some epoch on its backbone too.

    The backbone gets a parameter group of its own, named `backbone`, when the run opens, whether
    the optimizer was given its parameters or not: the groups are the same before and after, so
    that a run can be resumed at any step. When it is unfrozen its learning rate is
    `backbone_initial_lr`, or `backbone_initial_ratio_lr` times that of the first group, and each
    epoch multiplies it by `lambda_func(epoch)`. The arguments are those of Lightning's callback.

    The learning rate of the backbone is its state. A step costs an assignment. With
    `DistributedDataParallel` the gradients of the frozen backbone are computed and left out.

    Args:
        unfreeze_backbone_at_epoch: The epoch, counted from 0, from which on it is trained.
        lambda_func: The factor for the learning rate of the backbone in an epoch.
        backbone_initial_ratio_lr: The first learning rate of the backbone, as a share of that of
            the first group.
        backbone_initial_lr: The first learning rate of the backbone as a number, in place of a
            share.
        should_align: Whether the learning rate of the backbone never exceeds that of the first
            group.
        backbone: The name of the module.

    Raises:
        CallbackError: There is no such module, or an argument cannot be meant.

    Example:
        >>> BackboneFinetuning(5, lambda epoch: 1.5).unfreeze_backbone_at_epoch
        5
    """

    name = "backbone_finetuning"
    priority = Priority.VERY_HIGH  # before anybody reads gradients or learning rates

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = lambda epoch: 2.0,
        *,
        backbone_initial_ratio_lr: float = 0.1,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        backbone: str = "backbone",
    ) -> None:
        if type(unfreeze_backbone_at_epoch) is not int or unfreeze_backbone_at_epoch < 0:
            raise CallbackError(
                "BackboneFinetuning(unfreeze_backbone_at_epoch="
                f"{unfreeze_backbone_at_epoch!r}): must be an epoch, 0 or later"
            )
        if not backbone_initial_ratio_lr > 0 or not (backbone_initial_lr or 1.0) > 0:
            raise CallbackError(
                f"BackboneFinetuning(backbone_initial_ratio_lr={backbone_initial_ratio_lr!r}, "
                f"backbone_initial_lr={backbone_initial_lr!r}): must be positive"
            )
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.backbone = backbone
        self.lr: float | None = None

    def on_setup(self, runner: Runner) -> None:
        """Give the backbone its parameter group, before the state of a checkpoint is loaded."""
        if runner.global_step == 0:
            self.lr = None
        _add_group(runner, self._module(runner))
        self._freeze(runner, self.lr is None)

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Train the backbone if it was trained when the checkpoint was saved."""
        self._freeze(runner, self.lr is None)

    def on_epoch_start(self, runner: Runner) -> None:
        """Begin to train it, or go on with another learning rate."""
        if runner.epoch < self.unfreeze_backbone_at_epoch:
            return
        current = float(runner.optimizers[0].param_groups[0]["lr"])
        if self.lr is None:
            self.lr = self.backbone_initial_lr or current * self.backbone_initial_ratio_lr
            self._freeze(runner, False)
            runner.logger.info("%s: the backbone is trained from here on", self.name)
        else:
            self.lr *= self.lambda_func(runner.epoch)
        if self.should_align and self.lr > current:
            self.lr = current

    def on_before_step(self, runner: Runner) -> None:
        """Use its learning rate, whatever the schedule made of it."""
        if self.lr is not None:
            _find_group(runner)["lr"] = self.lr
        elif awaits_all_gradients(runner.model):
            for parameter in _find_group(runner)["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The learning rate of the backbone; None while it is frozen."""
        return {"lr": self.lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.lr = state["lr"]

    def _module(self, runner: Runner) -> nn.Module:
        modules: dict[str, nn.Module] = dict(runner.unwrapped_model.named_modules())
        if self.backbone not in modules or not list(modules[self.backbone].parameters()):
            near = did_you_mean(self.backbone, [name for name in modules if name])
            raise CallbackError(f"BackboneFinetuning(backbone={self.backbone!r}): {near}")
        return modules[self.backbone]

    def _freeze(self, runner: Runner, frozen: bool) -> None:
        if not awaits_all_gradients(runner.model):
            for parameter in self._module(runner).parameters():
                parameter.requires_grad_(not frozen)


def _find_group(runner: Runner) -> dict[str, Any]:
    """The group of the backbone, the last one; loading a state makes the groups anew."""
    group: dict[str, Any] = runner.optimizers[0].param_groups[-1]
    return group


def _add_group(runner: Runner, backbone: nn.Module) -> None:
    """Give the backbone a group that has its parameters and no others."""
    optimizers = runner.optimizers
    if len(optimizers) != 1:
        raise CallbackError(f"BackboneFinetuning needs one optimizer, there are {len(optimizers)}")
    (optimizer,) = optimizers
    if optimizer.param_groups[-1].get("name") == "backbone":  # of a training before
        return
    own = {id(parameter) for parameter in backbone.parameters()}
    for index, group in enumerate(optimizer.param_groups):
        group["params"] = [p for p in group["params"] if id(p) not in own]
        group.setdefault("name", str(index))  # torch: all groups are named, or none
    first = optimizer.param_groups[0]
    settings = {key: value for key, value in first.items() if key not in ("params", "name")}
    optimizer.add_param_group(
        {**settings, "params": list(backbone.parameters()), "name": "backbone"}
    )
    for scheduler in runner.optimization.schedulers.values():
        _extend(scheduler)


def _extend(scheduler: Any) -> None:
    """Let a scheduler know of one group more: what it has for each is that of the first."""
    for name in ("base_lrs", "max_lrs", "_last_lr", "lr_lambdas", "min_lrs"):
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and values:
            values.append(values[0])
    for part in getattr(scheduler, "_schedulers", ()):
        _extend(part)
