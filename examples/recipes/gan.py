"""A generator against a critic with a gradient penalty, on scikit-learn's digits.

Two models have two optimizers that step apart. A step of the critic has two backward passes: that
of the penalty, which `torch.autograd.grad` makes, and that of the loss.

Gulrajani et al., Improved Training of Wasserstein GANs, 2017 (https://arxiv.org/abs/1704.00028).
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import danling as dl


class Gan(dl.Config):
    experiment_name = "gan"
    seed = 0
    max_epochs = 5
    dataloader = {"batch_size": 32}
    lr: float = 1e-3
    noise: int = 16  # numbers that an image is made of
    penalty: float = 10.0


def make_data() -> TensorDataset:
    pixels, _ = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 8 - 1)


def make_models() -> dict[str, nn.Module]:
    generator = nn.Sequential(
        nn.Linear(config.noise, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh()
    )
    critic = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))
    return {"generator": generator, "critic": critic}


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=config.lr, betas=(0.0, 0.9))


def critic_loss(generator: nn.Module, critic: nn.Module, real: Tensor) -> Tensor:
    fake = generator(torch.randn(len(real), config.noise, device=real.device)).detach()
    share = torch.rand(len(real), 1, device=real.device)
    mixed = (share * real + (1 - share) * fake).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    penalty = (slopes.norm(dim=1) - 1).square().mean()
    loss: Tensor = critic(fake).mean() - critic(real).mean() + config.penalty * penalty
    return loss


def generator_loss(generator: nn.Module, critic: nn.Module, real: Tensor) -> Tensor:
    fake = generator(torch.randn(len(real), config.noise, device=real.device))
    loss: Tensor = -critic(fake).mean()
    return loss


class Adversaries(dl.AccelerateRunner):
    def train(self) -> None:
        with self:
            for _ in self.epochs():
                for (real,) in self.batches():
                    self.step(critic_loss(**self.model, real=real), "critic")
                    self.step(generator_loss(**self.model, real=real), "generator")


config = Gan.parse()
dl.seed_everything(config)
models = make_models()
runner = Adversaries(
    config,
    model=models,
    optimizer={name: make_optimizer(model) for name, model in models.items()},
    datasets={"train": make_data()},
)
runner.train()
