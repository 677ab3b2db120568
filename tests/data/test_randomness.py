"""What a dataset draws is a function of a key, and what is known to draw nothing is known."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from danling.data.randomness import keyed_rng, purity
from danling.seed import derive


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), torch.rand(()).item()


def test_what_is_drawn_under_a_key_depends_on_nothing_else():
    with keyed_rng(5):
        first = drawn()
    drawn()
    with keyed_rng(5):
        again = drawn()
    with keyed_rng(derive(6)):
        other = drawn()

    assert first == again
    assert first != other


def test_the_streams_of_the_process_are_as_they_were():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = drawn()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    with keyed_rng(5):
        drawn()

    assert drawn() == expected


class Declared(Dataset[Any]):
    deterministic = True


TENSORS = TensorDataset(torch.zeros(3))


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ([1, 2], "known"),
        (TENSORS, "known"),
        (Subset(TENSORS, [0]), "known"),
        (ConcatDataset([TENSORS, TENSORS]), "known"),
        (Declared(), "declared"),
    ],
)
def test_what_draws_nothing_is_known(dataset: Any, expected: str):
    assert purity(dataset) == expected
