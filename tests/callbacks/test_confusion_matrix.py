from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from danling.callback import Callback
from danling.callbacks import ConfusionMatrix
from danling.callbacks.confusion_matrix import count, shares
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner
from tests.distributed.processes import leave, results, succeed
from tests.distributed.runners import Regression

pytest.importorskip("matplotlib")


class TestContract(CallbackContract):
    def make(self):
        return ConfusionMatrix(3)


class Shown(Callback):
    """Keeps what is shown, as a tracker does."""

    def __init__(self) -> None:
        self.figures: list[tuple[str, int, Any]] = []

    def log_figure(self, runner: Any, tag: str, figure: Any) -> None:
        self.figures.append((tag, runner.global_step, figure))


def test_the_counts_are_those_of_scikit_learn():
    metrics: Any = pytest.importorskip("sklearn.metrics")
    confusion, shown = ConfusionMatrix(), Shown()
    runner = TinyRunner({"max_epochs": 3}, callbacks=[confusion, shown])
    runner.train()

    points, target = runner.datasets["val"].tensors
    expected = metrics.confusion_matrix(target, runner.model(points).argmax(1), labels=[0, 1, 2])
    assert confusion.matrix is not None
    assert confusion.matrix.tolist() == expected.tolist()
    assert [(tag, step) for tag, step, _ in shown.figures] == [
        ("val/confusion_matrix", step) for step in (4, 8, 12)
    ]
    axes = shown.figures[-1][2].axes[0]
    assert axes.images[0].get_array().tolist() == expected.tolist()
    assert [text.get_text() for text in axes.texts] == [str(n) for n in expected.flatten()]


@pytest.mark.parametrize("normalize", ["true", "pred", "all"])
def test_shares_are_those_of_scikit_learn(normalize):
    metrics: Any = pytest.importorskip("sklearn.metrics")
    predicted, target = torch.randint(0, 4, (2, 50), generator=torch.Generator().manual_seed(0))

    matrix = count(predicted, target, 4)

    expected = metrics.confusion_matrix(target, predicted, normalize=normalize)
    assert torch.allclose(shares(matrix, normalize), torch.from_numpy(expected))


def test_targets_that_are_ignored_are_not_counted():
    matrix = count(torch.tensor([0, 1, 1]), torch.tensor([0, -100, 7]), 2)

    assert matrix.tolist() == [[1, 0], [0, 0]]


def test_a_single_output_is_of_two_classes():
    confusion = ConfusionMatrix(class_names=["no", "yes"])
    runner = TinyRunner({"max_epochs": 1}, callbacks=[confusion])
    runner.model = nn.Linear(4, 1)
    runner.optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.1)
    runner.criterion = lambda output, target: output.mean()
    runner.metrics = {}
    runner.datasets["val"].tensors[1].clamp_(max=1)
    runner.train()

    points, target = runner.datasets["val"].tensors
    expected = count((runner.model(points) > 0).long().flatten(), target, 2)
    assert confusion.matrix is not None
    assert torch.equal(confusion.matrix, expected)
    labels = confusion.draw(expected).axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["no", "yes"]


class Classifier(Regression):
    """Two classes: whether the second input is positive."""

    def __init__(self, folder: Path, *args: Any, **parts: Any) -> None:
        super().__init__(folder, *args, **parts)
        self.model = nn.Linear(4, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.criterion = nn.functional.cross_entropy
        for data in self.datasets.values():
            data.targets = (data.inputs[:, 1] > 0).long()


def count_together(folder: Path) -> None:
    confusion = ConfusionMatrix()
    runner = Classifier(folder, {"max_epochs": 1}, callbacks=[confusion])
    runner.train()
    data = runner.datasets["val"]
    predicted = runner.unwrapped_model(data.inputs).argmax(1)
    assert confusion.matrix is not None
    leave(folder, [confusion.matrix.tolist(), count(predicted, data.targets, 2).tolist()])


@pytest.mark.distributed
def test_two_processes_count_each_sample_once(tmp_path):
    succeed(2, count_together, tmp_path, folder=tmp_path)

    for counted, expected in results(tmp_path, 2):
        assert counted == expected
        assert sum(map(sum, counted)) == 13


def test_an_evaluation_that_fails_leaves_no_hook_on_the_model():
    class Broken(TinyRunner):
        def evaluate_step(self, batch: Any) -> Any:
            super().evaluate_step(batch)
            raise ZeroDivisionError

    runner = Broken(callbacks=[ConfusionMatrix()])
    with pytest.raises(ZeroDivisionError):
        runner.train()

    assert not runner.model._forward_hooks


def test_a_batch_without_a_target_says_what_to_do():
    class Unlabelled(TinyRunner):
        def evaluate_step(self, batch: Any) -> Any:
            return self.model(batch[0]).mean()

    runner = Unlabelled(callbacks=[ConfusionMatrix()])
    runner.datasets = {**runner.datasets, "val": [(torch.ones(4),)] * 4}
    with pytest.raises(CallbackError, match="has no target: give `function`"):
        runner.train()


@pytest.mark.parametrize(
    "arguments",
    [{"num_classes": 1}, {"normalize": "rows"}, {"num_classes": 3, "class_names": ["a", "b"]}],
)
def test_arguments_are_checked(arguments):
    with pytest.raises(CallbackError, match="ConfusionMatrix"):
        ConfusionMatrix(**arguments)
