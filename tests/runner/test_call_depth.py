"""How far it is from `train()` to a hook's body and to `torch.save`: frames and files of ours."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import pytest

import danling
from danling.callback import Callback
from danling.testing import TinyRunner

PACKAGE = Path(danling.__file__).resolve().parent
OURS = (str(PACKAGE), str(PACKAGE.parent / "callbacks"))

STEP = ["on_batch_start", "on_before_step", "on_step", "on_batch_end", "on_checkpoint"]
AROUND = ["on_train_start", "on_epoch_start", "on_epoch_end"]
EVALUATION = ["on_evaluate_start", "on_evaluate_batch_end", "on_evaluate_end", "on_log"]


def way_to(frame: FrameType | None) -> list[tuple[str, str]]:
    """The frames of ours from `train()` to a frame, as (function, file)."""
    way: list[tuple[str, str]] = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(OURS) or not way:
            way.append((code.co_name, code.co_filename))
        if code.co_name == "train" and code.co_filename.startswith(OURS):
            return way[::-1]
        frame = frame.f_back
    return []


def watched(runner: TinyRunner, seen: Callable[[FrameType], None]) -> None:
    """Train, and look at the frame of each call of a Python function."""

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen(frame)

    sys.setprofile(look)
    try:
        runner.train()
    finally:
        sys.setprofile(None)


@pytest.fixture(scope="module")
def ways() -> dict[str, list[tuple[str, str]]]:
    """The longest way to each hook of a callback of the user's."""
    found: dict[str, list[tuple[str, str]]] = {}

    def hook(self: Callback, runner: TinyRunner, *_: Any) -> None: ...

    codes = {}
    hooks = {}
    for name in [*STEP, *AROUND, *EVALUATION]:
        method = FunctionType(hook.__code__.replace(co_name=name), hook.__globals__, name)
        hooks[name], codes[method.__code__] = method, name
    user = type("User", (Callback,), hooks)

    def seen(frame: FrameType) -> None:
        if (name := codes.get(frame.f_code)) is not None:
            found[name] = max(found.get(name, []), way_to(frame), key=len)

    config = {"max_epochs": 2, "log_interval": 1}
    watched(TinyRunner(config, callbacks=[user()], default_callbacks=False), seen)
    return found


@pytest.mark.parametrize("hook", [*STEP, *AROUND])
def test_a_hook_of_training_is_four_frames_and_two_files_from_train(hook: str, ways):
    files = {file for _, file in ways[hook][:-1]}

    assert len(ways[hook]) == 4
    assert len(files) == 2


@pytest.mark.parametrize("hook", EVALUATION)
def test_a_hook_of_evaluation_is_reached_through_evaluate(hook: str, ways):
    assert 4 <= len(ways[hook]) <= 8
    assert len({file for _, file in ways[hook][:-1]}) <= 3


def test_a_save_is_twelve_frames_and_six_files_from_train():
    ways = []

    def seen(frame: FrameType) -> None:
        module = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name == "save" and module == "torch.serialization":
            ways.append(way_to(frame))

    watched(TinyRunner({"max_epochs": 1}, default_callbacks=True), seen)

    assert ways
    assert max(map(len, ways)) <= 12
    assert max(len({file for _, file in way[:-1]}) for way in ways) <= 6
