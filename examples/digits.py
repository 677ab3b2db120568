"""Handwritten digits: a small convolutional network on scikit-learn's 1,797 images.

Every key of the config can be set: python examples/digits.py --max_epochs 2 --optim.lr 1e-2
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset, random_split

import danling as dl
from danling.callbacks import EarlyStopping, TensorBoard


class Optim(dl.Config):
    lr: float = 3e-3
    weight_decay: float = 0.01


class Digits(dl.Config):
    experiment_name = "digits"
    seed = 0
    max_epochs = 15
    monitor = "val/accuracy"
    monitor_mode = "max"
    scheduler_interval = "epoch"
    log_interval = 10  # steps, of which an epoch has 19
    dataloader = {"batch_size": 64}
    optim: Optim


config = Digits.parse()  # what is above, then what the command line says
dl.seed_everything(config)  # before anything random happens

pixels, digits = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
train, val, test = random_split(TensorDataset(images, torch.tensor(digits)), [1197, 300, 300])

model = nn.Sequential(
    nn.Conv2d(1, 32, kernel_size=3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Conv2d(32, 64, kernel_size=3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(64 * 4 * 4, 10),
)
optimizer = torch.optim.AdamW(model.parameters(), **config.optim)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.max_epochs)


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(dim=1) == target).float().mean()


runner = dl.AccelerateRunner(
    config,
    model=model,
    criterion=nn.CrossEntropyLoss(),
    optimizer=optimizer,
    scheduler=scheduler,
    datasets={"train": train, "val": val, "test": test},
    metrics={"accuracy": accuracy},
    callbacks=[TensorBoard(), EarlyStopping(patience=8)],
)
runner.train()

print("\nepoch  train loss  val loss  val accuracy")
for result in runner.results:
    if "val" not in result:
        continue  # an epoch that --max_steps cut
    on_train, on_val = result["train"], result["val"]
    print(
        f"{result['epoch']:5}  {on_train['loss']:10.4f}  {on_val['loss']:8.4f}"
        f"  {on_val['accuracy']:12.2%}"
    )
print(f"best validation accuracy: {runner.best_score:.2%}")
runner.load_checkpoint(runner.checkpoint_dir / "best.pth")  # its weights, not the last
print(f"test accuracy:            {runner.evaluate('test')['accuracy']:.2%}")
print(f"\nresults, checkpoints and log: {runner.dir}")
print(f"curves in the browser:        tensorboard --logdir {config.project_root}")
