"""Sharpness-aware minimisation on scikit-learn's digits.

The optimizer evaluates each batch twice: where the weights are, and where they are worst nearby.
`train()` sees that its `step` needs a closure, and gives it one.

Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, 2021
(https://arxiv.org/abs/2010.01412).
"""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import danling as dl


class Sharpness(dl.Config):
    experiment_name = "sam"
    seed = 0
    max_epochs = 5
    dataloader = {"batch_size": 32}
    lr: float = 0.05
    radius: float = 0.05  # how far away the second evaluation is


class SAM(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]  # it needs one
        evaluate = torch.enable_grad()(closure)
        loss: Tensor = evaluate()
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        ways = [p.grad * (config.radius / (norm + 1e-12)) for p in parameters]
        torch._foreach_add_(parameters, ways)
        evaluate()
        torch._foreach_sub_(parameters, ways)
        super().step()
        return loss


def make_data() -> TensorDataset:
    pixels, digits = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits))


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


config = Sharpness.parse()
dl.seed_everything(config)
model = make_model()
data = make_data()
runner = dl.AccelerateRunner(
    config,
    model=model,
    criterion=nn.CrossEntropyLoss(),
    optimizer=SAM(model.parameters(), lr=config.lr, momentum=0.9),
    datasets={"train": Subset(data, range(1500)), "val": Subset(data, range(1500, 1797))},
)
runner.train()
