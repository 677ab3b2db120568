"""A language model on sentences of uneven lengths, whose loss is the mean over tokens.

Four batches make an optimizer step. With `accumulate = "samples"` each weighs as much as it has
tokens, so that gradients and the logged loss are those of one large batch, however it is split.
"""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

import danling as dl


class Sentences(dl.Config):
    experiment_name = "token-weights"
    seed = 0
    max_epochs = 3
    accumulate = "samples"
    accelerate = {"gradient_accumulation_steps": 4}
    dataloader = {"batch_size": 8}
    lr: float = 3e-3
    width: int = 32


def make_data() -> list[Tensor]:
    sentences = "".join(topics.values())[:40000].encode("ascii", "replace").split(b". ")
    return [torch.tensor(list(sentence[:128])) for sentence in sentences if len(sentence) > 1]


def pad(sentences: list[Tensor]) -> Tensor:
    return pad_sequence(sentences, batch_first=True, padding_value=-100)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, config.width)
        self.recurrent = nn.GRU(config.width, config.width, batch_first=True)
        self.head = nn.Linear(config.width, 128)

    def forward(self, letters: Tensor) -> Tensor:
        outputs, _ = self.recurrent(self.embedding(letters.clamp(min=0)))
        logits: Tensor = self.head(outputs)
        return logits.mT


class Weighing(dl.AccelerateRunner):
    def train_step(self, batch: Tensor) -> dict[str, Tensor]:
        following = batch[:, 1:]
        loss = cross_entropy(self.model(batch[:, :-1]), following)  # it ignores -100
        return {"loss": loss, "n": (following >= 0).sum()}


config = Sentences.parse()
dl.seed_everything(config)
model = Model()
runner = Weighing(
    config,
    model=model,
    optimizer=torch.optim.Adam(model.parameters(), lr=config.lr),
    datasets={"train": make_data()},
    collate_fn=pad,
)
runner.train()
