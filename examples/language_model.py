"""A language model: a small transformer learns the text of Python's own manual, letter by letter.

A wider model writes better: python examples/language_model.py --max_steps 2000 --width 192
"""

import math
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

import danling as dl


class Manual(dl.Config):
    experiment_name = "language-model"
    seed = 0
    max_steps = 300
    evaluate_every = "100 steps"
    max_grad_norm = 1.0
    dataloader = {"batch_size": 32}
    context: int = 64  # letters that the model sees
    width: int = 96


config = Manual.parse()
dl.seed_everything(config)

text = "\n".join(topics.values())
letters = sorted(set(text))
codes = torch.tensor([letters.index(letter) for letter in text])
windows = codes.unfold(0, size=config.context + 1, step=config.context + 1)
samples = [{"letters": window[:-1], "following": window[1:]} for window in windows]
held_out = len(samples) // 10


class LanguageModel(nn.Module):
    """Predicts each letter from those before it. A batch's keys are the arguments of `forward`."""

    def __init__(self, letters: int, context: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, letters))

    def forward(self, letters: Tensor, following: Tensor) -> dict[str, Tensor]:
        loss = nn.functional.cross_entropy(self.logits(letters).mT, following)
        return {"loss": loss, "bits_per_letter": loss.detach() / math.log(2)}

    def logits(self, letters: Tensor) -> Tensor:
        hidden = self.embedding(letters) + self.position[: letters.size(1)]
        mask = nn.Transformer.generate_square_subsequent_mask(letters.size(1), letters.device)
        scores: Tensor = self.head(self.layers(hidden, mask=mask, is_causal=True))
        return scores


model = LanguageModel(len(letters), config.context, config.width)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=config.max_steps)
runner = dl.AccelerateRunner(
    config,
    model=model,
    optimizer=optimizer,
    scheduler=scheduler,
    datasets={"train": samples[held_out:], "val": samples[:held_out]},
)
runner.train()

print(f"{runner.evaluate('val')['bits_per_letter']:.2f} bits per letter. It writes:")
with torch.no_grad():  # what it writes by itself
    story = codes[: config.context].to(runner.accelerator.device)
    while len(story) < 300:
        logits = model.logits(story[-config.context :].unsqueeze(0))
        story = torch.cat([story, logits[0, -1].softmax(dim=0).multinomial(1)])
print("".join(letters[code] for code in story[config.context :]))
print(f"\nresults, checkpoints and log: {runner.dir}")
