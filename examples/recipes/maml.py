"""MAML: weights from which one gradient step on five points finds a sine wave.

Each step draws waves of its own. The inner step keeps its graph, so that the outer loss is
differentiated through it; the runner sees one loss, as always.

Finn et al., Model-Agnostic Meta-Learning, 2017 (https://arxiv.org/abs/1703.03400).
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

import danling as dl


class Waves(dl.Config):
    experiment_name = "maml"
    seed = 0
    max_steps = 200
    lr: float = 1e-3
    inner_lr: float = 0.01
    waves: int = 8  # tasks of a step
    points: int = 5  # points that the inner step, and the outer loss, see of each wave


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )


def draw_wave(device: torch.device) -> tuple[Tensor, Tensor]:
    x = 10 * torch.rand(2 * config.points, 1, device=device) - 5
    height, shift = torch.rand(2, device=device)
    return x, (0.1 + 4.9 * height) * torch.sin(x + torch.pi * shift)


def loss_of(model: nn.Module, device: torch.device) -> Tensor:
    losses = []
    for _ in range(config.waves):
        x, y = draw_wave(device)
        weights: dict[str, Tensor] = dict(model.named_parameters())
        loss = mse_loss(functional_call(model, weights, x[: config.points]), y[: config.points])
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        moved = {
            name: weight - config.inner_lr * slope
            for (name, weight), slope in zip(weights.items(), slopes, strict=True)
        }
        outer = functional_call(model, moved, x[config.points :])
        losses.append(mse_loss(outer, y[config.points :]))
    return torch.stack(losses).mean()


class MetaLearning(dl.AccelerateRunner):
    def train_step(self, batch: None) -> Tensor:
        return loss_of(self.model, self.device)


config = Waves.parse()
dl.seed_everything(config)
model = make_model()
runner = MetaLearning(
    config, model=model, optimizer=torch.optim.Adam(model.parameters(), lr=config.lr)
)
runner.train()
