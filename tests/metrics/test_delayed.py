from __future__ import annotations

import torch

from danling.metrics.delayed import Delayed


def test_on_the_cpu_a_value_is_there_at_once_and_once():
    values = Delayed()
    values.add(1, torch.tensor(1.0))
    values.add(2, torch.tensor(2.0))

    assert values.ready() == [(1, 1.0), (2, 2.0)]
    assert values.ready() == []


def test_what_waits_is_read_after_so_many_others():
    values = Delayed(lag=2)
    values.load([(1, 1.0), (2, 2.0), (3, 3.0)])  # as on a device that has not passed them

    assert values.ready() == [(1, 1.0)]
    assert values.peek() == [(2, 2.0), (3, 3.0)]
    assert values.all() == [(2, 2.0), (3, 3.0)]
    assert values.all() == []


def test_a_later_change_of_the_tensor_does_not_matter():
    values, norm = Delayed(), torch.tensor(1.0)
    values.add(1, norm)
    norm.zero_()

    assert values.all() == [(1, 1.0)]
