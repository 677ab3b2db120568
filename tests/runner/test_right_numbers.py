"""The numbers of a training are the true ones, or a line says that they may not be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import danling as dl
from danling.callback import Priority
from danling.testing import TinyRunner

VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 70.0, 800.0, 900.0, 1000.0])


def make(config: dict[str, Any] | None = None, **parts: Any) -> dl.AccelerateRunner:
    settings = {"seed": 0, "max_epochs": 1, "accelerate": {"cpu": True}, **(config or {})}
    model = nn.Linear(1, 1)
    given: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.0),
    } | parts
    return dl.AccelerateRunner(settings, default_callbacks=False, **given)


# Means over uneven batches


class Samples(Dataset[Any]):
    def __len__(self) -> int:
        return len(VALUES)

    def __getitem__(self, index: int) -> Tensor:
        return VALUES[index]


class Graphs:
    def __init__(self, values: list[Tensor]) -> None:
        self.x, self.num_graphs = torch.stack(values), len(values)

    def to(self, device: Any) -> Graphs:
        return self


def detection(values: list[Tensor]) -> Any:
    images = [value.expand(3, 4 + index, 5) for index, value in enumerate(values)]
    return images, [{"boxes": torch.zeros(index + 1, 4)} for index in range(len(values))]


def edges(values: list[Tensor]) -> Any:
    return {"edge_index": torch.zeros(2, 17), "y": torch.stack(values)}


def dicts(values: list[Tensor]) -> Any:
    return [{"y": value.expand(3)} for value in values]


def time_first(values: list[Tensor]) -> Any:
    return torch.stack(values).expand(6, len(values)), torch.stack(values).expand(6, len(values))


SHAPES = {
    "detection": (detection, lambda batch: torch.stack([image.mean() for image in batch[0]])),
    "graphs": (Graphs, lambda batch: batch.x),
    "edges": (edges, lambda batch: batch["y"]),
    "dicts": (dicts, lambda batch: torch.stack([sample["y"].mean() for sample in batch])),
    "time first": (time_first, lambda batch: batch[0].mean(0)),
}


def means(batch_shape: str, by: str) -> dict[str, Any]:
    collate, values_of = SHAPES[batch_shape]
    batches = DataLoader(Samples(), batch_size=4, collate_fn=collate)
    given: Any = batches if by == "DataLoader" else list(batches)

    class Measuring(dl.AccelerateRunner):
        def train_step(self, batch: Any) -> Any:
            return {"loss": values_of(batch).mean() + 0.0 * self.model.weight.sum()}

        evaluate_step = train_step

    model = nn.Linear(1, 1)
    runner = Measuring(
        {"seed": 0, "max_epochs": 1, "accelerate": {"cpu": True}},
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        default_callbacks=False,
        dataloaders={"train": given, "val": given},
    )
    runner.train()
    assert runner.latest_result is not None
    return runner.latest_result


@pytest.mark.parametrize("batch_shape", SHAPES)
def test_the_mean_over_uneven_batches_that_a_loader_makes_is_the_true_one(batch_shape: str) -> None:
    result = means(batch_shape, "DataLoader")

    for split in ("train", "val"):
        assert result[split]["loss"] == pytest.approx(VALUES.mean().item(), rel=1e-6)


@pytest.mark.parametrize("batch_shape", ["detection", "graphs", "dicts"])
def test_so_it_is_of_batches_that_say_what_they_hold(batch_shape: str, caplog: Any) -> None:
    result = means(batch_shape, "iterable")

    for split in ("train", "val"):
        assert result[split]["loss"] == pytest.approx(VALUES.mean().item(), rel=1e-6)
    assert '"n"' not in caplog.text


def test_batches_that_nobody_knows_the_size_of_are_told_of_once(caplog: Any) -> None:
    means("edges", "iterable")

    assert caplog.text.count('returns the number as "n"') == 1


# Two splits in one epoch


def test_batches_of_two_splits_side_by_side_are_refused_with_the_way_out() -> None:
    runner = TinyRunner({"max_epochs": 1})
    message = r"'train' were left for others .* or together, with runner.batches\("

    with pytest.raises(dl.RunError, match=message), runner:
        for _ in runner.epochs():
            for batch, _ in zip(runner.batches(), runner.batches("val"), strict=False):
                runner.step(runner.train_step(batch))


def test_the_way_out_pairs_the_batches_and_takes_every_step() -> None:
    runner = TinyRunner({"max_epochs": 1})
    with runner:
        for epoch in runner.epochs():
            pairs = zip(runner.batches(), runner.loader("val").iterate(epoch), strict=True)
            for batch, other in pairs:
                assert other[0].shape == batch[0].shape
                runner.step(runner.train_step(batch))

    assert (runner.global_step, runner.epoch, runner.epoch_complete) == (4, 1, True)


def test_a_second_split_of_an_epoch_begins_at_its_first_batch() -> None:
    runner = TinyRunner({"max_epochs": 2})
    seen: list[int] = []
    with runner:
        for _ in runner.epochs():
            for split in ("train", "val"):
                seen.append(0)
                for batch in runner.batches(split):
                    runner.step(runner.train_step(batch))
                    seen[-1] += 1

    assert seen == [4, 4, 4, 4]


# When a result counts, and when there is one


@pytest.mark.parametrize("period", ["1 step", "2 steps", "4 steps"])
def test_a_result_at_the_last_step_of_an_epoch_counts_once(period: str) -> None:
    config = {"max_epochs": 2, "evaluate_every": period, "project_root": "runs"}
    checkpoint = dl.callbacks.ModelCheckpoint(save_top_k=2)
    runner = TinyRunner(config, callbacks=[checkpoint], default_callbacks=True)
    runner.train()

    steps = [result["global_step"] for result in runner.results]
    assert steps == sorted(set(steps))
    assert runner.evaluations == len(steps)
    scores = {result["global_step"]: result["val"]["loss"] for result in runner.results}
    kept = {
        entry.global_step
        for entry in runner.checkpoints.candidates()
        if entry.path.stem not in ("latest", "previous")
    }
    assert set(sorted(scores, key=scores.__getitem__)[:2]) == kept


def test_a_training_that_max_steps_ends_within_an_epoch_is_evaluated(caplog: Any) -> None:
    config = {"max_epochs": 9, "max_steps": 3, "project_root": "runs"}
    runner = TinyRunner(config, default_callbacks=True)
    runner.train()

    assert runner.evaluations == 1
    assert runner.latest_result is not None
    assert set(runner.latest_result["val"]) == {"loss", "accuracy"}
    assert (runner.checkpoint_dir / "best.pth").exists()


def test_one_that_was_evaluated_before_is_not_evaluated_again() -> None:
    runner = TinyRunner({"max_epochs": 9, "max_steps": 7})
    runner.train()

    assert runner.evaluations == 1


@pytest.mark.parametrize(
    ("config", "is_warned"),
    [
        ({"max_steps": 3}, True),
        ({"max_epochs": 2, "evaluate_every": "3 epochs"}, True),
        ({"max_epochs": 3, "evaluate_every": "3 epochs"}, False),
        ({"max_steps": 3, "evaluate_every": "2 steps"}, False),
    ],
)
def test_a_period_that_training_cannot_reach_is_told_at_its_start(
    config: dict[str, Any], is_warned: bool, caplog: Any
) -> None:
    TinyRunner({"max_epochs": None} | config).train()

    assert ("a period in steps comes sooner" in caplog.text) == is_warned


# What is logged


def test_what_hooks_of_an_end_log_is_in_the_result_that_ends() -> None:
    heard: list[dict[str, float]] = []

    class Own(dl.Callback):
        def on_evaluate_end(self, runner: Any, split: str, result: Any) -> None:
            runner.log("margin", runner.epoch + 0.5)

        def on_epoch_end(self, runner: Any) -> None:
            runner.log("epochs", runner.epoch)
            runner.log("val/late", -runner.epoch)

        def on_train_end(self, runner: Any) -> None:
            runner.log("total", runner.global_step)

        def on_log(self, runner: Any, metrics: Any) -> None:
            heard.append(dict(metrics))

    config = {"max_epochs": 2, "monitor": "val/late", "monitor_mode": "min"}
    runner = TinyRunner(config | {"monitor": "val/margin"}, callbacks=[Own()])
    runner.train()

    first, second = runner.results
    assert (first["val"]["margin"], second["val"]["margin"]) == (0.5, 1.5)
    assert (first["train"]["epochs"], second["train"]["epochs"]) == (1, 2)
    assert (first["val"]["late"], second["val"]["late"]) == (-1, -2)
    assert ("total" in first["train"], second["train"]["total"]) == (False, 8)
    assert runner.scores == [0.5, 1.5]
    tags = [tag for metrics in heard for tag in metrics]
    assert [tags.count(tag) for tag in ("train/epochs", "val/margin", "train/total")] == [2, 2, 1]


def test_the_learning_rate_of_a_step_is_the_one_that_it_used() -> None:
    heard: dict[int, float] = {}

    class Own(dl.Callback):
        def on_log(self, runner: Any, metrics: Any) -> None:
            if "optim/lr/0" in metrics:
                heard[runner.global_step] = metrics["optim/lr/0"]

    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 + step)
    data = TensorDataset(VALUES[:5, None] / 10, VALUES[:5, None] / 10)
    runner = make(
        {"log_interval": 2},
        model=model,
        criterion=nn.MSELoss(),
        optimizer=optimizer,
        scheduler=scheduler,
        datasets={"train": data},
        callbacks=[Own()],
    )
    runner.train()

    assert heard == pytest.approx({2: 0.2, 4: 0.4, 5: 0.5})


def test_groups_of_one_name_are_both_logged() -> None:
    first, second, third = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    groups = [
        {"params": first.parameters(), "lr": 0.1, "name": "head"},
        {"params": second.parameters(), "lr": 0.2, "name": "head"},
        {"params": third.parameters(), "lr": 0.3, "name": "body"},
    ]
    runner = make(model=nn.ModuleList([first, second, third]), optimizer=torch.optim.SGD(groups))
    runner.prepare()

    rates = runner.optimization.learning_rates()
    assert rates == {"optim/lr/head-0": 0.1, "optim/lr/head-1": 0.2, "optim/lr/body": 0.3}


# Sparse gradients and splits with a slash


class Embedding(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 3, sparse=sparse)
        self.head = nn.Linear(3, 1)

    def forward(self, words: Tensor) -> Any:
        return self.head(self.table(words).mean(1))


def trained(sparse: bool, config: dict[str, Any]) -> tuple[list[Tensor], list[float]]:
    norms: list[float] = []

    class Own(dl.Callback):
        def on_step(self, runner: Any) -> None:
            norms.append(runner.grad_norm.item())

    model = Embedding(sparse)
    words = torch.tensor([[0, 1, 1], [2, 0, 5], [5, 5, 5], [3, 1, 0]])
    runner = make(
        {"dataloader": {"batch_size": 2}} | config,
        model=model,
        criterion=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        datasets={"train": TensorDataset(words, torch.full((4, 1), 9.0))},
        callbacks=[Own()],
    )
    runner.train()
    return [parameter.detach() for parameter in model.parameters()], norms


@pytest.mark.parametrize("config", [{}, {"max_grad_norm": 0.5}, {"max_grad_value": 0.1}])
def test_sparse_gradients_are_clipped_and_measured_as_dense_ones(config: dict[str, Any]) -> None:
    weights, norms = trained(True, config)
    expected, expected_norms = trained(False, config)

    assert norms == pytest.approx(expected_norms, rel=1e-5)
    for one, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_split_with_a_slash_in_its_name_can_be_monitored() -> None:
    data = TensorDataset(VALUES[:4, None] / 10, VALUES[:4, None] / 10)
    runner = make(
        {"max_epochs": 2, "monitor": "val/clean/loss"},
        criterion=nn.MSELoss(),
        datasets={"train": data, "val": data, "val/clean": data},
    )
    runner.train()

    assert runner.scores == [result["val/clean"]["loss"] for result in runner.results]
    assert len(runner.scores) == 2


# What is changed between two trainings, and what another runner leaves behind


def test_metrics_that_are_assigned_take_effect_at_the_next_epoch() -> None:
    class Own(dl.Callback):
        def on_epoch_end(self, runner: Any) -> None:
            if runner.epoch == 1:
                runner.metrics = {"one": lambda output, target: 1.0}

    runner = TinyRunner({"max_epochs": 2}, callbacks=[Own()])
    runner.train()

    for split in ("train", "val"):
        assert "accuracy" in runner.results[0][split]
        assert "one" not in runner.results[0][split]
        assert runner.results[1][split]["one"] == 1.0
        assert "accuracy" not in runner.results[1][split]


def test_settings_of_clipping_and_loading_that_change_between_two_trainings_are_used() -> None:
    runner = TinyRunner({"max_epochs": 1})
    runner.train()
    before = runner.model.weight.detach().clone()
    runner.config.max_epochs = 2
    runner.config.max_grad_norm = 1e-9
    runner.config.dataloader.batch_size = 8
    runner.train()

    assert runner.global_step == 4 + 2
    torch.testing.assert_close(runner.model.weight.detach(), before, rtol=0, atol=1e-6)


def test_a_runner_has_the_precision_that_its_own_config_says() -> None:
    first = TinyRunner({"accelerate": {"cpu": True, "mixed_precision": "bf16"}})
    second = TinyRunner()
    third = TinyRunner({"accelerate": {"cpu": True, "mixed_precision": "bf16"}})

    found = [runner.precision for runner in (first, second, third)]
    assert found == ["bf16", "no", "bf16"]
    first.train()
    assert first.accelerator.mixed_precision == "bf16"
    assert second.accelerator.mixed_precision == "no"
    second.train()
    alone = TinyRunner()
    alone.train()
    assert torch.equal(second.model.weight, alone.model.weight)


def drawn_with(*callbacks: dl.Callback) -> list[float]:
    """The numbers that a callback draws at the start of each batch of a training."""
    numbers: list[float] = []

    class Drawing(dl.Callback):
        name = "drawing"

        def on_batch_start(self, runner: Any, batch: Any) -> None:
            numbers.append(torch.rand(()).item())

    TinyRunner({"max_epochs": 2}, callbacks=[*callbacks, Drawing()]).train()
    return numbers


@pytest.mark.parametrize(
    "hook",
    ["on_epoch_start", "on_batch_start", "on_step", "on_batch_end", "on_epoch_end", "on_log"],
)
@pytest.mark.parametrize("trains", [False, True], ids=["made", "trained"])
def test_a_second_runner_in_a_callback_leaves_the_random_streams_alone(
    hook: str, trains: bool
) -> None:
    """It has the weights of its own seed, and the training that is open its own numbers."""
    weights = []

    def make(*_: Any) -> None:
        second = TinyRunner({"seed": 5})
        weights.append(second.model.weight.detach().clone())
        if trains:
            second.train()

    hooks: dict[str, Any] = {hook: make}
    second = dl.callbacks.LambdaCallback(**hooks)
    if hook == "on_batch_start":  # callbacks after it in the list come before the loop does
        second.priority = Priority.LOWEST

    assert drawn_with(second) == drawn_with()
    assert weights
    assert all(torch.equal(weight, TinyRunner({"seed": 5}).model.weight) for weight in weights)


def test_a_training_that_was_left_open_changes_no_later_runner() -> None:
    expected = TinyRunner()
    expected.train()
    left = TinyRunner({"seed": 3})
    left.__enter__()
    next(left.epochs())

    later = TinyRunner()
    later.train()

    assert torch.equal(later.model.weight, expected.model.weight)
    left.__exit__(None, None, None)


class Stops(dl.Callback):
    """Asks for a stop in a step, and notes what is saved before what is evaluated."""

    def __init__(self, step: int, **arguments: Any) -> None:
        self.step, self.arguments, self.order = step, arguments, list[str]()

    def on_step(self, runner: Any) -> None:
        if runner.global_step == self.step:
            runner.stop("its time is up", **self.arguments)

    def on_save(self, runner: Any, path: Any) -> None:
        self.order.append(path.stem)

    def on_evaluate_start(self, runner: Any, split: str) -> None:
        self.order.append("evaluation")


@pytest.mark.parametrize("step", [3, 4, 6])
@pytest.mark.parametrize("every", ["1 epoch", "5 steps"])
def test_a_training_whose_time_is_up_is_saved_and_then_evaluated_if_it_never_was(
    step: int, every: str
) -> None:
    callback = Stops(step, evaluate=True)
    config = {"max_epochs": 9, "project_root": "runs", "evaluate_every": every}
    runner = TinyRunner(config, callbacks=[callback], default_callbacks=True)
    runner.train()

    assert runner.global_step == step
    assert runner.evaluations == 1
    assert runner.best_result is not None
    assert set(runner.best_result["val"]) == {"loss", "accuracy"}
    assert (runner.checkpoint_dir / "best.pth").exists()
    if step == 3:
        assert callback.order.index("latest") < callback.order.index("evaluation")


def test_one_that_stops_for_another_reason_is_not_evaluated() -> None:
    runner = TinyRunner({"max_epochs": 9}, callbacks=[Stops(3)])
    runner.train()

    assert (runner.global_step, runner.evaluations) == (3, 0)


def test_one_that_was_resumed_knows_of_earlier_evaluations() -> None:
    config = {"max_epochs": 9, "project_root": "runs", "resume": "auto"}
    first = TinyRunner(config, callbacks=[Stops(6)], default_callbacks=True)
    first.train()
    second = TinyRunner(
        config | {"resume": str(first.dir)},
        callbacks=[Stops(7, evaluate=True)],
        default_callbacks=True,
    )
    second.train()

    assert (second.global_step, second.evaluations) == (7, 0)
