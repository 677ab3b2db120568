"""What is not sharded is handled as torch does; what is, in tests/distributed/test_sharded.py."""

from __future__ import annotations

import torch
from torch import nn

from danling.checkpoint.sharded.state import model_state_of
from danling.distributed.sharding import in_lockstep, is_sharded
from danling.distributed.world import World


def test_a_plain_model_is_not_sharded() -> None:
    assert not is_sharded(nn.Linear(2, 2))
    assert not is_sharded(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert not is_sharded(None)
    assert not is_sharded(lambda inputs: inputs)


def test_the_state_of_a_plain_model_is_that_of_torch() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    successor = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)

    state, successors = model_state_of(model, model), model_state_of(other, other)
    successors.load(state.state() or {})
    successors.load_optimizer_state(successor, state.optimizer_state(optimizer))

    assert torch.equal(other.weight, model.weight)
    assert str(successor.state_dict()) == str(optimizer.state_dict())


def test_batches_of_one_process_are_handed_on() -> None:
    batches = in_lockstep(World(), iter([1, 2, 3]), print, torch.device("cpu"))

    assert list(batches) == [1, 2, 3]
