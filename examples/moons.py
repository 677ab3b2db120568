"""A tiny network that tells two noisy half-moons apart, in less than a second.

    python examples/moons.py --optim.lr 0.3 --seed 1

`week.py` runs it thirty times, to have something to try the `danling` command on.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import danling as dl


class Optim(dl.Config):
    lr: float = 0.1
    weight_decay: float = 0.0


class Moons(dl.Config):
    experiment_name = "moons"
    run_name = "mlp"
    seed = 0
    max_epochs = 4
    monitor = "val/accuracy"
    monitor_mode = "max"
    log_interval = 4
    dataloader = {"batch_size": 32}
    optim: Optim


def moons(samples: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    angle = math.pi * torch.rand(samples, generator=generator)
    label = torch.randint(2, (samples,), generator=generator)
    x = torch.where(label == 0, angle.cos(), 1 - angle.cos())
    y = torch.where(label == 0, angle.sin(), 0.5 - angle.sin())
    noise = 0.25 * torch.randn(samples, 2, generator=generator)
    return TensorDataset(torch.stack([x, y], 1) + noise, label)


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float().mean()


config = Moons.parse()
dl.seed_everything(config)
model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
runner = dl.AccelerateRunner(
    config,
    model=model,
    criterion=nn.CrossEntropyLoss(),
    optimizer=torch.optim.SGD(model.parameters(), **config.optim),
    datasets={"train": moons(256, 1), "val": moons(256, 2)},
    metrics={"accuracy": accuracy},
)
runner.train()
