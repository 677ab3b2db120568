from __future__ import annotations

import pytest

from danling.callbacks import CallbackProfiler, LambdaCallback
from danling.callbacks.early_stopping import EarlyStopping
from danling.testing import CallbackContract, Failing, TinyRunner


class TestContract(CallbackContract):
    def make(self):
        return CallbackProfiler()


def busy(runner) -> None:
    sum(range(10_000))


def test_every_hook_that_is_called_is_counted(caplog):
    profiler, stopping = CallbackProfiler(), EarlyStopping(patience=9)
    function = LambdaCallback(on_step=busy)
    before = dict(vars(function))
    runner = TinyRunner(callbacks=[function, stopping, profiler])
    with caplog.at_level("INFO"):
        runner.train()

    assert profiler.calls["lambda", "on_step"] == 8
    assert profiler.calls["early_stopping", "on_checkpoint"] == 10
    assert profiler.calls["early_stopping", "on_teardown"] == 1
    assert "on_batch_end" not in {hook for _, hook in profiler.calls}
    assert profiler.table().splitlines()[1].split()[:3] == ["lambda", "on_step", "8"]
    assert "callback  " in caplog.text
    assert vars(function) == before
    assert "on_checkpoint" not in vars(stopping)


def test_an_error_of_a_callback_leaves_it_as_it_was():
    failing = Failing("on_step")
    before = dict(vars(failing))
    with pytest.raises(ZeroDivisionError) as caught:
        TinyRunner(callbacks=[failing, CallbackProfiler()]).train()

    assert any("Failing" in note for note in caught.value.__notes__)
    assert vars(failing) == before
