"""A loss that jumps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from danling.callback import Callback
from danling.errors import CallbackError, MetricError, did_you_mean
from danling.files.atomic import write_json
from danling.metrics.delayed import Delayed

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["SpikeDetection"]

_ACTIONS = ("raise", "stop", "warn")


class SpikeDetection(Callback):
    """Find batches at which the loss jumps, list them in a file, and act.

    A loss is a spike when it is worse than the one before it, and differs from the mean of the last
    `window` losses by both `atol` and `rtol` times that mean, or when it is not finite. A spike
    does not enter the mean. The rule is that of Lightning's callback of the same name.

    The batches are listed in `spikes.json` in the directory of the run, with epoch, batch index,
    loss and mean, so that a later run can leave them out. Nothing waits for the device: on a GPU a
    loss is looked at two batches later. The losses of the window are its state.

    Args:
        mode: Whether lower (`"min"`) or higher (`"max"`) values are better.
        window: The number of losses that the mean is taken of.
        warmup: The number of batches that pass before one can be a spike.
        atol: The difference to the mean that a spike has at least; None: any.
        rtol: The least difference of a spike as a share of the mean.
        finite_only: Whether a loss that is not finite is a spike.
        action: The answer: to `"raise"` an error, to `"stop"` the training or to `"warn"`.

    Raises:
        CallbackError: An argument cannot be meant.
        MetricError: While training: there was a spike, and the action is `"raise"`.

    Example:
        >>> detection = SpikeDetection(window=3, warmup=0, rtol=2.0)
        >>> [detection.check(loss) for loss in (1.0, 1.1, 5.0, 0.9)]
        [False, False, True, False]
    """

    name = "spike_detection"

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 25,
        atol: float | None = None,
        rtol: float = 2.0,
        *,
        finite_only: bool = True,
        action: Literal["raise", "stop", "warn"] = "raise",
    ) -> None:
        for argument, value, known in (
            ("mode", mode, ("min", "max")),
            ("action", action, _ACTIONS),
        ):
            if value not in known:
                near = did_you_mean(str(value), known)
                raise CallbackError(f"SpikeDetection({argument}={value!r}): {near}")
        if type(window) is not int or window < 1 or type(warmup) is not int or warmup < 0:
            raise CallbackError(
                f"SpikeDetection(window={window!r}, warmup={warmup!r}): numbers of batches"
            )
        self.mode = mode
        self.window = window
        self.warmup = warmup
        self.atol = atol
        self.rtol = rtol
        self.finite_only = finite_only
        self.action = action
        self.spikes: list[dict[str, float]] = []
        self._losses: deque[float] = deque(maxlen=window)
        self._last, self._seen = math.inf, 0
        self._waiting = Delayed()
        self._places: list[list[int]] = []  # epoch and index of the batches that wait
        self._forget()

    def check(self, loss: float) -> bool:
        """Whether this loss is a spike after those that were checked before it."""
        is_spike = self._seen >= self.warmup and self._is_spike(loss)
        self._seen += 1
        if not is_spike and math.isfinite(loss):
            self._last = loss
            self._losses.append(loss)
        return is_spike

    @property
    def mean(self) -> float:
        """The mean of the losses in the window; NaN before the first."""
        return sum(self._losses) / len(self._losses) if self._losses else math.nan

    def on_setup(self, runner: Runner) -> None:
        """Start anew, unless the runner goes on with a training of before."""
        if runner.global_step == 0:
            self._forget()

    def on_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Check the losses that have reached the host."""
        loss = _loss_of(output)
        if loss is not None:
            self._places.append([runner.epoch, runner.batch_index - 1])
            self._waiting.add(len(self._places), loss)
            self._look(runner, self._waiting.ready())

    def on_epoch_end(self, runner: Runner) -> None:
        """Check those that have not been."""
        self._look(runner, self._waiting.all())

    def state_dict(self) -> dict[str, Any]:
        """The window, what was found, and the losses that have not been checked."""
        return {
            "losses": list(self._losses),
            "last": self._last,
            "seen": self._seen,
            "spikes": list(self.spikes),
            "waiting": [loss for _, loss in self._waiting.peek()],
            "places": [list(place) for place in self._places],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self._forget()
        self._losses.extend(state["losses"])
        self._last, self._seen = state["last"], state["seen"]
        self.spikes = [dict(spike) for spike in state["spikes"]]
        self._places = [list(place) for place in state["places"]]
        self._waiting.load(list(enumerate(state["waiting"], 1)))

    def _forget(self) -> None:
        self._losses.clear()
        self._last = math.inf if self.mode == "min" else -math.inf
        self._seen = 0
        self._waiting, self._places, self.spikes = Delayed(), [], []

    def _is_spike(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return self.finite_only
        worse = loss > self._last if self.mode == "min" else loss < self._last
        if not worse or not self._losses:
            return False
        difference = abs(loss - self.mean)
        return difference >= abs(self.atol or 0.0) and difference >= abs(self.rtol * self.mean)

    def _look(self, runner: Runner, losses: list[tuple[int, float]]) -> None:
        for _, loss in losses:
            epoch, batch_index = self._places.pop(0)
            mean = self.mean
            if self.check(loss):
                spike = {"epoch": epoch, "batch_index": batch_index, "loss": loss, "mean": mean}
                self.spikes.append(spike)
                self._tell(runner, spike)

    def _tell(self, runner: Runner, spike: Mapping[str, float]) -> None:
        if runner.has_dir and runner.is_main_process:
            write_json(runner.dir / "spikes.json", self.spikes)
        text = (
            f"{self.name}: the loss jumps to {spike['loss']:.6g} from a mean of "
            f"{spike['mean']:.6g} at batch {spike['batch_index']:g} of epoch {spike['epoch']:g}"
        )
        if self.action == "raise":
            raise MetricError(text)
        runner.logger.warning("%s", text)
        if self.action == "stop":
            runner.stop(text)


def _loss_of(output: Any) -> Tensor | None:
    """The loss in what a train step returned; None where the batch was left out."""
    if isinstance(output, Mapping):
        output = output.get("loss")
    elif not isinstance(output, Tensor):
        output = getattr(output, "loss", None)
    return output.detach() if isinstance(output, Tensor) else None
