"""CLIP: the upper and the lower half of a digit find each other among all halves of the batch.

The negatives of a sample are on all processes: `gather` brings them together, with their gradients.

    torchrun --nproc-per-node 2 examples/recipes/clip.py

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021
(https://arxiv.org/abs/2103.00020).
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import TensorDataset

import danling as dl


class Clip(dl.Config):
    experiment_name = "clip"
    seed = 0
    max_epochs = 3
    dataloader = {"batch_size": 32, "drop_last": True}
    lr: float = 1e-3


def make_data() -> TensorDataset:
    pixels, _ = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32) / 16
    return TensorDataset(images[:, :32], images[:, 32:])


class Encoders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.upper = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
        self.lower = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        return normalize(self.upper(upper)) * self.scale.exp(), normalize(self.lower(lower))


def contrast(upper: Tensor, lower: Tensor) -> Tensor:
    logits = upper @ lower.T
    target = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


class Contrastive(dl.AccelerateRunner):
    def train_step(self, batch: list[Tensor]) -> Tensor:
        return contrast(*(self.gather(features) for features in self.model(*batch)))

    def gather(self, features: Tensor) -> Tensor:
        if not self.distributed:
            return features
        return torch.cat(all_gather(features))  # type: ignore[no-untyped-call]  # of torch


config = Clip.parse()
dl.seed_everything(config)
model = Encoders()
runner = Contrastive(
    config,
    model=model,
    optimizer=torch.optim.Adam(model.parameters(), lr=config.lr),
    datasets={"train": make_data()},
)
runner.train()
