"""What happens when the gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from danling.callback import Callback, Priority
from danling.checkpoint.encoding import named
from danling.errors import CallbackError, CheckpointError, MetricError, did_you_mean
from danling.metrics.delayed import Delayed

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["NaNGuard"]

_ACTIONS = ("raise", "stop", "skip", "restore")
_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


class NaNGuard(Callback):
    """Act when the gradients of a step are not finite, before they cost the training.

    What is looked at is the norm of all gradients, which is computed once per step and shared with
    clipping and `GradientNormMonitor`; a loss that is not finite shows in it. Nothing waits for the
    device: on a GPU the norm is read two steps later, always at the same step on all processes,
    and all that are left at the end of an epoch. A step that the fp16 scaler skipped is none.

    With `"skip"` the weights and the state of the optimizer are kept before every step, and put
    back on the device where the gradients were not finite: it costs their memory once more, and a
    copy per step. The step counts and the schedule moves; of Adam on a GPU the count of steps,
    which torch keeps on the host, moves too.

    With `"restore"` weights and optimizer become those of the newest checkpoint whose weights are
    finite, while the data, the counters and the schedule go on: the same batches do not come again.

    Its state is the number of steps that it caught.

    Args:
        action: The answer: to `"raise"` an error, `"stop"` the training, `"skip"` the step, or
            `"restore"` the last good checkpoint.
        max_times: The number of times after which `"skip"` and `"restore"` give up with an error.

    Raises:
        CallbackError: An argument cannot be meant; or no checkpoint can be restored in this run.
        MetricError: While training: the gradients were not finite.

    Example:
        >>> NaNGuard("skip", max_times=10).action
        'skip'
    """

    name = "nan_guard"
    priority = Priority.HIGH

    def __init__(
        self,
        action: Literal["raise", "stop", "skip", "restore"] = "raise",
        *,
        max_times: int = 100,
    ) -> None:
        if action not in _ACTIONS:
            raise CallbackError(f"NaNGuard(action={action!r}): {did_you_mean(action, _ACTIONS)}")
        if type(max_times) is not int or max_times < 1:
            raise CallbackError(f"NaNGuard(max_times={max_times!r}): must be an integer above 0")
        self.action = action
        self.max_times = max_times
        self.caught = 0
        self._norms = Delayed()
        self._norm: Tensor | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []

    def on_setup(self, runner: Runner) -> None:
        """Start anew, and see that what was asked for can be done."""
        if runner.global_step == 0:
            self.caught, self._norms = 0, Delayed()
        kind = runner.accelerator.distributed_type.value
        if self.action in ("skip", "restore") and kind in _SHARDED:
            raise CallbackError(
                f"NaNGuard({self.action!r}): with {kind} no process has all of the weights; "
                "use 'raise' or 'stop'"
            )
        if self.action == "restore" and not runner.has_dir:
            raise CallbackError("NaNGuard('restore') needs checkpoints: this run has no directory")

    def on_before_step(self, runner: Runner) -> None:
        """Take the norm, and keep what the step will change where it may be undone."""
        if not runner.optimization.readable:
            return
        self._norm = runner.grad_norm
        if self.action == "skip":
            self._kept = [(tensor, tensor.detach().clone()) for tensor in _tensors(runner)]

    def on_step(self, runner: Runner) -> None:
        """Undo the step if its gradients were not finite, and look at the norms that are here."""
        norm = self._norm if self._norm is not None else runner.grad_norm
        self._norm = None
        if self.action == "skip":
            self._undo(runner, torch.isfinite(norm))
        if _was_skipped(runner):
            return
        self._norms.add(runner.global_step, norm)
        self._look(runner, self._norms.ready())

    def on_evaluate_start(self, runner: Runner, split: str) -> None:
        """Look at all norms, before a checkpoint is made of what was evaluated."""
        self._look(runner, self._norms.all())

    def on_epoch_end(self, runner: Runner) -> None:
        """Look at all norms, before the checkpoint of the epoch."""
        self._look(runner, self._norms.all())

    def on_teardown(self, runner: Runner) -> None:
        """Let go of what was kept."""
        self._kept, self._norm = [], None

    def state_dict(self) -> dict[str, Any]:
        """How often it acted, and the norms that are not read yet."""
        return {"caught": self.caught, "norms": [list(pair) for pair in self._norms.peek()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.caught = state["caught"]
        self._norms.load([(int(step), norm) for step, norm in state["norms"]])

    def _look(self, runner: Runner, norms: list[tuple[int, float]]) -> None:
        steps = [step for step, norm in norms if not math.isfinite(norm)]
        if not steps:
            return
        self.caught += len(steps)
        what = f"the gradients of global step {steps[0]} are not finite"
        if self.action == "raise" or self.caught > self.max_times:
            times = f" (for the {self.caught}th time)" if self.caught > 1 else ""
            raise MetricError(f"{self.name}: {what}{times}")
        if self.action == "stop":
            runner.stop(f"{self.name}: {what}")
        elif self.action == "restore":
            path = self._restore(runner)
            self._norms = Delayed()  # of steps that were taken with weights that are gone
            runner.logger.warning("%s: %s; the weights are those of %s", self.name, what, path)
        else:
            runner.logger.warning("%s: %s: the step is undone", self.name, what)

    def _undo(self, runner: Runner, is_good: Tensor) -> None:
        """Put back what was kept, without asking the device whether it has to."""
        kept, self._kept = {id(tensor): copy for tensor, copy in self._kept}, []
        with torch.no_grad():
            for tensor in _tensors(runner):
                before = kept.get(id(tensor))
                before = torch.zeros_like(tensor) if before is None else before  # made by this step
                if tensor.device == is_good.device:
                    tensor.copy_(torch.where(is_good, tensor, before))

    def _restore(self, runner: Runner) -> str:
        """Load weights and optimizer of the newest good checkpoint; returns its name."""
        for entry in runner.checkpoints.candidates():
            with suppress(CheckpointError):
                checkpoint, path = runner.checkpoints.load(entry.path)
                if "optimizer" in checkpoint and _is_finite(checkpoint["model"]):
                    _take(runner, checkpoint)
                    return path.name
        raise MetricError(
            f"{self.name}: the gradients are not finite, and there is no good checkpoint to go "
            "back to: save more often, as with ModelCheckpoint(every='100 steps')"
        )


def _tensors(runner: Runner) -> list[Tensor]:
    """Everything that a step changes: parameters, and the state that optimizers have of them."""
    found: list[Tensor] = []
    for optimizer in runner.optimizers:
        for group in optimizer.param_groups:
            found += [parameter for parameter in group["params"] if parameter.requires_grad]
        for state in optimizer.state.values():
            found += [value for value in state.values() if isinstance(value, Tensor)]
    return found


def _was_skipped(runner: Runner) -> bool:
    """Whether the gradient scaler left the step out: it has dealt with the gradients by then."""
    scaler = getattr(runner.accelerator, "scaler", None)
    return scaler is not None and bool(runner.accelerator.optimizer_step_was_skipped)


def _is_finite(weights: Mapping[str, Any]) -> bool:
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    return all(bool(torch.isfinite(value).all()) for value in tensors)


def _take(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Weights and the optimizers' state; learning rates stay where the schedule has them."""
    runner.unwrapped_model.load_state_dict(checkpoint["model"])
    states = named(checkpoint["optimizer"])
    for name, optimizer in runner.optimization.optimizers.items():
        current = optimizer.state_dict()
        optimizer.load_state_dict(current | {"state": states[name]["state"]})
