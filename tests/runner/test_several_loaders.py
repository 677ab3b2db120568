"""Several loaders in one loop: against plain PyTorch, and killed and resumed."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import danling as dl
from danling.callbacks import ModelCheckpoint
from danling.errors import DataError
from danling.testing import in_child
from tests.support.resume_harness import digest

MODES = ["min_size", "max_size", "max_size_cycle", "sequential"]
SIZES = {"labelled": 10, "unlabelled": 26}  # in batches of 2 and of 4: 5 of them, and 7


def make_data(name: str) -> TensorDataset:
    generator = torch.Generator().manual_seed(len(name))
    inputs = torch.randn(SIZES[name], 4, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3))


def loss_of(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Cross-entropy of what is labelled, and the entropy of what is not."""
    loss = torch.zeros(())
    if batch.get("labelled") is not None:
        input, target = batch["labelled"]
        loss = loss + nn.functional.cross_entropy(model(input), target)
    if batch.get("unlabelled") is not None:
        scores = model(batch["unlabelled"][0]).softmax(1)
        loss = loss - 0.1 * (scores * scores.log()).sum(1).mean()
    return loss


class SemiSupervised(dl.AccelerateRunner):
    """Reads two splits together in a loop of its own, or in `train()`."""

    def __init__(
        self,
        config: dict[str, Any],
        mode: str,
        *,
        under_train: bool = False,
        accumulation: int = 1,
        workers: int = 0,
        **parts: Any,
    ) -> None:
        sections: dict[str, Any] = {
            name: {"batch_size": size, "num_workers": workers}
            for name, size in (("labelled", 2), ("unlabelled", 4))
        }
        if under_train:
            sections = {f"train/{name}": section for name, section in sections.items()}
            sections["train"] = {"mode": mode, "shuffle": False}
        options = {"cpu": True, "gradient_accumulation_steps": accumulation}
        settings = {"seed": 0, "max_epochs": 2, "accelerate": options, "dataloader": sections}
        super().__init__(settings | config, **parts)
        data = {name: make_data(name) for name in SIZES}
        self.datasets = {"train": data} if under_train else data
        self.model = make_model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.mode, self.under_train = mode, under_train
        dl.seed_everything(0)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"loss": loss_of(self.model, batch), "n": 1}

    def fit(self) -> None:
        if self.under_train:
            self.train()
            return
        with self:
            for _ in self.epochs():
                for batch in self.batches("labelled", "unlabelled", mode=self.mode):
                    self.step(self.train_step(batch))


def plain(mode: str, accumulation: int) -> tuple[nn.Module, int]:
    """The same by hand, with loaders of PyTorch."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    short = [*DataLoader(make_data("labelled"), 2)]
    long = [*DataLoader(make_data("unlabelled"), 4)]
    steps = 0
    dl.seed_everything(0)  # PyTorch's loaders have drawn from the stream of the dropout
    for _ in range(2):
        pairs: list[tuple[Any, Any]] = [*zip(short, long, strict=False)]
        if mode == "max_size":
            pairs += [(None, batch) for batch in long[len(short) :]]
        elif mode == "max_size_cycle":
            pairs += [*zip(short, long[len(short) :], strict=False)]
        elif mode == "sequential":
            pairs = [(batch, None) for batch in short] + [(None, batch) for batch in long]
        for first in range(0, len(pairs), accumulation):
            window = pairs[first : first + accumulation]
            for pair in window:
                loss = loss_of(model, dict(zip(SIZES, pair, strict=True)))
                (loss / len(window)).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    return model, steps


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("under_train", [False, True], ids=["loop", "train"])
@pytest.mark.parametrize("mode", MODES)
def test_several_loaders_are_the_plain_loop_bit_for_bit(mode, under_train, accumulation):
    runner = SemiSupervised(
        {}, mode, under_train=under_train, accumulation=accumulation, default_callbacks=False
    )
    runner.fit()

    model, steps = plain(mode, accumulation)
    assert digest(runner.model.state_dict()) == digest(model.state_dict())
    assert runner.global_step == steps
    assert (runner.epoch, runner.epoch_complete) == (2, True)
    if under_train:
        assert (runner.total_steps, runner.progress) == (steps, 1.0)
        assert runner.batch_size is None


def train(folder: Path, mode: str, options: dict[str, Any], kill_at: int | None = None) -> None:
    class Kill(dl.Callback):
        priority = 1000

        def on_step(self, runner: dl.AccelerateRunner) -> None:
            if runner.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    config = {"project_root": str(folder / "runs"), "resume": "auto"}
    callbacks = [ModelCheckpoint(every="1 step"), Kill()]
    runner = SemiSupervised(config, mode, callbacks=callbacks, **options)
    runner.fit()
    exact = runner.resume_report is None or runner.resume_report["exact"]
    parts = [runner.model.state_dict(), runner.optimizer.state_dict()]
    outcome = [digest(parts), runner.results, runner.global_step, exact]
    (folder / "outcome.json").write_text(json.dumps(outcome))


CASES = [
    *((mode, {}) for mode in MODES),
    ("max_size_cycle", {"under_train": True, "accumulation": 2}),
    ("sequential", {"under_train": True}),
    ("min_size", {"workers": 1}),
    ("max_size_cycle", {"workers": 1}),
]


@pytest.mark.parametrize(("mode", "options"), CASES)
def test_every_loader_goes_on_at_its_own_place_after_a_kill(mode, options, tmp_path: Path):
    outcomes = []
    for name, kills in (("whole", ()), ("cut", (2, 4, 7))):
        folder = tmp_path / name
        folder.mkdir()
        for step in kills:
            assert in_child(partial(train, folder, mode, options, step)) == -signal.SIGKILL
        assert in_child(partial(train, folder, mode, options)) == 0
        outcomes.append(json.loads((folder / "outcome.json").read_text()))

    assert outcomes[0] == outcomes[1]
    assert outcomes[0][-1] is True


def test_splits_may_be_read_one_by_one_and_together_in_an_epoch():
    runner = SemiSupervised({"max_epochs": 1}, "min_size", default_callbacks=False)
    seen: list[tuple[str, str]] = []
    with runner:
        for _ in runner.epochs():
            for number, batch in enumerate(runner.batches("labelled")):
                seen.append(("labelled", digest(batch)))
                runner.step(runner.train_step({"labelled": batch}))
                if number == 1:
                    break
            for both in runner.batches("labelled", "unlabelled"):
                seen += [(name, digest(part)) for name, part in both.items()]
                runner.step(runner.train_step(both))

    labelled = [part for name, part in seen if name == "labelled"]
    assert labelled == [digest(batch) for batch in DataLoader(make_data("labelled"), 2)]
    assert len(seen) == 5 + 3
    assert runner.global_step == 5


def test_splits_that_are_read_together_are_not_evaluated_together():
    runner = SemiSupervised({}, "min_size", under_train=True, default_callbacks=False)

    assert runner.evaluation_splits == []
    with pytest.raises(DataError, match=r"'train' is several loaders: name one of them"):
        runner.evaluate("train")


def test_a_mode_that_does_not_exist_is_named_with_the_nearest():
    runner = SemiSupervised({}, "max_sise", default_callbacks=False)
    with pytest.raises(DataError, match="did you mean 'max_size'"):
        runner.fit()
