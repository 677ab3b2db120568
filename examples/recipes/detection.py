"""Detection: images of different sizes, each with its own boxes, in batches that are lists.

`collate_fn` leaves the samples as they are. `train_step` returns several losses: "loss" is trained
on, the others are logged. "n" says how many samples the means are of.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

import danling as dl


class Detection(dl.Config):
    experiment_name = "detection"
    seed = 0
    max_epochs = 3
    dataloader = {"batch_size": 16}
    lr: float = 3e-3


Sample = tuple[Tensor, dict[str, Tensor]]


def make_data() -> list[Sample]:
    """Images that have a digit somewhere: its class and its box (left, top, right, bottom)."""
    pixels, digits = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(1)
    samples = []
    for image, digit in zip(torch.tensor(pixels[:400]).float() / 16, digits[:400], strict=True):
        height, width = torch.randint(12, 21, (2,), generator=generator).tolist()
        top = int(torch.randint(height - 7, (1,), generator=generator))
        left = int(torch.randint(width - 7, (1,), generator=generator))
        canvas = torch.zeros(1, height, width)
        canvas[0, top : top + 8, left : left + 8] = image.view(8, 8)
        box = torch.tensor([left, top, left + 8, top + 8]) / torch.tensor([width, height] * 2)
        samples.append((canvas, {"boxes": box, "labels": torch.tensor(digit)}))
    return samples


def as_lists(samples: list[Sample]) -> list[list[object]]:
    return [list(part) for part in zip(*samples, strict=True)]


def make_model() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 14)),
    )


def losses_of(
    model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]
) -> dict[str, Tensor | int]:
    output = torch.cat([model(image.unsqueeze(0)) for image in images])
    boxes = smooth_l1_loss(output[:, :4], torch.stack([each["boxes"] for each in targets]))
    classes = cross_entropy(output[:, 4:], torch.stack([each["labels"] for each in targets]))
    return {"loss": 10 * boxes + classes, "boxes": boxes, "classes": classes, "n": len(images)}


class Detecting(dl.AccelerateRunner):
    def train_step(self, batch: tuple[list[Tensor], list[dict[str, Tensor]]]) -> object:
        return losses_of(self.model, *batch)


config = Detection.parse()
dl.seed_everything(config)
model = make_model()
runner = Detecting(
    config,
    model=model,
    optimizer=torch.optim.Adam(model.parameters(), lr=config.lr),
    datasets={"train": make_data()},
    collate_fn=as_lists,
)
runner.train()
