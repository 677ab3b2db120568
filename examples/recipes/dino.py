"""Self-distillation without labels: a student learns what its teacher sees in another view.

The teacher is an average of the student's weights. It is a model that no optimizer trains: it is
placed on the device and saved, and a callback moves it after each step.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers (DINO), 2021
(https://arxiv.org/abs/2104.14294).
"""

from copy import deepcopy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import danling as dl


class Dino(dl.Config):
    experiment_name = "dino"
    seed = 0
    max_epochs = 3
    dataloader = {"batch_size": 64}
    momentum: float = 0.98  # share of the teacher's weights that stays in a step
    temperature: float = 0.2


def make_data() -> TensorDataset:
    pixels, _ = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16)


class Centre(nn.Module):
    """The mean output of the teacher: without it all images would get the same one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(width))

    def forward(self, output: Tensor) -> Tensor:
        centred = output - self.mean
        self.mean.lerp_(output.mean(dim=0), 0.1)
        return centred


def make_models() -> dict[str, nn.Module]:
    student = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32))
    teacher = deepcopy(student).requires_grad_(False)
    return {"student": student, "teacher": teacher, "centre": Centre(32)}


def loss_of(models: dict[str, nn.Module], image: Tensor) -> Tensor:
    first, second = (image + 0.1 * torch.randn_like(image) for _ in range(2))
    with torch.no_grad():
        targets = models["centre"](models["teacher"](first)).div(config.temperature / 2)
    logits = models["student"](second).div(config.temperature)
    return nn.functional.cross_entropy(logits, targets.softmax(dim=1))


@torch.no_grad()
def follow(student: nn.Module, teacher: nn.Module) -> None:
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - config.momentum)


class SelfDistillation(dl.AccelerateRunner):
    def train_step(self, batch: list[Tensor]) -> Tensor:
        return loss_of(self.model, batch[0])


class MoveTeacher(dl.Callback):
    def on_step(self, runner: dl.AccelerateRunner) -> None:
        models = runner.unwrapped_model
        follow(models["student"], models["teacher"])


config = Dino.parse()
dl.seed_everything(config)
models = make_models()
runner = SelfDistillation(
    config,
    model=models,
    optimizer=torch.optim.AdamW(models["student"].parameters(), lr=1e-3),
    datasets={"train": make_data()},
    callbacks=[MoveTeacher()],
)
runner.train()
