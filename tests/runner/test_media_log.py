"""Every method reaches each callback that has it, and no other."""

from __future__ import annotations

import pytest

from danling import BaseRunner

CALLS = {
    "log_text": ("note", "**hello**"),
    "log_image": ("sample", "pixels"),
    "log_figure": ("curve", "figure"),
    "log_audio": ("tone", "samples", 8000),
    "log_histogram": ("weights", "values"),
    "log_pr_curve": ("digit 3", "labels", "scores"),
    "log_embedding": ("features", "vectors", ("a", "b")),
    "log_graph": ("inputs",),
}


class Recorder:
    def __init__(self, *methods: str) -> None:
        self.calls: list[tuple] = []
        for method in methods:
            setattr(self, method, lambda *args, _name=method: self.calls.append((_name, *args)))


def test_the_calls_here_are_all_there_are():
    assert set(CALLS) == {name for name in vars(BaseRunner) if name.startswith("log_")} - {
        "log_path"
    }


@pytest.mark.parametrize("method", CALLS)
def test_a_call_goes_to_the_callbacks_that_have_the_method(method: str):
    runner = BaseRunner(default_callbacks=False)
    all_of_them, images = Recorder(*CALLS), Recorder("log_image")
    runner.callbacks = [Recorder(), images, all_of_them]  # type: ignore[assignment]  # they record calls alone

    getattr(runner, method)(*CALLS[method])

    assert all_of_them.calls == [(method, runner, *CALLS[method])]
    assert len(images.calls) == (method == "log_image")
