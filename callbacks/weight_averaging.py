"""An average of the weights, which is evaluated and saved in their place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_swa_multi_avg_fn

from danling.callback import Callback, Priority
from danling.errors import CallbackError
from danling.triggers import Every

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["WeightAveraging"]

Average = Callable[[list[Tensor], list[Tensor], Any], None]

_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


class WeightAveraging(Callback):
    """Keep an average of the weights; evaluate, predict and save with it.

    What scored is what is saved: `checkpoint["model"]` of every checkpoint is the average, and the
    weights that are trained are in the state of this callback, so that a run goes on exactly.
    Until the first update there is no average, and the weights themselves are used. The averages
    are those of `torch.optim.swa_utils`.

    An update costs one pass over the weights and no wait for the device, an evaluation the exchange
    of weights and average, twice. The average needs the memory of the weights once more.

    Args:
        every: The time from one update of the average to the next, in steps, or in epochs (then at
            their last batch, before the evaluation).
        start: The time of the first update, as `"1000 steps"` or `"5 epochs"`; None: the beginning.
        use_buffers: Whether buffers, as those of batch normalisation, are averaged too; else those
            of the last update are used.
        device: The device on which the average is kept; None: that of the weights.
        multi_avg_fn: The function that moves the average; equal weights by default.

    Raises:
        CallbackError: An argument cannot be meant; or the weights are spread over processes.

    Example:
        >>> averaging = WeightAveraging("1 epoch", start="5 epochs")
        >>> averaging.updates
        0
    """

    name = "weight_averaging"
    priority = Priority.HIGH  # its exchange encloses what others do in an evaluation

    def __init__(
        self,
        every: str | Every = "1 step",
        *,
        start: str | Every | None = None,
        use_buffers: bool = True,
        device: torch.device | str | None = None,
        multi_avg_fn: Average | None = None,
    ) -> None:
        self.every = Every(every)
        self.start = None if start is None else Every(start)
        for argument, period in (("every", self.every), ("start", self.start)):
            if period is not None and period.unit not in ("steps", "epochs"):
                raise CallbackError(
                    f"{type(self).__name__}({argument}={str(period)!r}): in steps or epochs"
                )
        self.use_buffers = use_buffers
        self.device = device
        self._average_of: Average = multi_avg_fn or get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.updates = 0
        self._average: dict[str, Tensor] = {}
        self._raw: dict[str, Any] | None = None  # the trained weights, as a checkpoint has them
        self._is_exchanged = False

    def should_update(self, runner: Runner) -> bool:
        """Whether the weights join the average now; asked after each step. Override it at will."""
        if self.every.unit == "epochs":
            is_last = runner.batch_index == runner.batches_per_epoch
            epoch = runner.epoch + 1
            return is_last and epoch % self.every.value == 0 and self._has_started(runner, epoch)
        due = runner.global_step % self.every.value == 0
        return due and self._has_started(runner, runner.epoch)

    def on_setup(self, runner: Runner) -> None:
        """Start anew, unless the runner goes on with a training of before."""
        kind = runner.accelerator.distributed_type.value
        if kind in _SHARDED:
            raise CallbackError(f"{type(self).__name__}: with {kind} no process has all weights")
        check_alone(self, runner)
        if runner.global_step == 0:
            self.updates, self._average, self._raw = 0, {}, None
        self._is_exchanged = False

    def on_step(self, runner: Runner) -> None:
        """Let the weights join the average, where that is counted in steps."""
        if self.every.unit == "steps" and self.should_update(runner):
            self.update(runner)

    def on_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Let them join it at the last batch of an epoch, where that is counted in epochs."""
        if self.every.unit == "epochs" and self.should_update(runner):
            self.update(runner)

    @torch.no_grad()
    def update(self, runner: Runner) -> None:
        """Let the weights join the average now."""
        weights = dict(self._weights(runner))
        if not self._average:
            self._average = {n: t.detach().to(self.device, copy=True) for n, t in weights.items()}
        else:
            averaged = {n for n, t in weights.items() if self._is_averaged(t)}
            for group in _alike(self._average, averaged):
                average = [self._average[name] for name in group]
                current = [weights[name].detach().to(self._average[name].device) for name in group]
                self._average_of(average, current, self.updates)
            for name in weights.keys() - averaged:
                self._average[name].copy_(weights[name])
        self.updates += 1

    # Evaluation with the average

    def on_evaluate_start(self, runner: Runner, split: str) -> None:
        """Put the average in the place of the weights."""
        self._exchange(runner, True)

    def on_evaluate_end(self, runner: Runner, split: str, result: Mapping[str, float]) -> None:
        """Put the weights back."""
        self._exchange(runner, False)

    def on_predict_start(self, runner: Runner, split: str) -> None:
        """Put the average in the place of the weights."""
        self._exchange(runner, True)

    def on_predict_end(self, runner: Runner, split: str) -> None:
        """Put the weights back."""
        self._exchange(runner, False)

    def on_train_start(self, runner: Runner) -> None:
        """Put the weights back, if an evaluation before ended in an error."""
        self._exchange(runner, False)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Put the weights back, if an evaluation ends in an error."""
        self._exchange(runner, False)

    # Checkpoints

    def weights_to_save(self, runner: Runner, weights: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds as `model`, given the weights that are trained."""
        if not self._average:
            self._raw = None
            return weights
        self._raw = weights
        averages = {id(tensor): self._average[name] for name, tensor in self._weights(runner)}
        named: Iterator[tuple[str, Tensor]] = itertools.chain(
            runner.unwrapped_model.named_parameters(remove_duplicate=False),
            runner.unwrapped_model.named_buffers(remove_duplicate=False),
        )
        found = {name: averages[id(tensor)] for name, tensor in named if id(tensor) in averages}
        return {name: found.get(name, value) for name, value in weights.items()}

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Take the average from the checkpoint's model, and go on with the trained weights."""
        if self._raw is None:
            return
        model = runner.unwrapped_model
        self._average = {
            name: tensor.detach().to(self.device, copy=True)
            for name, tensor in self._weights(runner)
        }
        model.load_state_dict(self._raw)

    def state_dict(self) -> dict[str, Any]:
        """The number of updates, and the trained weights or (where none were saved) the average."""
        state: dict[str, Any] = {"updates": self.updates}
        if self._raw is not None:
            return state | {"weights": dict(self._raw)}
        return state | ({"average": dict(self._average)} if self._average else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back; the average of a checkpoint is its model, see `on_load`."""
        self.updates, self._raw = state["updates"], state.get("weights")
        average = state.get("average", {})
        self._average = {
            name: tensor.to(self.device, copy=True) for name, tensor in average.items()
        }

    # How

    def _has_started(self, runner: Runner, epoch: int) -> bool:
        if self.start is None:
            return True
        done = runner.global_step if self.start.unit == "steps" else epoch
        return done >= self.start.value

    def _weights(self, runner: Runner) -> Iterator[tuple[str, Tensor]]:
        """The parameters and buffers of the model, each once."""
        model: nn.Module = runner.unwrapped_model
        return itertools.chain(model.named_parameters(), model.named_buffers())

    def _is_averaged(self, tensor: Tensor) -> bool:
        return isinstance(tensor, nn.Parameter) or (self.use_buffers and tensor.is_floating_point())

    @torch.no_grad()
    def _exchange(self, runner: Runner, to_average: bool) -> None:
        """Let weights and average change places, one tensor after the other."""
        if not self._average or self._is_exchanged is to_average:
            return
        for name, tensor in self._weights(runner):
            average = self._average[name]
            kept = tensor.detach().clone()
            tensor.copy_(average)
            average.copy_(kept)
        self._is_exchanged = to_average


def check_alone(callback: Callback, runner: Runner) -> None:
    """Refuse two callbacks that both say which weights are evaluated and saved.

    Raises:
        CallbackError: There is another one.
    """
    others = [other for other in runner.callbacks if hasattr(other, "weights_to_save")]
    if len(others) > 1:
        names = " and ".join(repr(other.name) for other in others)
        raise CallbackError(
            f"{type(callback).__name__}: {names} each put weights of their own in the place of "
            "those that are trained: attach one of them"
        )


def _alike(tensors: Mapping[str, Tensor], names: set[str]) -> Sequence[list[str]]:
    """The names in groups of one device and type, which are averaged in one call."""
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, tensor in tensors.items():
        if name in names:
            groups.setdefault((tensor.device, tensor.dtype), []).append(name)
    return list(groups.values())
