"""The methods of a runner that show more than numbers, on whatever is attached that can."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MediaLog"]


class MediaLog:
    """Hands images, texts and the like to the callbacks that have a method of the same name.

    `TensorBoard` has all of them; any callback may define `log_image(runner, tag, image)` and be
    asked as well. Where there is none, nothing happens. They cost a copy to the host: call them on
    a trigger, not on every step.

    Example:
        >>> runner.log_image("sample", images[0])  # doctest: +SKIP
    """

    callbacks: Iterable[Any]

    def log_text(self, tag: str, markdown: str) -> None:
        """Show a text, written in Markdown."""
        self._show("log_text", tag, markdown)

    def log_image(self, tag: str, image: Any) -> None:
        """Show an image, or a batch of them as a grid: see `danling.tensorboard.media.image`."""
        self._show("log_image", tag, image)

    def log_figure(self, tag: str, figure: Any) -> None:
        """Show a figure of matplotlib; it stays open."""
        self._show("log_figure", tag, figure)

    def log_audio(self, tag: str, samples: Tensor, sample_rate: int = 44_100) -> None:
        """Let a sound be heard: one channel, samples from -1 to 1."""
        self._show("log_audio", tag, samples, sample_rate)

    def log_histogram(self, tag: str, values: Tensor) -> None:
        """Show how values are distributed."""
        self._show("log_histogram", tag, values)

    def log_pr_curve(self, tag: str, labels: Tensor, scores: Tensor) -> None:
        """Show precision against recall: labels of 0 and 1, and probabilities."""
        self._show("log_pr_curve", tag, labels, scores)

    def log_embedding(self, tag: str, vectors: Tensor, labels: Sequence[Any] = ()) -> None:
        """Show points of many dimensions, a row each, with a label each."""
        self._show("log_embedding", tag, vectors, labels)

    def log_graph(self, inputs: Any) -> None:
        """Show the graph of the model, traced with an example of its input."""
        self._show("log_graph", inputs)

    def _show(self, method: str, *arguments: Any) -> None:
        for callback in list(self.callbacks):
            show = getattr(callback, method, None)
            if show is not None:
                show(self, *arguments)
