"""A loop of your own: train on the hard batches only, evaluate after each epoch, stop when done.

Every hook fires as in `runner.train()`: results, checkpoints and logs are made as always.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset, random_split

import danling as dl


class OwnLoop(dl.Config):
    experiment_name = "own-loop"
    seed = 0
    max_epochs = 10
    monitor = "val/accuracy"
    monitor_mode = "max"
    dataloader = {"batch_size": 16}
    easy: float = 0.02  # loss below which a batch teaches nothing


config = OwnLoop.parse()
dl.seed_everything(config)

pixels, digits = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32) / 16
train, val = random_split(TensorDataset(images, torch.tensor(digits)), [1500, 297])
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(dim=1) == target).float().mean()


runner = dl.AccelerateRunner(
    config,
    model=model,
    criterion=nn.CrossEntropyLoss(),
    optimizer=torch.optim.Adam(model.parameters(), lr=3e-3),
    datasets={"train": train, "val": val},
    metrics={"accuracy": accuracy},
)

with runner:
    for epoch in runner.epochs():
        skipped = 0
        for batch in runner.batches("train"):
            output = runner.train_step(batch)  # {"loss": ..., "accuracy": ...}
            if output["loss"].item() < config.easy:
                skipped += 1  # nothing to learn here: no backward, no step
                continue
            runner.step(output)  # backward, clipping, optimizer, scheduler

        result = runner.evaluate("val")
        print(f"epoch {epoch}: {result['accuracy']:.2%}, {skipped} easy batches skipped")
        if result["accuracy"] > 0.98:
            runner.stop("good enough")

print(f"best validation accuracy {runner.best_score:.2%} after {runner.global_step} steps")
print(f"results, checkpoints and log: {runner.dir}")
