"""Logistic regression with L-BFGS on scikit-learn's breast cancer data, all samples in a batch.

The optimizer evaluates the batch as often as its line search wants. `train()` knows that it needs a
closure, and nothing is different from any other training.
"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import TensorDataset

import danling as dl


class Regression(dl.Config):
    experiment_name = "lbfgs"
    seed = 0
    max_epochs = 10  # steps, as each is of all samples
    dataloader = {"batch_size": 569}


def make_data() -> TensorDataset:
    features, labels = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    return TensorDataset(torch.tensor(features, dtype=torch.float32), torch.tensor(labels))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")


config = Regression.parse()
dl.seed_everything(config)
model = nn.Linear(30, 2)
runner = dl.AccelerateRunner(
    config,
    model=model,
    criterion=nn.CrossEntropyLoss(),
    optimizer=make_optimizer(model),
    datasets={"train": make_data()},
)
runner.train()
