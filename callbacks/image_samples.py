"""Some images of a split, as the model sees them or as it answers them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from danling.callback import Callback
from danling.errors import CallbackError

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["ImageSamples"]


class ImageSamples(Callback):
    """Show some images of a split at its evaluations, as a grid through `runner.log_image`.

    By default these are the inputs of the first batch: the first tensor of shape (samples, 1 or 3
    channels, height, width) in it. `function` makes others of a batch and the output of
    `evaluate_step`, as masks that were predicted. Values are stretched to the range from 0 to 1,
    over the whole grid.

    Of several processes the main one shows its share. It costs a copy of the images to the host per
    evaluation that shows some; a step costs nothing. The number of evaluations is its state.

    Args:
        num_images: The number of images.
        split: The split whose images are shown.
        every_n_evaluations: The number of evaluations of the split from one grid to the next.
        function: The function of batch and output that gives the images, of shape (samples,
            channels, height, width).
        tag: The name that they are shown under; None: `<split>/images`.

    Raises:
        CallbackError: A number is not positive, or what is shown are no images.

    Example:
        >>> ImageSamples(16, split="val").tag
        'val/images'
    """

    name = "image_samples"
    only_watches = True

    def __init__(
        self,
        num_images: int = 8,
        *,
        split: str = "val",
        every_n_evaluations: int = 1,
        function: Callable[[Any, Any], Tensor] | None = None,
        tag: str | None = None,
    ) -> None:
        if min(num_images, every_n_evaluations) < 1:
            raise CallbackError(
                f"ImageSamples({num_images}, every_n_evaluations={every_n_evaluations}): at least 1"
            )
        self.num_images = num_images
        self.split = split
        self.every_n_evaluations = every_n_evaluations
        self.function = function
        self.tag = tag or f"{split}/images"
        self._evaluations = 0
        self._is_due = False

    def on_setup(self, runner: Runner) -> None:
        """Start anew, unless the runner goes on with a training of before."""
        if runner.global_step == 0:
            self._evaluations = 0

    def on_evaluate_start(self, runner: Runner, split: str) -> None:
        """Find out whether this evaluation shows images."""
        self._is_due = split == self.split and self._evaluations % self.every_n_evaluations == 0
        self._evaluations += split == self.split

    def on_evaluate_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Show those of the first batch."""
        if not self._is_due:
            return
        self._is_due = False
        if runner.is_main_process:
            images = self.function(batch, output) if self.function else images_in(batch)
            runner.log_image(self.tag, stretched(images[: self.num_images]))

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Show nothing of an evaluation that failed in a later one."""
        self._is_due = False

    def state_dict(self) -> dict[str, Any]:
        """The number of evaluations."""
        return {"evaluations": self._evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._evaluations = state["evaluations"]


def images_in(batch: Any) -> Tensor:
    """The first tensor in a batch that is a batch of images.

    Raises:
        CallbackError: There is none.

    Example:
        >>> images_in((torch.rand(2, 28, 28), torch.zeros(2))).shape
        torch.Size([2, 1, 28, 28])
    """
    for value in _values(batch):
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] in (1, 3):
            return value
        if isinstance(value, Tensor) and value.ndim == 3:
            return value[:, None]
    shapes = [tuple(value.shape) for value in _values(batch) if isinstance(value, Tensor)]
    raise CallbackError(
        f"ImageSamples: no images of 1 or 3 channels are in a batch of shapes {shapes}: give "
        "`function`, which makes some of it"
    )


def stretched(images: Tensor) -> Tensor:
    """Images with their values stretched to the range from 0 to 1.

    Example:
        >>> stretched(torch.tensor([-1.0, 0.0, 3.0])).tolist()
        [0.0, 0.25, 1.0]
    """
    values = images.detach().float()
    low, high = values.amin(), values.amax()
    return (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)


def _values(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        yield from batch.values()
    elif isinstance(batch, list | tuple):
        yield from batch
    else:
        yield batch
