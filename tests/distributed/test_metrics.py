"""What is logged and measured is of all processes, whoever has logged and measured it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import danling as dl
from tests.distributed.processes import leave, results, succeed
from tests.distributed.runners import Numbered, Regression

pytestmark = pytest.mark.distributed

REDUCTIONS: tuple[Any, ...] = ("sum", "max", "min", "last")


class Rows(dl.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, runner: Any, metrics: Any) -> None:
        self.rows.append(dict(metrics))


def reducing(folder: Path) -> None:
    class Logging(Regression):
        def train_step(self, batch: Any) -> Any:
            value = float(10 * self.global_step + self.rank)
            for reduce in REDUCTIONS:
                self.log(f"train/{reduce}/step", value, reduce=reduce)
                self.log(f"train/{reduce}/epoch", value, reduce=reduce, on="epoch")
                if self.rank == 1:
                    self.log(f"train/{reduce}/second", value, reduce=reduce, on="epoch")
            self.log("weighed", value, n=1 + 2 * self.rank)
            return super().train_step(batch)

    rows = Rows()
    runner = Logging(folder, {"log_interval": 2, "max_epochs": 1}, callbacks=[rows])
    runner.train()
    result = runner.results[0]["train"]
    first = next(row for row in rows.rows if "train/sum/step" in row)
    leave(folder, [result, first])


def test_values_of_all_processes_are_reduced_together(tmp_path: Path) -> None:
    succeed(2, reducing, tmp_path, folder=tmp_path)

    one, two = results(tmp_path, 2)
    assert one == two
    result, window = one
    of_first, of_second = [0.0, 10.0, 20.0, 30.0], [1.0, 11.0, 21.0, 31.0]
    both = [*of_first, *of_second]
    for on in ("step", "epoch"):
        assert [result[f"{reduce}/{on}"] for reduce in REDUCTIONS] == [sum(both), 31.0, 0.0, 30.0]
    seconds = [result[f"{reduce}/second"] for reduce in REDUCTIONS]
    assert seconds == [sum(of_second), 31.0, 1.0, 31.0]
    assert result["weighed"] == (sum(of_first) + 3 * sum(of_second)) / 16
    assert [window[f"train/{reduce}/step"] for reduce in REDUCTIONS] == [22.0, 11.0, 0.0, 10.0]


class Targets:
    """The largest target of each half of the samples; it cannot be computed without any."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seen: list[Tensor] = []

    def update(self, output: Tensor, target: Tensor) -> None:
        self.seen.append(target.flatten())

    def merge_state(self, others: list[Targets]) -> None:
        for other in others:
            self.seen += other.seen

    def compute(self) -> Tensor:
        seen = torch.cat(self.seen).sort().values
        return torch.stack([seen[0], seen[-1]])


def measuring(folder: Path) -> None:
    class Measuring(Regression):
        def train_step(self, batch: Any) -> Any:
            return self.criterion(self.model(batch[0]), batch[1])

        def evaluate_step(self, batch: Any) -> Any:
            output = self.model(batch[0])
            metrics = self.metrics_of(self.evaluating or "val")
            metrics["all"].update(output, batch[1])
            if self.rank == 1:
                metrics["one"].update(output, batch[1])
            return None if self.rank == 0 else {"targets": batch[1].mean(), "n": len(batch[1])}

    metrics = {"val": {"all": Targets(), "one": Targets(), "none": Targets()}}
    runner = Measuring(folder, {"max_epochs": 1}, metrics=metrics)
    runner.train()
    second = [batch[1] for batch in runner.loader("val", evaluating=True).iterate(0)]
    mean = float(torch.cat(second).double().mean()) if runner.rank == 1 else None
    leave(folder, [runner.results[0], mean, [float(value) for part in second for value in part]])


def test_a_metric_that_one_process_has_updated_is_computed_on_all(tmp_path: Path) -> None:
    succeed(2, measuring, tmp_path, folder=tmp_path)

    (one, _, _), (two, mean, second) = results(tmp_path, 2)
    targets = Numbered(13).targets
    assert one == two
    assert set(one["train"]) == {"loss"}
    assert one["val"] == {
        "targets": pytest.approx(mean, rel=1e-6),
        "all/0": float(targets.min()),
        "all/1": float(targets.max()),
        "one/0": min(second),
        "one/1": max(second),
    }
