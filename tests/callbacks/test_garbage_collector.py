from __future__ import annotations

import gc

import pytest

from danling.callbacks import GarbageCollector, LambdaCallback
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner


class TestContract(CallbackContract):
    def make(self):
        return GarbageCollector(3)


def test_it_collects_at_its_steps_and_at_no_other():
    runs: list[int] = []

    def told(phase, info):
        if phase == "start":
            runs.append(info["generation"])

    seen: list[int] = []
    keep = LambdaCallback(on_batch_end=lambda *_: seen.append(len(runs)))
    gc.callbacks.append(told)
    try:
        TinyRunner({"evaluate_every": None}, callbacks=[GarbageCollector(3), keep]).train()
    finally:
        gc.callbacks.remove(told)

    first = seen[0]
    assert [count - first for count in seen] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        TinyRunner(callbacks=[GarbageCollector()]).train()
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("interval", [0, 1.5, True])
def test_arguments_are_checked(interval):
    with pytest.raises(CallbackError, match="at least 1"):
        GarbageCollector(interval)
