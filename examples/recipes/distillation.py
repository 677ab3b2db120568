"""Distillation: a small network learns from a large one, which is trained before.

The teacher is a model that no optimizer trains: it is placed on the device, and stays in the mode
that it was handed over in.

Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (https://arxiv.org/abs/1503.02531).
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.data import TensorDataset

import danling as dl


class Distillation(dl.Config):
    experiment_name = "distillation"
    seed = 0
    max_epochs = 3
    dataloader = {"batch_size": 32}
    temperature: float = 4.0


def make_data() -> TensorDataset:
    pixels, digits = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits))


def make_model(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 10))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def loss_of(teacher: nn.Module, student: nn.Module, image: Tensor, digit: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = teacher(image).div(config.temperature).log_softmax(dim=1)
    logits = student(image)
    shown = logits.div(config.temperature).log_softmax(dim=1)
    soft = kl_div(shown, wanted, reduction="batchmean", log_target=True)
    return cross_entropy(logits, digit) + config.temperature**2 * soft


class Distilled(dl.AccelerateRunner):
    def train_step(self, batch: list[Tensor]) -> Tensor:
        return loss_of(self.model["teacher"], self.model["student"], *batch)


config = Distillation.parse()
dl.seed_everything(config)
teacher = make_model(256)
dl.AccelerateRunner(
    Distillation(config, run_name="teacher"),
    model=teacher,
    criterion=nn.CrossEntropyLoss(),
    optimizer=make_optimizer(teacher),
    datasets={"train": make_data()},
).train()

config.run_name = "student"
dl.seed_everything(config)
student = make_model(16)
runner = Distilled(
    config,
    model={"teacher": teacher.eval().requires_grad_(False), "student": student},
    optimizer=make_optimizer(student),
    datasets={"train": make_data()},
)
runner.train()
