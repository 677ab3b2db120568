"""Schedule-free optimizers evaluate, predict and save with their averaged weights."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from danling.callback import Callback, Priority
from danling.callbacks.weight_averaging import check_alone
from danling.errors import CallbackError

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["ScheduleFree"]

_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


class ScheduleFree(Callback):
    """Put the optimizers that have `train()` and `eval()` into the right one of both.

    A schedule-free optimizer, as those of the package `schedulefree`, trains with other weights
    than those that are to be used ("The Road Less Scheduled", Defazio et al., 2024). With this
    callback evaluations and predictions use the weights of `optimizer.eval()`, and
    `checkpoint["model"]` of every checkpoint holds them: what scored is what is saved. The weights
    that are trained are in the state of this callback, so that a run goes on exactly. They are
    kept aside and copied back, because `optimizer.train()` gives them back only almost.

    A step costs nothing, an evaluation a copy of the weights and their exchange. Buffers, as those
    of batch normalisation, stay those of the training.

    Raises:
        CallbackError: No optimizer has `train()` and `eval()`; or the weights are spread over
            processes.

    Example:
        >>> ScheduleFree().name
        'schedule_free'
    """

    name = "schedule_free"
    priority = Priority.HIGH  # its exchange encloses what others do in an evaluation

    def __init__(self) -> None:
        self._raw: dict[str, Any] | None = None  # the trained weights, as a checkpoint has them
        self._kept: list[tuple[nn.Parameter, Tensor]] = []

    def on_setup(self, runner: Runner) -> None:
        """Look whether there is such an optimizer."""
        kind = runner.accelerator.distributed_type.value
        if kind in _SHARDED:
            raise CallbackError(f"ScheduleFree: with {kind} no process has all weights")
        check_alone(self, runner)
        if not _optimizers(runner):
            have = ", ".join(type(optimizer).__name__ for optimizer in runner.optimizers) or "none"
            raise CallbackError(
                f"ScheduleFree: no optimizer has train() and eval() (the run has {have}); "
                "those of the package schedulefree have: pip install schedulefree"
            )
        self._kept = []
        if runner.global_step == 0:
            self._raw = None

    def on_train_start(self, runner: Runner) -> None:
        """Put the optimizers into training mode."""
        self._restore(runner)
        for optimizer in _optimizers(runner):
            optimizer.train()

    # Evaluation with the averaged weights

    def on_evaluate_start(self, runner: Runner, split: str) -> None:
        """Put the averaged weights in the place of those that are trained."""
        self._exchange(runner)

    def on_evaluate_end(self, runner: Runner, split: str, result: Mapping[str, float]) -> None:
        """Put the weights that are trained back."""
        self._restore(runner)

    def on_predict_start(self, runner: Runner, split: str) -> None:
        """Put the averaged weights in the place of those that are trained."""
        self._exchange(runner)

    def on_predict_end(self, runner: Runner, split: str) -> None:
        """Put the weights that are trained back."""
        self._restore(runner)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Put the weights back, if an evaluation ends in an error."""
        self._restore(runner)

    # Checkpoints

    def weights_to_save(self, runner: Runner, weights: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds as `model`, given the weights that are trained."""
        self._raw = weights
        self._exchange(runner)
        moved = {id(parameter) for parameter, _ in self._kept}
        named = runner.unwrapped_model.named_parameters(remove_duplicate=False)
        found = {name: p.detach().clone() for name, p in named if id(p) in moved}
        self._restore(runner)
        return {name: found.get(name, value) for name, value in weights.items()}

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Go on with the weights that are trained."""
        for optimizer in _optimizers(runner):
            optimizer.train()
        if self._raw is not None:
            runner.unwrapped_model.load_state_dict(self._raw)

    def state_dict(self) -> dict[str, Any]:
        """The weights that are trained, as they were when a checkpoint was taken."""
        return {} if self._raw is None else {"weights": dict(self._raw)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back; the model gets them in `on_load`."""
        self._raw = state.get("weights")

    # How

    @torch.no_grad()
    def _exchange(self, runner: Runner) -> None:
        if self._kept:
            return
        groups = (optimizer.param_groups for optimizer in _optimizers(runner))
        parameters = [p for group in itertools.chain(*groups) for p in group["params"]]
        self._kept = [(parameter, parameter.detach().clone()) for parameter in parameters]
        for optimizer in _optimizers(runner):
            optimizer.eval()

    @torch.no_grad()
    def _restore(self, runner: Runner) -> None:
        kept, self._kept = self._kept, []
        if not kept:
            return
        for optimizer in _optimizers(runner):
            optimizer.train()
        for parameter, value in kept:
            parameter.copy_(value)


def _optimizers(runner: Runner) -> list[Any]:
    """The optimizers that train with other weights than those that are to be used."""
    found = []
    for optimizer in runner.optimizers:
        modes = [getattr(optimizer, mode, None) for mode in ("train", "eval")]
        if all(map(callable, modes)):
            found.append(optimizer)
    return found
