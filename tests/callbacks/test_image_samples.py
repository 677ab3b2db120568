from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from danling.callback import Callback
from danling.callbacks import ImageSamples, TensorBoard
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner


class Images(TinyRunner):
    """The tiny training on images of 2 by 2 pixels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.datasets = {
            split: TensorDataset(data.tensors[0].view(-1, 1, 2, 2), data.tensors[1])
            for split, data in self.datasets.items()
        }
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)


class TestContract(CallbackContract):
    runner_class = Images

    def make(self):
        return ImageSamples(3)


class Shown(Callback):
    """Keeps what is shown, as a tracker does."""

    def __init__(self) -> None:
        self.images: list[tuple[str, int, Tensor]] = []

    def log_image(self, runner: Any, tag: str, image: Tensor) -> None:
        self.images.append((tag, runner.global_step, image))


def test_the_first_images_of_the_split_are_shown_at_its_evaluations():
    shown = Shown()
    runner = Images({"max_epochs": 5}, callbacks=[ImageSamples(3, every_n_evaluations=2), shown])
    runner.train()
    runner.evaluate("test")

    assert [(tag, step) for tag, step, _ in shown.images] == [
        ("val/images", 4),
        ("val/images", 12),
        ("val/images", 20),
    ]
    first = torch.stack([runner.datasets["val"][index][0] for index in range(3)])
    image = shown.images[0][2]
    assert (float(image.min()), float(image.max())) == (0.0, 1.0)
    assert torch.allclose(image, (first - first.min()) / (first.max() - first.min()))


def test_a_function_makes_images_of_the_output():
    shown = Shown()

    def mask(batch: Any, output: Any) -> Tensor:
        return batch[0] * 0 + output["loss"]

    runner = Images(callbacks=[ImageSamples(2, function=mask, tag="masks"), shown])
    runner.train()

    assert [tag for tag, _, _ in shown.images] == ["masks", "masks"]
    assert shown.images[0][2].shape == (2, 1, 2, 2)


def test_tensorboard_has_them(tmp_path):
    event_accumulator: Any = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    runner = Images(
        {"project_root": str(tmp_path)},
        callbacks=[ImageSamples(), TensorBoard()],
        default_callbacks=True,
    )
    runner.train()

    events = event_accumulator.EventAccumulator(str(runner.dir))
    events.Reload()
    assert [image.step for image in events.Images("val/images")] == [4, 8]


def test_a_batch_without_images_says_what_to_do():
    with pytest.raises(CallbackError, match=r"shapes \[\(4, 4\), \(4,\)\]: give `function`"):
        TinyRunner(callbacks=[ImageSamples()]).train()


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="at least 1"):
        ImageSamples(0)
