"""Several processes train one model; the same file runs on one, on CPUs or on GPUs.

    torchrun --nproc-per-node 2 examples/distributed.py
    accelerate launch --multi_gpu --num_processes 2 examples/distributed.py

Without GPUs set ACCELERATE_USE_CPU=true. With --resume auto it goes on after an interruption; with
--elastic true also on another number of processes.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset, random_split

import danling as dl
from danling.callbacks import EarlyStopping


class Distributed(dl.Config):
    experiment_name = "digits"
    run_name = "distributed"
    seed = 0
    max_epochs = 8
    monitor = "val/accuracy"
    monitor_mode = "max"
    global_batch_size: int = 64  # of all processes together
    lr: float = 3e-3


config = Distributed.parse()
dl.seed_everything(config)  # all processes build the same weights and the same splits

pixels, digits = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32) / 16
train, val, test = random_split(TensorDataset(images, torch.tensor(digits)), [1197, 300, 300])


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(dim=1) == target).float().mean()


class Digits(dl.AccelerateRunner):
    """Every process hands over all of the data, and the runner gives each its share."""

    def __init__(self, config: Distributed) -> None:
        super().__init__(config, metrics={"accuracy": accuracy}, callbacks=[EarlyStopping()])
        self.config.dataloader.batch_size = config.global_batch_size // self.world_size
        self.model = nn.Sequential(
            nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)
        )
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr)
        self.datasets = {"train": train, "val": val, "test": test}


runner = Digits(config)
runner.train()

result = runner.evaluate("test")  # a call that all processes make, and all get the result of
predictions = runner.predict("test").argmax(dim=1)  # each sample once, in the order of the dataset
targets = torch.stack([test[index][1] for index in range(len(test))])
if runner.is_main_process:  # what only one is to do: print, draw, upload
    batch = config.global_batch_size
    print(f"{runner.world_size} processes, {runner.global_step} steps of {batch}")
    print(f"test accuracy: {result['accuracy']:.2%}, {len(predictions)} predictions")
    print(f"the same from them: {(predictions == targets).float().mean():.2%}")
    print(f"results, checkpoints and log: {runner.dir}")
