"""The flags of torch that a configuration changes are of its own runner alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import danling as dl
from danling.distributed.launch import environment_of_accelerate, forget_accelerate_state
from danling.seed import Flags, set_torch_flags, torch_flags
from danling.testing import TinyRunner

DETERMINISTIC = {"deterministic": True, "max_epochs": 1}


@pytest.fixture(autouse=True)
def flags(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The flags as they are in a process that nobody has changed."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    plain = {"algorithms": (False, False), "cudnn.deterministic": False, "tf32": False}
    before = torch_flags()
    monkeypatch.setattr(Flags, "_last", None)
    monkeypatch.setattr("danling.seed._CHANGED", {})
    set_torch_flags(plain | {"cudnn.benchmark": True})
    yield torch_flags()
    set_torch_flags(before)


class Seen(dl.Callback):
    def __init__(self) -> None:
        self.flags: list[bool] = []

    def on_step(self, runner: Any) -> None:
        self.flags.append(torch.are_deterministic_algorithms_enabled())

    def on_evaluate_batch_start(self, runner: Any, batch: Any) -> None:
        self.flags.append(torch.are_deterministic_algorithms_enabled())


def test_the_next_runner_has_those_of_before(flags: dict[str, Any]) -> None:
    first = TinyRunner(DETERMINISTIC)
    assert torch_flags() == flags | {
        "algorithms": (True, False),
        "cudnn.deterministic": True,
        "cudnn.benchmark": False,
    }
    first.train()
    second = TinyRunner()
    assert torch_flags() == flags
    second.train()

    assert torch_flags() == flags


def test_runners_that_take_turns_each_have_their_own(flags: dict[str, Any]) -> None:
    seen = [Seen(), Seen()]
    first = TinyRunner(DETERMINISTIC, callbacks=[seen[0]])
    second = TinyRunner(callbacks=[seen[1]])
    for runner in (first, second, first, second):
        runner.evaluate("val")
    first.train()
    second.train()

    assert len(seen[0].flags) > 8
    assert all(seen[0].flags)
    assert not any(seen[1].flags)


@pytest.mark.parametrize("outer", [True, False])
def test_a_runner_in_a_callback_leaves_the_open_training_its_own(outer: bool) -> None:
    class Inner(dl.Callback):
        def on_batch_end(self, runner: Any, batch: Any, output: Any) -> None:
            TinyRunner({"deterministic": not outer}).evaluate("val")

    seen = Seen()
    runner = TinyRunner({"deterministic": outer, "max_epochs": 1}, callbacks=[Inner(), seen])
    runner.train()

    assert seen.flags == [outer] * 8


def test_what_a_user_sets_stays(flags: dict[str, Any]) -> None:
    TinyRunner(DETERMINISTIC)
    torch.backends.cudnn.benchmark = True  # again, although it was asked for determinism
    TinyRunner()
    assert torch_flags() == flags

    torch.use_deterministic_algorithms(True, warn_only=True)
    runner = TinyRunner()
    runner.evaluate("val")
    assert torch_flags()["algorithms"] == (True, True)
    torch.use_deterministic_algorithms(False)
    runner.evaluate("val")
    assert torch_flags()["algorithms"] == (False, False)


def test_seeding_before_a_model_is_built_is_no_wish_of_the_user_for_all(
    flags: dict[str, Any],
) -> None:
    dl.seed_everything(dl.Config(seed=0, deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    dl.seed_everything(dl.Config(seed=0))
    assert torch_flags() == flags
    dl.seed_everything(dl.Config(seed=0, deterministic=True))

    TinyRunner()

    assert torch_flags() == flags


def test_what_accelerate_sets_for_one_runner_is_put_back(flags: dict[str, Any]) -> None:
    with environment_of_accelerate():
        torch.backends.cuda.matmul.allow_tf32 = True  # as it does on CUDA for torch.compile
    assert torch_flags()["tf32"]

    forget_accelerate_state()

    assert torch_flags() == flags
