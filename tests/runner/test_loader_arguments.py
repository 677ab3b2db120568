"""Objects for loaders go beside datasets; the batch size of one's own loader is of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import danling as dl
from danling.errors import DataError
from danling.testing import TinyRunner

DATA = {
    split: TensorDataset(torch.arange(12.0)[:, None], torch.arange(12.0)[:, None])
    for split in ("train", "val", "test")
}


def make(config: dict[str, Any] | None = None, **parts: Any) -> dl.AccelerateRunner:
    model = nn.Linear(1, 1)
    settings = {"seed": 0, "max_epochs": 1, "dataloader": {"batch_size": 4}} | (config or {})
    return dl.AccelerateRunner(
        settings,
        model=model,
        criterion=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        default_callbacks=False,
        **{"datasets": DATA} | parts,
    )


def seen(runner: Any, split: str, *, evaluating: bool = False) -> list[list[float]]:
    """The inputs of each batch."""
    batches = runner.loader(split, evaluating=evaluating or split != "train").iterate(0)
    return [batch[0].flatten().tolist() for batch in batches]


class Doubled:
    """Makes a batch of twice the inputs."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def __call__(self, samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*samples, strict=True)
        return torch.stack(inputs) * self.factor, torch.stack(targets)


def test_one_function_makes_the_batches_of_all_splits() -> None:
    runner = make(collate_fn=Doubled())

    for split in DATA:
        values = [value for batch in seen(runner, split) for value in batch]
        assert sorted(values) == [2.0 * number for number in range(12)]
    runner.train()


def test_functions_by_split_make_those_of_their_own() -> None:
    runner = make(collate_fn={"val": Doubled(3.0)})

    assert seen(runner, "val")[0] == [0.0, 3.0, 6.0, 9.0]
    assert seen(runner, "test")[0] == [0.0, 1.0, 2.0, 3.0]


class Backwards(Sampler[int]):
    """Yields the indices from the last one on."""

    def __iter__(self) -> Any:
        return iter(range(11, -1, -1))

    def __len__(self) -> int:
        return 12


def test_a_sampler_is_that_of_train_and_an_evaluation_of_it_is_in_order() -> None:
    runner = make(sampler=Backwards())

    assert seen(runner, "train")[0] == [11.0, 10.0, 9.0, 8.0]
    assert seen(runner, "val")[0] == seen(runner, "train", evaluating=True)[0] == [0, 1, 2, 3]
    runner.train()
    assert runner.global_step == 3


def test_a_sampler_of_torch_is_a_function_of_seed_and_epoch() -> None:
    weights = [1.0] * 6 + [0.0] * 6
    runners = [make(sampler=WeightedRandomSampler(weights, 20)) for _ in range(2)]
    first, second = (seen(runner, "train") for runner in runners)

    assert first == second
    assert len(first) == 5
    assert max(value for batch in first for value in batch) < 6


def test_samplers_by_split_are_of_their_own() -> None:
    runner = make(sampler={"val": Backwards()})

    assert seen(runner, "val")[0] == [11.0, 10.0, 9.0, 8.0]
    assert seen(runner, "test")[0] == [0.0, 1.0, 2.0, 3.0]


def test_a_batch_sampler_decides_on_the_batches_whatever_all_splits_have() -> None:
    batches = BatchSampler(SequentialSampler(range(12)), batch_size=5, drop_last=False)
    runner = make(batch_sampler=batches)

    assert [len(batch) for batch in seen(runner, "train")] == [5, 5, 2]
    assert [len(batch) for batch in seen(runner, "val")] == [4, 4, 4]
    config = {"dataloader": {"train": {"batch_size": 3}}}
    with pytest.raises(DataError, match="batch_sampler option is mutually exclusive"):
        make(config, batch_sampler=batches).train()


def test_a_subclass_sets_them_as_it_sets_its_data() -> None:
    runner = TinyRunner()
    runner.sampler = {"train": RandomSampler(runner.datasets["train"], num_samples=4)}
    runner.train()

    assert runner.global_step == 2
    assert list(runner.sampler) == ["train"]


def test_what_is_assigned_is_used_by_the_next_epoch() -> None:
    class Shorter(dl.Callback):
        def on_epoch_start(self, runner: Any) -> None:
            if runner.epoch == 1:
                runner.sampler = RandomSampler(DATA["train"], num_samples=4)

    runner = make({"max_epochs": 2}, callbacks=[Shorter()])
    runner.train()

    assert runner.global_step == 3 + 1


def note(worker: int) -> None:
    info: Any = torch.utils.data.get_worker_info()
    info.dataset.worker = worker


class Noted(TensorDataset):
    """Returns the number that its worker was given."""

    worker = -1

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return torch.tensor([float(self.worker)]), torch.zeros(1)


def test_a_function_is_called_in_each_worker() -> None:
    datasets = {"train": Noted(torch.zeros(12)), "val": Noted(torch.zeros(12))}
    runner = make(
        {"dataloader": {"batch_size": 4, "num_workers": 2}},
        datasets=datasets,
        worker_init_fn={"train": note},
    )

    assert {value for batch in seen(runner, "train") for value in batch} == {0.0, 1.0}
    assert {value for batch in seen(runner, "val") for value in batch} == {-1.0}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no split": ({"collate_fn": {"trian": Doubled()}}, "collate_fn\\['trian'\\] is of no split"),
    "both": (
        {"sampler": Backwards(), "batch_sampler": [[0, 1]]},
        "'train' has a sampler and a batch_sampler",
    ),
    "own loader": (
        {"dataloaders": {"train": DataLoader(DATA["train"])}, "sampler": {"train": Backwards()}},
        "sampler\\['train'\\] is not used: dataloaders\\['train'\\] has its own",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_could_not_be_used_is_refused(case: str) -> None:
    parts, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        make(**parts).train()


def test_the_configuration_holds_no_objects() -> None:
    with pytest.raises(DataError, match="pass sampler= to the runner, beside datasets="):
        make({"dataloader": {"sampler": "random"}}).train()


# The batch size of one's own loader


def identity(tmp_path: Path, size: int, **config: Any) -> dl.AccelerateRunner:
    runner = make({"project_root": str(tmp_path), **config})
    runner.dataloaders = {"train": DataLoader(DATA["train"], batch_size=size, shuffle=True)}
    return runner


def test_it_is_part_of_the_identity_and_of_the_configuration(tmp_path: Path) -> None:
    runs = {size: identity(tmp_path, size) for size in (3, 6)}
    again = make(
        {"project_root": str(tmp_path)},
        dataloaders={"train": DataLoader(DATA["train"], batch_size=3, shuffle=True)},
    )

    assert runs[3].run_id != runs[6].run_id
    assert again.run_id == runs[3].run_id
    assert runs[6].config.dataloader.train.batch_size == 6
    assert runs[6].config.dataloader.batch_size == 4
    runs[6].train()
    assert runs[6].global_step == 2


def test_so_it_is_of_a_batch_sampler_and_of_one_that_is_put_in_later(tmp_path: Path) -> None:
    batches = BatchSampler(SequentialSampler(range(12)), batch_size=6, drop_last=False)
    runner = make({"project_root": str(tmp_path)})
    runner.dataloaders["train"] = DataLoader(DATA["train"], batch_sampler=batches)
    runner.train()

    assert runner.run_id == identity(tmp_path, 6).run_id


def test_one_that_is_taken_away_leaves_nothing_behind(tmp_path: Path) -> None:
    runner = identity(tmp_path, 6)
    runner.dataloaders = {}
    runner.train()

    assert runner.global_step == 3
    assert "batch_size" not in runner.config.dataloader.get("train", {})


def test_a_runner_without_data_to_train_on_takes_the_configuration_of_one(tmp_path: Path) -> None:
    config = identity(tmp_path, 6).config.copy()
    model = nn.Linear(1, 1)

    runner = dl.AccelerateRunner(
        config, model=model, criterion=nn.MSELoss(), datasets={"test": DATA["test"]}
    )

    assert set(runner.evaluate("test")) == {"loss"}
