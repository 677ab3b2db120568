"""Two tasks, whose weights are learned: which digit it is, and how much ink it took.

The criterion is a module with parameters. It is placed, trained and saved as the model is.

Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses, 2018
(https://arxiv.org/abs/1705.07115).
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import TensorDataset

import danling as dl


class MultiTask(dl.Config):
    experiment_name = "multi-task"
    seed = 0
    max_epochs = 3
    dataloader = {"batch_size": 32}
    lr: float = 3e-3


def make_data() -> TensorDataset:
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32) / 16
    return TensorDataset(images, torch.tensor(digits), images.mean(dim=1))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
        self.digit = nn.Linear(128, 10)
        self.ink = nn.Linear(128, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(image)
        return self.digit(features), self.ink(features).squeeze(1)


class Uncertainty(nn.Module):
    """The sum of the losses, each divided by how uncertain its task is."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(2))

    def forward(self, *losses: Tensor) -> Tensor:
        return (torch.stack(losses) * (-self.log_variance).exp() + self.log_variance).sum()


def losses_of(
    model: nn.Module, criterion: nn.Module, image: Tensor, digit: Tensor, ink: Tensor
) -> dict[str, Tensor]:
    scores, amount = model(image)
    losses = {"digit": cross_entropy(scores, digit), "ink": mse_loss(amount, ink)}
    return {"loss": criterion(*losses.values()), **losses}


class Tasks(dl.AccelerateRunner):
    def train_step(self, batch: list[Tensor]) -> dict[str, Tensor]:
        return losses_of(self.model, self.criterion, *batch)


config = MultiTask.parse()
dl.seed_everything(config)
model, criterion = Network(), Uncertainty()
runner = Tasks(
    config,
    model=model,
    criterion=criterion,
    optimizer=torch.optim.Adam([*model.parameters(), *criterion.parameters()], lr=config.lr),
    datasets={"train": make_data()},
)
runner.train()
