"""A curriculum: training begins with the digits that are easy, and gets more of them in each epoch.

What is assigned to `datasets` is used from the next epoch on; totals, progress and the log follow.
A run that is resumed needs the assignment of its epoch: the callback makes it again.

Bengio et al., Curriculum Learning, 2009.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import danling as dl


class Learning(dl.Config):
    experiment_name = "curriculum"
    seed = 0
    max_epochs = 5
    dataloader = {"batch_size": 32}
    lr: float = 0.1
    begin: float = 0.4  # share of the samples in the first epoch; there are all in the last
    grow: float = 0.15  # what is added in each epoch


def make_data() -> TensorDataset:
    """The digits, those first that are most like the mean of their class."""
    pixels, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = pixels.float() / 16
    means = torch.stack([images[digits == digit].mean(dim=0) for digit in range(10)])
    order = (images - means[digits]).norm(dim=1).argsort(stable=True)
    return TensorDataset(images[order], digits[order])


def easiest(data: TensorDataset, epoch: int) -> Subset[tuple[Tensor, ...]]:
    share = min(config.begin + config.grow * epoch, 1.0)
    return Subset(data, range(round(share * len(data))))


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


class Curriculum(dl.Callback):
    """Gives the runner the samples of each epoch."""

    def on_setup(self, runner: dl.AccelerateRunner) -> None:
        self.datasets = runner.datasets
        self.set(0)

    def on_epoch_start(self, runner: dl.AccelerateRunner) -> None:
        self.set(runner.epoch)

    def set(self, epoch: int) -> None:
        self.epoch = epoch
        self.datasets["train"] = easiest(data, epoch)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.set(state["epoch"])


config = Learning.parse()
dl.seed_everything(config)
data = make_data()
model = make_model()
runner = dl.AccelerateRunner(
    config,
    model=model,
    criterion=nn.CrossEntropyLoss(),
    optimizer=torch.optim.SGD(model.parameters(), lr=config.lr),
    datasets={"train": data},
    callbacks=[Curriculum()],
)
runner.train()
