"""On two processes whatever is trained has equal weights on both, or training is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.distributed.processes import leave, results, succeed, together
from tests.support.held import Held
from tests.support.resume_harness import digest


def train(folder: Path, case: str) -> None:
    torch.set_num_threads(1)
    runner = Held(folder, case, size=2, max_epochs=3)
    modules = {name: part for name, part in vars(runner).items() if isinstance(part, nn.Module)}
    if case == "criterion":
        with torch.no_grad():
            runner.criterion.weight.add_(runner.rank)  # another beginning on each process
    try:
        runner.train()
    finally:
        state = {name: module.state_dict() for name, module in modules.items()}
        leave(folder, {"digest": digest(state), "steps": runner.global_step})


@pytest.mark.parametrize("case", ["criterion", "two_models", "thawed"])
def test_what_is_trained_is_equal_on_all_processes(case: str, tmp_path: Path) -> None:
    succeed(2, train, tmp_path, case, folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first["steps"] >= 10
    assert first == second


def test_parts_that_are_called_past_their_wrapper_are_refused_before_a_step(tmp_path: Path) -> None:
    ended = together(2, train, tmp_path, "networks", folder=tmp_path)

    assert any(ended.codes)
    assert "parts of the model were called one by one, past the DistributedData" in ended.output
    assert all(result["steps"] == 0 for result in results(tmp_path, 2))


def test_a_container_without_a_forward_is_refused_with_the_way_out(tmp_path: Path) -> None:
    ended = together(2, train, tmp_path, "container", folder=tmp_path)

    assert any(ended.codes)
    assert "the model is a ModuleDict without a forward, and its parts are called" in ended.output
    assert 'model={"encoder": ..., "decoder": ...}' in ended.output
    assert all(result["steps"] == 0 for result in results(tmp_path, 2))
