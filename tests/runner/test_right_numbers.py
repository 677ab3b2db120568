"""The numbers of a training are the true ones, or a line says that they may not be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import danling as dl

VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 70.0, 800.0, 900.0, 1000.0])


def make(config: dict[str, Any] | None = None, **parts: Any) -> dl.AccelerateRunner:
    settings = {"seed": 0, "max_epochs": 1, "accelerate": {"cpu": True}, **(config or {})}
    model = nn.Linear(1, 1)
    given = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.0)} | parts
    return dl.AccelerateRunner(settings, default_callbacks=False, **given)


# Means over uneven batches


class Samples(Dataset[Any]):
    def __len__(self) -> int:
        return len(VALUES)

    def __getitem__(self, index: int) -> Tensor:
        return VALUES[index]


class Graphs:
    def __init__(self, values: list[Tensor]) -> None:
        self.x, self.num_graphs = torch.stack(values), len(values)

    def to(self, device: Any) -> Graphs:
        return self


def detection(values: list[Tensor]) -> Any:
    images = [value.expand(3, 4 + index, 5) for index, value in enumerate(values)]
    return images, [{"boxes": torch.zeros(index + 1, 4)} for index in range(len(values))]


def edges(values: list[Tensor]) -> Any:
    return {"edge_index": torch.zeros(2, 17), "y": torch.stack(values)}


def dicts(values: list[Tensor]) -> Any:
    return [{"y": value.expand(3)} for value in values]


def time_first(values: list[Tensor]) -> Any:
    return torch.stack(values).expand(6, len(values)), torch.stack(values).expand(6, len(values))


SHAPES = {
    "detection": (detection, lambda batch: torch.stack([image.mean() for image in batch[0]])),
    "graphs": (Graphs, lambda batch: batch.x),
    "edges": (edges, lambda batch: batch["y"]),
    "dicts": (dicts, lambda batch: torch.stack([sample["y"].mean() for sample in batch])),
    "time first": (time_first, lambda batch: batch[0].mean(0)),
}


def means(batch_shape: str, by: str) -> dict[str, Any]:
    collate, values_of = SHAPES[batch_shape]
    batches = DataLoader(Samples(), batch_size=4, collate_fn=collate)
    data: dict[str, Any] = {"datasets": {"train": Samples(), "val": Samples()}}
    if by == "DataLoader":
        data = {"dataloaders": {"train": batches, "val": batches}}
    elif by == "iterable":
        data = {"dataloaders": {"train": list(batches), "val": list(batches)}}

    class Measuring(dl.AccelerateRunner):
        def train_step(self, batch: Any) -> Any:
            return {"loss": values_of(batch).mean() + 0.0 * self.model.weight.sum()}

        evaluate_step = train_step

    model = nn.Linear(1, 1)
    runner = Measuring(
        {
            "seed": 0,
            "max_epochs": 1,
            "accelerate": {"cpu": True},
            "evaluate_every": "1 epoch",
            "dataloader": {"batch_size": 4, "collate_fn": collate} if "datasets" in data else {},
        },
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        default_callbacks=False,
        **data,
    )
    runner.train()
    assert runner.latest_result is not None
    return runner.latest_result


@pytest.mark.parametrize("batch_shape", SHAPES)
def test_the_mean_over_uneven_batches_that_a_loader_makes_is_the_true_one(batch_shape: str) -> None:
    result = means(batch_shape, "DataLoader")

    for split in ("train", "val"):
        assert result[split]["loss"] == pytest.approx(VALUES.mean().item(), rel=1e-6)


@pytest.mark.parametrize("batch_shape", ["detection", "graphs", "dicts"])
def test_so_it_is_of_batches_that_say_what_they_hold(batch_shape: str, caplog: Any) -> None:
    result = means(batch_shape, "iterable")

    for split in ("train", "val"):
        assert result[split]["loss"] == pytest.approx(VALUES.mean().item(), rel=1e-6)
    assert '"n"' not in caplog.text


def test_batches_that_nobody_knows_the_size_of_are_told_of_once(caplog: Any) -> None:
    means("edges", "iterable")

    assert caplog.text.count('returns the number as "n"') == 1
