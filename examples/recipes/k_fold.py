"""Cross-validation: a run for each fold, and the mean of what they reach.

Each fold has a name, and so a directory of its own. A fold that was interrupted goes on when the
script is started again with `--resume auto`.
"""

from statistics import mean, stdev

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import danling as dl


class CrossValidation(dl.Config):
    experiment_name = "k-fold"
    seed = 0
    max_epochs = 3
    monitor = "val/accuracy"
    monitor_mode = "max"
    dataloader = {"batch_size": 32}
    lr: float = 0.1
    folds: int = 3
    fold: int = 0  # the number of the fold of a run


def make_data() -> TensorDataset:
    pixels, digits = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits))


def split(data: TensorDataset) -> list[tuple[list[int], list[int]]]:
    folds = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
    return [(train.tolist(), val.tolist()) for train, val in folds.split(*data.tensors)]


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(dim=1) == target).float().mean()


def train_fold(number: int, train: list[int], val: list[int]) -> dl.AccelerateRunner:
    own = CrossValidation(config, run_name=f"fold-{number}", fold=number)
    dl.seed_everything(own)
    model = make_model()
    runner = dl.AccelerateRunner(
        own,
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=config.lr),
        datasets={"train": Subset(data, train), "val": Subset(data, val)},
        metrics={"accuracy": accuracy},
    )
    runner.train()
    return runner


config = CrossValidation.parse()
data = make_data()
runners = [train_fold(number, *parts) for number, parts in enumerate(split(data))]
scores = [runner.best_score or 0.0 for runner in runners]
print(f"accuracy {mean(scores):.2%}, with a deviation of {stdev(scores):.2%} between folds")
