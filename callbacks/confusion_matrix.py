"""Which classes a classifier takes for which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from danling.callback import Callback
from danling.errors import CallbackError, did_you_mean
from danling.runner.steps import logits_of

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["ConfusionMatrix"]

_SHARES = ("true", "pred", "all")


class ConfusionMatrix(Callback):
    """Count the classes that are predicted for each class, and show them as a figure.

    Predictions are those of the model in an evaluation: the largest output, or for a single output
    whether it is positive; targets are the second part of a batch, or its `labels`. Counts are over
    all processes, and are kept in `matrix`, with a row for each target. The figure is drawn by
    matplotlib and shown through `runner.log_figure`.

    A batch of an evaluation costs a sum on the device, an evaluation the drawing; a step costs
    nothing. There is no state.

    Args:
        num_classes: The number of classes; None: as many as there are outputs, or two.
        class_names: The names of the classes, in order.
        split: The split whose evaluation is counted.
        normalize: The counts that a share is of: those of a target (`"true"`), of a prediction
            (`"pred"`) or all of them (`"all"`); None: the figure shows the counts.
        function: The function of batch and output of the model that gives the predicted classes and
            the targets.
        tag: The name that the figure is shown under; None: `<split>/confusion_matrix`.

    Attributes:
        matrix: The counts of the last evaluation, as an integer tensor of shape (targets,
            predictions); None before one.

    Raises:
        CallbackError: An argument cannot be meant, matplotlib is not installed, or a batch has no
            target.

    Example:
        >>> counts = count(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
        >>> counts.tolist()
        [[1, 1], [0, 1]]
    """

    name = "confusion_matrix"
    only_watches = True

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        class_names: Sequence[str] | None = None,
        split: str = "val",
        normalize: Literal["true", "pred", "all"] | None = None,
        function: Callable[[Any, Any], tuple[Tensor, Tensor]] | None = None,
        tag: str | None = None,
    ) -> None:
        if normalize is not None and normalize not in _SHARES:
            near = did_you_mean(str(normalize), _SHARES)
            raise CallbackError(f"ConfusionMatrix(normalize={normalize!r}): {near}")
        if class_names is not None:
            num_classes = num_classes or len(class_names)
            if len(class_names) != num_classes:
                raise CallbackError(
                    f"ConfusionMatrix({num_classes}): there are {len(class_names)} class_names"
                )
        if num_classes is not None and num_classes < 2:
            raise CallbackError(f"ConfusionMatrix({num_classes}): at least 2 classes")
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError as error:
            raise CallbackError(
                "ConfusionMatrix needs matplotlib: pip install matplotlib"
            ) from error
        self.num_classes = num_classes
        self.class_names = None if class_names is None else list(class_names)
        self.split = split
        self.normalize = normalize
        self.function = function or classes_of
        self.tag = tag or f"{split}/confusion_matrix"
        self.matrix: Tensor | None = None
        self._counts: Tensor | None = None
        self._output: Any = None
        self._handle: RemovableHandle | None = None

    def on_evaluate_start(self, runner: Runner, split: str) -> None:
        """Look at what the model gives from now on."""
        self._let_go()
        if split == self.split:
            self._counts = None
            self._handle = runner.unwrapped_model.register_forward_hook(self._keep)

    def on_evaluate_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Count a batch."""
        if self._handle is None:
            return
        given, self._output = self._output, None
        if given is None:
            return
        predicted, target = self.function(batch, given)
        if self._counts is None:
            size = self.num_classes or _outputs(given)
            self._counts = torch.zeros(size, size, dtype=torch.long, device=predicted.device)
        self._counts += count(predicted, target, len(self._counts))

    def on_evaluate_end(self, runner: Runner, split: str, result: Mapping[str, float]) -> None:
        """Add up what all processes have counted, and show it."""
        if split != self.split:
            return
        self._let_go()
        own = None if self._counts is None else self._counts.cpu()
        parts = [part for part in runner.world.gather(own) if part is not None]
        self._counts = None
        if not parts:
            return
        self.matrix = torch.stack(parts).sum(0)
        if runner.is_main_process:
            runner.log_figure(self.tag, self.draw(self.matrix))

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Let go of the model."""
        self._let_go()

    def on_teardown(self, runner: Runner) -> None:
        """Let go of the model."""
        self._let_go()

    def draw(self, matrix: Tensor) -> Any:
        """A figure of matplotlib of a matrix of counts."""
        from matplotlib.figure import Figure

        values = shares(matrix, self.normalize)
        size = len(matrix)
        names = self.class_names or [str(index) for index in range(size)]
        figure = Figure(figsize=(max(4.0, 0.5 * size), max(4.0, 0.5 * size)))
        axes = figure.subplots()
        shown = axes.imshow(values.numpy(), cmap="Blues", vmin=0)
        figure.colorbar(shown)
        axes.set(xlabel="prediction", ylabel="target", title=self.tag)
        axes.set_xticks(range(size), names, rotation=90)
        axes.set_yticks(range(size), names)
        for row in range(size if size <= 20 else 0):  # more would not be read
            for column in range(size):
                value = float(values[row, column])
                text = f"{value:.2f}" if self.normalize else f"{value:.0f}"
                color = "white" if value > float(values.max()) / 2 else "black"
                axes.text(column, row, text, ha="center", va="center", color=color)
        return figure

    def _keep(self, module: Any, inputs: Any, output: Any) -> None:
        self._output = output

    def _let_go(self) -> None:
        handle, self._handle, self._output = self._handle, None, None
        if handle is not None:
            handle.remove()


def classes_of(batch: Any, output: Any) -> tuple[Tensor, Tensor]:
    """The predicted classes and the targets of a batch.

    Raises:
        CallbackError: The batch has no target.

    Example:
        >>> predicted, target = classes_of((None, torch.tensor([1])), torch.tensor([[0.2, 0.8]]))
        >>> predicted.tolist(), target.tolist()
        ([1], [1])
    """
    logits = logits_of(output)
    target = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(batch, list | tuple) and len(batch) > 1:
        target = batch[1]
    if not isinstance(target, Tensor):
        raise CallbackError(
            "ConfusionMatrix: a batch has no target: give `function`, which finds the predicted "
            "classes and the targets"
        )
    is_single = logits.ndim == 1 or logits.shape[1] == 1
    predicted = (logits > 0).long() if is_single else logits.argmax(1)
    return predicted.flatten(), target.flatten().long()


def count(predicted: Tensor, target: Tensor, size: int) -> Tensor:
    """The number of each pair of target (row) and prediction (column); targets below 0 are none."""
    known = (target >= 0) & (target < size) & (predicted < size)
    pairs = torch.where(known, target * size + predicted, size * size)
    counts = torch.zeros(size * size + 1, dtype=torch.long, device=predicted.device)
    counts.scatter_add_(0, pairs, torch.ones_like(pairs))
    return counts[:-1].view(size, size)


def shares(matrix: Tensor, normalize: str | None) -> Tensor:
    """The shares of a matrix of counts; 0 where nothing was counted.

    Example:
        >>> shares(torch.tensor([[1, 3], [0, 0]]), "true").tolist()
        [[0.25, 0.75], [0.0, 0.0]]
    """
    values = matrix.double()
    if normalize is None:
        return values
    whole = {"all": values.sum(), "true": values.sum(1, keepdim=True), "pred": values.sum(0)}
    return values / whole[normalize].clamp_min(1)


def _outputs(output: Any) -> int:
    logits = logits_of(output)
    return max(int(logits.shape[1]) if logits.ndim > 1 else 1, 2)
