from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from danling.transfer import move, transferred

META = torch.device("meta")


class Pair(NamedTuple):
    left: torch.Tensor
    right: object


class Encoding:
    """Knows how to move itself."""

    def __init__(self, device="cpu"):
        self.device = device

    def to(self, device, non_blocking=False):
        return Encoding(device)


def test_on_the_cpu_batches_pass_as_they_are():
    batches = iter([torch.zeros(2)])

    assert transferred(batches, torch.device("cpu")) is batches


def test_tensors_are_moved_wherever_they_are_in_a_batch():
    tensor = torch.zeros(2)
    batch = {"a": tensor, "b": [tensor, ("name", 3, None)], "c": Pair(tensor, "right")}

    moved = move(batch, META)

    assert moved["a"].device == moved["b"][0].device == moved["c"].left.device == META
    assert moved["b"][1] == ("name", 3, None)
    assert type(moved["c"]) is Pair
    assert moved["c"].right == "right"
    assert tensor.device.type == "cpu"


def test_a_batch_that_can_move_itself_does():
    assert move(Encoding(), META).device == META


def test_batches_are_moved_in_order_and_only_as_they_are_needed():
    read = []

    def batches():
        for number in range(3):
            read.append(number)
            yield {"input": torch.zeros(number + 1)}

    moved = transferred(batches(), META)
    first = next(moved)

    assert (first["input"].device, read) == (META, [0])
    assert [len(batch["input"]) for batch in moved] == [2, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_one_batch_is_read_ahead_and_every_one_arrives():
    read = []

    def batches():
        for number in range(20):
            read.append(number)
            yield {"x": [torch.full((1 << 20,), float(number)).pin_memory()]}

    sums, ahead = [], []
    for batch in transferred(batches(), torch.device("cuda")):
        ahead.append(len(read))
        torch.cuda._sleep(1_000_000)
        sums.append((batch["x"][0] * 2).sum().item() / (2 << 20))

    assert sums == [float(number) for number in range(20)]
    assert ahead == [*range(2, 21), 20]
