"""Truncated back-propagation through time: letters of Python's manual, read in one long go.

Sixteen places of the text are read side by side, and each batch goes on where the one before ended.
The hidden state is a buffer of the model: a checkpoint has it, and a resumed run goes on with it.
"""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import danling as dl


class Letters(dl.Config):
    experiment_name = "truncated-backpropagation"
    seed = 0
    max_epochs = 3
    max_grad_norm = 1.0
    places: int = 16
    letters: int = 32  # letters of each place in a batch: gradients go no further back
    width: int = 64


class Reader(nn.Module):
    hidden: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, config.width)
        self.recurrent = nn.GRU(config.width, config.width, batch_first=True)
        self.head = nn.Linear(config.width, 128)
        self.register_buffer("hidden", torch.zeros(1, config.places, config.width))

    def forward(self, letters: Tensor) -> Tensor:
        outputs, hidden = self.recurrent(self.embedding(letters), self.hidden)
        self.hidden = hidden.detach()
        logits: Tensor = self.head(outputs)
        return logits.mT


def make_batches() -> list[tuple[Tensor, Tensor]]:
    text = "".join(topics.values())[:40000].encode("ascii", "replace")
    codes = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    lines = codes[: len(codes) // config.places * config.places].view(config.places, -1)
    starts = range(0, lines.shape[1] - config.letters, config.letters)
    parts = [lines[:, start : start + config.letters + 1] for start in starts]
    return [(part[:, :-1], part[:, 1:]) for part in parts]


class Reading(dl.AccelerateRunner):
    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        if self.batch_index == 0:
            self.unwrapped_model.hidden.zero_()
        letters, following = batch
        return cross_entropy(self.model(letters), following)


config = Letters.parse()
dl.seed_everything(config)
model = Reader()
runner = Reading(
    config,
    model=model,
    optimizer=torch.optim.Adam(model.parameters(), lr=3e-3),
    dataloaders={"train": make_batches()},
)
runner.train()
