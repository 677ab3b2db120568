from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from danling.callbacks import BatchSizeFinder, LambdaCallback
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner, is_equal, outcome


class TestContract(CallbackContract):
    needs_one_process = True
    syncs_every_step = True  # the table is of as many sizes as there are samples

    def make(self):
        return BatchSizeFinder(steps_per_trial=2)


class Hungry(nn.Linear):
    """Asks for memory that no machine has, where a batch is too large."""

    limit = 11

    def forward(self, points):
        torch.empty(2**58 if len(points) > self.limit else 1, dtype=torch.uint8)
        return super().forward(points)


def make(*callbacks: Any, limit: int = 11, samples: int = 64) -> TinyRunner:
    runner = TinyRunner({"max_epochs": 1}, samples=samples, callbacks=callbacks)
    runner.model = Hungry(4, 3)
    runner.model.limit = limit
    runner.optimizer = torch.optim.AdamW(runner.model.parameters(), lr=0.1)
    return runner


@pytest.mark.parametrize(
    ("mode", "tried", "found"),
    [("power", [2, 4, 8, 16], 8), ("binsearch", [2, 4, 8, 16, 12, 10, 11], 11)],
)
def test_the_largest_size_that_fits_is_found(mode, tried, found):
    finder = BatchSizeFinder(mode)
    make(finder).train()

    assert [trial.batch_size for trial in finder.results] == tried
    assert [trial.fits for trial in finder.results] == [size <= 11 for size in tried]
    assert finder.suggestion() == found


def test_any_limit_is_found_by_halves():
    chance = random.Random(0)
    for limit in [1, 2, 3, 63, 64, *(chance.randrange(1, 65) for _ in range(5))]:
        finder = BatchSizeFinder("binsearch", 1, init_val=1)
        runner = make(finder, limit=limit)
        runner.config.max_epochs = 0  # it searches, and trains nothing
        runner.train()
        assert finder.suggestion() == limit


def test_no_size_is_larger_than_the_data_or_the_largest_that_is_allowed():
    by_data, by_limit = BatchSizeFinder("binsearch"), BatchSizeFinder(max_val=6)
    make(by_data, limit=1000, samples=21).train()
    make(by_limit, limit=1000).train()

    assert by_data.suggestion() == 21
    assert [trial.batch_size for trial in by_limit.results] == [2, 4, 6]


def test_the_run_is_left_as_it_was_found():
    first: list[int] = []
    look = LambdaCallback(on_batch_start=lambda runner, batch: first.append(len(batch[0])))
    plain, searched = make(), make(BatchSizeFinder(), look)
    plain.train()
    searched.train()

    assert is_equal(outcome(searched), outcome(plain))
    assert set(first) == {4}


def test_what_was_found_is_told_as_a_table_and_a_figure(caplog):
    pytest.importorskip("matplotlib")
    figures: dict[str, Any] = {}
    show = LambdaCallback()
    show.log_figure = lambda runner, tag, figure: figures.update({tag: figure})  # type: ignore[attr-defined]  # any callback may have one
    caplog.set_level("INFO")
    make(BatchSizeFinder(), show).train()

    assert "8 fits; the training uses 4" in caplog.text
    assert "16  does not fit" in caplog.text
    [axes] = figures["batch_size_finder"].axes
    assert list(axes.lines[0].get_xdata()) == [2, 4, 8]


def test_a_margin_is_taken_off():
    finder = BatchSizeFinder(margin=0.2)
    make(finder).train()

    assert finder.suggestion() == 6


def test_an_error_that_is_not_of_memory_is_the_user_s():
    class Wrong(nn.Linear):
        def forward(self, points):
            raise RuntimeError("shapes do not fit")

    runner = make(BatchSizeFinder())
    runner.model = Wrong(4, 3)
    runner.optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        runner.train()


def test_where_not_even_the_first_size_fits_it_is_an_error():
    with pytest.raises(CallbackError, match="not even 2 samples fit"):
        make(BatchSizeFinder(), limit=1).train()


@pytest.mark.parametrize(
    "arguments",
    [{"mode": "pwoer"}, {"steps_per_trial": 0}, {"init_val": 0}, {"margin": 1.0}, {"max_val": 1.5}],
)
def test_arguments_are_checked(arguments):
    with pytest.raises(CallbackError, match="BatchSizeFinder"):
        BatchSizeFinder(**arguments)
