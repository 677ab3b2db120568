"""Steps of optimizers that evaluate the model themselves, as often as they like.

What an optimizer calls evaluates the whole window again: each of its micro-batches, with gradients
that are averaged, put right and clipped as in any other step. What a step logs and measures is that
of the first evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from danling.errors import RunError

if TYPE_CHECKING:
    from danling.distributed.world import World
    from danling.metrics.logbook import Logbook
    from danling.optimization.optimization import Optimization
    from danling.optimization.windows import Window

__all__ = ["MISSING", "Evaluation", "MicroBatch", "WindowClosure"]


class Nothing:
    """The type of `MISSING`."""


MISSING = Nothing()
"""No output: None skips a batch."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A micro-batch of a window.

    Attributes:
        evaluate: The function that gives its loss, and whatever else its train step returns.
        window: The place in the window: it may have a `tally`, and tells whether it `closes`.
    """

    evaluate: Callable[[], Evaluation]
    window: Window


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of the evaluation of one micro-batch.

    Attributes:
        output: The output that the train step returned.
        loss: The loss in the output.
        metrics: The other values in the output.
        samples: The number of samples.
    """

    output: Any
    loss: Tensor
    metrics: Mapping[str, Any]
    samples: Tensor | int


class Vetoed(Exception):  # noqa: N818  # it is no error
    """Leaves an optimizer whose step was vetoed; nobody but the window catches it."""


class WindowClosure:
    """The closure with which an optimizer evaluates a window; it leaves complete gradients.

    Called without gradients, as under `torch.no_grad()`, it only returns the loss, as line searches
    want it.

    Args:
        parts: The micro-batches of the window.
        name: The name of the optimizer.
        optimization: The optimizers.
        logbook: The values that are logged; what is evaluated again counts for nothing.
        world: The processes; the loss is the mean over all of them.
        model: The model as it is called.
        on_first: The function that takes the first evaluation, when its gradients are complete.
    """

    def __init__(
        self,
        parts: Sequence[MicroBatch],
        name: str,
        optimization: Optimization,
        logbook: Logbook,
        world: World,
        model: Any,
        on_first: Callable[[Sequence[Evaluation]], object],
    ) -> None:
        self._parts = parts
        self._name = name
        self._optimization = optimization
        self._logbook = logbook
        self._world = world
        self._model = model
        self._on_first = on_first
        self._is_first = True

    def step(self) -> None:
        """Let the optimizer step, unless that is vetoed.

        Raises:
            RunError: The optimizer asked for no gradients.
        """
        optimizer = self._optimization.optimizer_of(self._name)
        try:
            if getattr(optimizer, "needs_closure", None) == "gradients":
                self()  # it wants them before it calls
            self._optimization.step_with(self._name, self)
        except Vetoed:
            self._optimization.step()  # that moves nothing
            return
        if self._is_first:
            raise RunError(
                f"the optimizer {type(optimizer).__name__} did not ask for gradients: it calls the "
                "closure in `with torch.enable_grad():`, as the optimizers of torch do"
            )

    def __call__(self) -> Tensor:
        """Evaluate the window; returns the loss, the same on all processes."""
        if not torch.is_grad_enabled():
            with self._logbook.aside():
                return self._mean([part.evaluate() for part in self._parts])
        optimization, is_first = self._optimization, self._is_first
        optimization.forget(self._name)
        norm = optimization.used_norm
        with self._logged(is_first):
            found = [self._add_gradients(part) for part in self._parts]
        self._open()
        self._is_first = False
        if is_first:
            self._on_first(found)
            if optimization.vetoed:
                raise Vetoed
        optimization.clip(self._name)
        if not is_first:
            optimization.used_norm = norm  # that of a step is of its first evaluation
        return self._mean(found)

    @contextmanager
    def _logged(self, is_first: bool) -> Iterator[None]:
        if is_first:
            yield
        else:
            with self._logbook.aside():
                yield

    def _add_gradients(self, part: MicroBatch) -> Evaluation:
        self._optimization.synchronise(self._model, part.window.closes)
        found, window = part.evaluate(), part.window
        if window.tally is None:
            self._optimization.backward(found.loss, self._name)
        else:
            window.tally.backward(found.loss, found.samples, window, self._name)
        return found

    def _open(self) -> None:
        """Average the gradients over the processes and the window."""
        window = self._parts[-1].window
        if window.tally is None:
            self._optimization.open(self._name)
        else:
            window.tally.open(self._name, window)

    def _mean(self, found: Sequence[Evaluation]) -> Tensor:
        """The loss of the window, over all processes: an optimizer decides by it."""
        losses = [each.loss.detach() for each in found]
        if len(losses) == 1 and self._world.size == 1:
            return losses[0]
        tally = self._parts[-1].window.tally
        by_samples = tally is not None and tally.by_samples
        weights = [each.samples if by_samples else 1 for each in found]
        sums = torch.stack(
            [
                torch.stack([x.double() * w for x, w in zip(losses, weights, strict=True)]).sum(),
                torch.as_tensor(sum(weights), dtype=torch.float64, device=losses[0].device),
            ]
        )
        if self._world.size > 1:
            dist.all_reduce(sums)
        return (sums[0] / sums[1]).to(losses[0].dtype)
