"""A snapshot is the step it was taken at, and no larger than what it was taken from."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from danling.checkpoint.background import on_host, snapshot
from danling.checkpoint.encoding import decode, encode
from danling.errors import CheckpointError
from tests.support.tensors import are_identical


def test_training_goes_on_and_the_snapshot_does_not_change():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    results, history = [{"epoch": 0}], np.zeros(3)
    expected = [tensor.clone() for tensor in model.state_dict().values()]

    taken = snapshot(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "results": results,
            "callbacks": {"history": history, "seen": {1}},
        }
    )
    optimizer.step()
    results[0]["epoch"] = 1
    results.append({"epoch": 1})
    history += 1

    payload = decode(taken.payload)
    assert are_identical(payload["model"].values(), expected)
    assert payload["optimizer"]["state"][0]["step"] == 1
    assert payload["results"] == [{"epoch": 0}]
    assert payload["callbacks"]["history"].tolist() == [0, 0, 0]
    assert payload["callbacks"]["seen"] == {1}


def test_tied_weights_are_copied_once_and_stay_tied():
    weight = torch.zeros(1000, 10)
    parts = {"embedding": weight, "head": weight, "row": weight[3], "transposed": weight.t()}

    copied = snapshot({"model": parts}).payload["model"]
    copied["row"].fill_(5)

    storages = {tensor.untyped_storage().data_ptr() for tensor in copied.values()}
    assert len(storages) == 1
    assert copied["head"][3].tolist() == [5] * 10
    assert copied["transposed"].stride() == (1, 10)
    assert weight.sum() == 0


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).reshape(2, 3).t(),
        torch.empty(0, 3),
        torch.tensor(2.5),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.eye(3).to_sparse(),
        torch.nn.Parameter(torch.ones(2), requires_grad=False),
        torch.ones(2, requires_grad=True),
        torch.ones(2, requires_grad=True) * 2,
        torch.ones(3).expand(4, 3),
    ],
    ids=repr,
)
def test_every_kind_of_tensor_is_copied_as_it_is(tensor: torch.Tensor):
    copied = snapshot({"t": tensor}).payload["t"]

    assert copied is not tensor
    assert type(copied) is type(tensor)
    assert (copied.dtype, copied.shape, copied.layout) == (
        tensor.dtype,
        tensor.shape,
        tensor.layout,
    )
    assert torch.equal(copied.detach().to_dense(), tensor.detach().to_dense())


def test_a_state_dict_keeps_its_type_and_metadata():
    state: Any = torch.nn.BatchNorm1d(2).state_dict()

    copied: Any = snapshot({"model": state}).payload["model"]

    assert type(copied) is collections.OrderedDict
    assert vars(copied) == vars(state)


def test_what_cannot_be_saved_is_refused_on_the_training_thread():
    with pytest.raises(CheckpointError, match=r"callbacks\['a'\] is builtins\.object"):
        snapshot({"callbacks": {"a": object()}})


def test_host_tensors_are_not_copied_for_a_save_that_waits():
    weight = torch.zeros(2)
    payload = encode({"model": {"weight": weight}, "where": Path("x")})

    assert on_host(payload)["model"]["weight"] is weight


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("take", [lambda tree: snapshot(tree).payload, on_host])
def test_tensors_of_a_gpu_come_to_the_host_complete_and_tied(take: Any):
    weight = torch.arange(1 << 20, device="cuda")

    copied = take({"a": weight, "b": weight, "half": weight[: 1 << 19]})
    weight.zero_()

    assert copied["a"].device.type == "cpu"
    assert torch.equal(copied["a"], torch.arange(1 << 20))
    assert copied["half"].data_ptr() == copied["b"].data_ptr()


def parts_of(number: int, size: int = 3 << 20) -> dict[str, Any]:
    """A checkpoint whose tensors are of several sizes, with what one save after another has."""
    large = torch.full((size,), number, dtype=torch.uint8)
    parts = {"model": {"w": large, "tied": large[7:], "b": torch.full((3,), float(number))}}
    return parts | {"optimizer": {"state": {0: torch.full((size,), number + 1.0)}}}


def test_the_memory_of_the_last_snapshot_is_written_over():
    first = snapshot(parts_of(1))
    places = {storage.data_ptr() for storage, _ in first.memory}

    second = snapshot(parts_of(2), first)

    assert {storage.data_ptr() for storage, _ in second.memory} == places
    model = second.payload["model"]
    assert torch.equal(model["w"], parts_of(2)["model"]["w"])
    assert torch.equal(model["tied"], parts_of(2)["model"]["tied"])
    assert model["tied"].untyped_storage().data_ptr() == model["w"].untyped_storage().data_ptr()
    assert torch.equal(second.payload["optimizer"]["state"][0], torch.full((3 << 20,), 3.0))


def test_memory_of_another_size_is_new_and_no_two_tensors_share_what_was_one():
    first = snapshot({"model": {"w": torch.ones(1000)}})
    two = {"a": torch.zeros(1000), "b": torch.ones(1000), "c": torch.ones(999)}

    second = snapshot({"model": two}, first).payload["model"]

    assert all(torch.equal(second[name], two[name]) for name in two)


def test_a_snapshot_in_memory_of_the_last_one_is_all_of_its_own_step():
    """Whatever sizes and types follow each other, as when an optimizer begins to keep states."""
    last = None
    for number in range(6):
        parts = parts_of(number, (1 << 20) + (number % 3))
        last = snapshot(parts, last)
        assert torch.equal(last.payload["model"]["w"], parts["model"]["w"])
        state = last.payload["optimizer"]["state"][0]
        assert torch.equal(state, parts["optimizer"]["state"][0])
