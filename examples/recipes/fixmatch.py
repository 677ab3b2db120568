"""FixMatch: 100 digits with labels and 1,397 without, read side by side from two loaders.

What the model is sure of for an image that is hardly changed becomes the label of the same image
when it is changed much. Each split has its own batch size, and its own place in the epoch and in
checkpoints.

Sohn et al., FixMatch, 2020 (https://arxiv.org/abs/2001.07685).
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, Subset, TensorDataset

import danling as dl


class FixMatch(dl.Config):
    experiment_name = "fixmatch"
    seed = 0
    max_epochs = 3
    dataloader = {
        "labelled": {"batch_size": 16, "shuffle": True},
        "unlabelled": {"batch_size": 64, "shuffle": True},
        "val": {"batch_size": 300},
    }
    lr: float = 0.1
    sure: float = 0.9  # probability from which on a guess is a label


def make_data() -> dict[str, Dataset[Any]]:
    pixels, digits = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits))
    parts = {"labelled": range(100), "unlabelled": range(100, 1497), "val": range(1497, 1797)}
    return {split: Subset(data, part) for split, part in parts.items()}


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def loss_of(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    (image, digit), (unlabelled, _) = batch["labelled"], batch["unlabelled"]
    weak = unlabelled + 0.05 * torch.randn_like(unlabelled)
    strong = unlabelled * (torch.rand_like(unlabelled) > 0.3)
    with torch.no_grad():
        probability, guess = model(weak).softmax(dim=1).max(dim=1)
    errors = cross_entropy(model(strong), guess, reduction="none") * (probability > config.sure)
    loss: Tensor = cross_entropy(model(image), digit) + errors.mean()
    return loss


class SemiSupervised(dl.AccelerateRunner):
    def train(self) -> None:
        with self:
            for _ in self.epochs():
                for batch in self.batches("labelled", "unlabelled", mode="max_size_cycle"):
                    self.step(loss_of(self.model, batch))
                self.evaluate("val")


config = FixMatch.parse()
dl.seed_everything(config)
model = make_model()
runner = SemiSupervised(
    config,
    model=model,
    criterion=nn.CrossEntropyLoss(),
    optimizer=torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9),
    datasets=make_data(),
)
runner.train()
