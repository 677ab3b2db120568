from __future__ import annotations

import math

import pytest

from danling.optimization.windows import windowed


def windows(batches: int, length: int | None, accumulation: int, start: int = 0):
    return [
        (batch, window.size, window.closes)
        for batch, window in windowed(iter(range(start, batches)), length, accumulation, start)
    ]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batches", [0, 1, 2, 3, 4, 6, 8, 11])
def test_every_batch_is_in_a_window_that_closes(batches, accumulation, known):
    found = windows(batches, batches if known else None, accumulation)

    assert [batch for batch, *_ in found] == list(range(batches))
    closes = [batch for batch, _, closes in found if closes]
    assert len(closes) == math.ceil(batches / accumulation)
    for last in closes:
        window = found[last - last % accumulation : last + 1]
        assert not known or {size for _, size, _ in window} == {len(window)}


def test_a_source_that_ends_before_its_length_closes_its_window():
    found = windows(5, 8, 4)

    assert found[-1] == (4, 4, True)


def test_windows_go_on_where_an_epoch_is_taken_up():
    assert windows(10, 10, 4, start=4) == windows(10, 10, 4)[4:]
    assert windows(10, None, 4, start=8) == windows(10, None, 4)[8:]


def test_a_window_is_whole_wherever_it_begins():
    assert [closes for _, _, closes in windows(8, 8, 3, start=2)] == [
        *(False, False, True),
        *(False, False, True),
    ]


def test_no_batch_is_read_before_it_is_needed():
    read = []

    def source():
        for index in range(6):
            read.append(index)
            yield index

    seen = []
    for batch, window in windowed(source(), 6, 3, 0):
        if window.closes:
            seen.append((batch, list(read)))

    assert seen == [(2, [0, 1, 2]), (5, [0, 1, 2, 3, 4, 5])]
