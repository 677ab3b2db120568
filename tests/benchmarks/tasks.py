"""What is trained, and from what it is read: the lines of the tables.

A line is a `Task`: a model, and data in one of the forms in which people have it. Everybody who is
measured trains the same model on the same loader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """One line of a table.

    Attributes:
        name: The line, as the table has it.
        make_model: Makes the model, always with the same weights.
        make_data: Makes this many batches, as a list of them, a loader or a dataset.
        batch_size: The number of samples in a batch of a dataset.
        workers: The number of processes that read a dataset.
        is_small: Whether it is the small perceptron, which Keras has in its own form.
    """

    name: str
    make_model: Callable[[], nn.Module]
    make_data: Callable[[int], Any]
    batch_size: int = 8
    workers: int = 0
    is_small: bool = True

    def loader(self, data: Any, *, shuffle: bool) -> Iterable[Batch]:
        """What a loop reads: a dataset through the loader that everybody writes."""
        if not isinstance(data, Dataset):
            batches: Iterable[Batch] = data  # a list, or a loader
            return batches
        return DataLoader(
            data,
            self.batch_size,
            shuffle=shuffle,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )


class Samples(Dataset[Batch]):
    """Samples in memory, as everybody writes a dataset."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Batch:
        return self.inputs[index], self.targets[index]


class DeclaredSamples(Samples):
    """The same, which declares that reading a sample draws nothing."""

    deterministic = True


class DrawingSamples(Samples):
    """The same with noise, so that every sample draws."""

    def __getitem__(self, index: int) -> Batch:
        return self.inputs[index] + 0.01 * torch.randn(16), self.targets[index]


class DeclaredBatches(Dataset[Batch]):
    """Batches in memory, behind an index: a loader gives them as they are."""

    deterministic = True

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]


def make_perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def make_batches(amount: int) -> list[Batch]:
    torch.manual_seed(0)
    return [(torch.randn(8, 16), torch.randint(0, 4, (8,))) for _ in range(amount)]


def make_samples(amount: int) -> Batch:
    torch.manual_seed(0)
    return torch.randn(8 * amount, 16), torch.randint(0, 4, (8 * amount,))


SMALL = [
    Task("a list of ready batches", make_perceptron, make_batches),
    Task("`TensorDataset`", make_perceptron, lambda n: TensorDataset(*make_samples(n))),
    Task(
        "a DataLoader of whole batches, declared deterministic",
        make_perceptron,
        lambda n: DataLoader(DeclaredBatches(make_batches(n)), batch_size=None),
    ),
    Task(
        "a dataset declared deterministic",
        make_perceptron,
        lambda n: DeclaredSamples(*make_samples(n)),
    ),
    Task("a plain `Dataset`", make_perceptron, lambda n: Samples(*make_samples(n))),
    Task("a `Dataset` that draws", make_perceptron, lambda n: DrawingSamples(*make_samples(n))),
]
"""The smallest work there is, on what people have: all but the mathematics shows."""


class Block(nn.Module):
    """A basic block of a residual network."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(out), nn.BatchNorm2d(out)])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, input: Tensor) -> Tensor:
        output = self.norms[0](self.first(input)).relu()
        output = self.norms[1](self.second(output))
        return (output + self.shortcut(input)).relu()


def make_resnet18() -> nn.Module:
    """ResNet-18 for images of 32x32, with 11 million parameters (He et al., 2015)."""
    torch.manual_seed(0)
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    strides = [1, 1, 2, 1, 2, 1, 2, 1]
    blocks = [Block(a, b, s) for a, b, s in zip(widths, widths[1:], strides, strict=False)]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*stem, *blocks, *head)


class Transformer(nn.Module):
    """A transformer encoder that classifies each token, with 10 million parameters."""

    def __init__(self, words: int = 512, width: int = 320, layers: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(width, 5, 4 * width, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, words)

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.embedding(input)))
        return logits.transpose(1, 2)


def make_transformer() -> nn.Module:
    torch.manual_seed(0)
    return Transformer()


def make_images(amount: int) -> Samples:
    torch.manual_seed(0)
    return Samples(torch.randn(16 * amount, 3, 32, 32), torch.randint(0, 10, (16 * amount,)))


def make_texts(amount: int) -> Samples:
    torch.manual_seed(0)
    texts = torch.randint(0, 512, (4 * amount, 64))
    return Samples(texts, texts.roll(-1, 1))


REALISTIC = [
    Task("ResNet-18, 32x32", make_resnet18, make_images, 16, workers=2, is_small=False),
    Task("transformer, 10 M", make_transformer, make_texts, 4, workers=2, is_small=False),
]
"""Work of a usual size: what is left of the differences in practice."""
