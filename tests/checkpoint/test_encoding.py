"""What goes into a checkpoint comes back; what would not is refused with its path."""

from __future__ import annotations

import collections
import io
import math
import random
import threading
import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as day_time
from enum import Enum, Flag, IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from danling.checkpoint.encoding import TAG, decode, encode
from danling.errors import CheckpointError


class Colour(Enum):
    RED = "r"


class Level(IntEnum):
    LOW = 1


class Permission(Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(encode(value), file)
    file.seek(0)
    return decode(torch.load(file, weights_only=True))


def equal(a: Any, b: Any) -> bool:
    """Equality of values, types and bits: NaN equals NaN, and 1 is not 1.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor | np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bytes_of(a) == bytes_of(b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and not isinstance(a, torch.Size):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b or (a != a and b != b))


def bytes_of(array: Any) -> bytes:
    if isinstance(array, torch.Tensor):
        array = array.reshape(-1).contiguous().view(torch.uint8).numpy()
    return bytes(array.tobytes())


PLAIN: list[Any] = [
    None, True, 0, 2**200, -1.5, math.inf, math.nan, 1 + 2j, "", "ä\n\0", b"\0\xff",
    bytearray(b"ab"), [], [1, [2]], (), (1, (2,)), {}, {"a": {1: 2, (3, "x"): None, None: 0}},
    collections.OrderedDict(b=1, a=2), collections.Counter("aab"), {1, 2}, torch.Size([2, 3]),
    torch.float16, torch.device("cpu"),
]  # fmt: skip
TENSORS: list[Any] = [
    torch.arange(6).reshape(2, 3).t(), torch.tensor(1.5), torch.empty(0, 3),
    torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.complex64),
    torch.tensor([True]), torch.ones(2, dtype=torch.uint32),
]  # fmt: skip
TAGGED: list[Any] = [
    Path("a/b"), datetime(2024, 1, 2, 3, 4, 5, 6, UTC), datetime(2024, 1, 2),
    date(2024, 1, 2), day_time(1, 2), timedelta(days=-1, microseconds=3), Colour.RED, Level.LOW,
    np.float32(0.1), np.int64(-3), np.bool_(True), np.complex128(1j), np.str_("a"),
    np.arange(6.0).reshape(2, 3), np.array(3, dtype=np.uint8), np.zeros((0, 2)),
    np.arange(4, dtype=">i4"), np.array([1, 2], dtype=np.uint32), np.arange(9)[::-2],
    np.asfortranarray(np.arange(6).reshape(2, 3)), {TAG: "mine"}, {TAG: "path", "value": "a"},
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN + TENSORS, ids=repr)
def test_plain_values_and_tensors_are_passed_on_as_they_are(value: Any):
    assert encode(value) is value
    assert equal(through_a_file({"key": value}), {"key": value})


@pytest.mark.parametrize("value", TAGGED, ids=repr)
def test_common_types_come_back_as_they_were(value: Any):
    tree = {"callbacks": [value, (value, {"x": value})]}

    assert equal(through_a_file(tree), tree)


def test_the_random_states_of_numpy_and_python_come_back():
    state = {"numpy": np.random.RandomState(3).get_state(), "python": random.Random(3).getstate()}

    assert equal(through_a_file(state), state)


def test_what_is_encoded_is_not_changed_and_what_needs_nothing_is_not_copied():
    model = torch.nn.BatchNorm1d(2).state_dict()
    tree = {"model": model, "where": Path("x")}

    encoded = encode(tree)

    assert tree["where"] == Path("x")
    assert encoded["model"] is model


def test_a_state_dict_keeps_the_versions_of_its_modules():
    model: Any = torch.nn.BatchNorm1d(2).state_dict()
    model["extra"] = Path("x")  # has it rebuilt

    back = through_a_file(model)

    assert back._metadata == model._metadata
    assert back._metadata[""] == {"version": 2}


def test_tied_tensors_stay_tied():
    weight = torch.zeros(4)

    back = through_a_file({"a": weight, "b": weight, "half": weight[:2], "where": Path("x")})
    back["a"].fill_(7)

    assert back["b"].tolist() == [7, 7, 7, 7]
    assert back["half"].tolist() == [7, 7]


def test_parameters_stay_parameters():
    back = through_a_file({"p": torch.nn.Parameter(torch.ones(2), requires_grad=False)})

    assert type(back["p"]) is torch.nn.Parameter
    assert back["p"].requires_grad is False


def test_attributes_of_a_tensor_stay_behind_and_its_data_does_not():
    tensor: Any = torch.ones(2)
    tensor.owner = object()

    assert through_a_file({"t": tensor})["t"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (threading.Lock(), r"callbacks\['timer'\]\['start'\] is _thread\.lock; a checkpoint holds"),
        (collections.defaultdict(int), r"\['start'\] is collections\.defaultdict"),
        (Point(1), r"\['start'\] is .*Point; "),
        (frozenset({1}), r"\['start'\] is builtins\.frozenset"),
        (lambda: 0, r"\['start'\] is builtins\.function"),
        (torch.empty(2, device="meta"), r"\['start'\] is a tensor on the meta device"),
        (np.array(["a"]), r"\['start'\] is a numpy array of <U1; use a list"),
        (np.array([object()]), r"\['start'\] is a numpy array of object"),
        (np.datetime64("2024-01-01"), r"\['start'\] is numpy\.datetime64"),
        (np.ma.array([1]), r"\['start'\] is numpy\.ma\."),
        (np.random.default_rng(0), r"\['start'\] is numpy\.random"),
        (Permission.READ | Permission.WRITE, r"\['start'\] is .*Permission"),
        ({Path("x"): 1}, r"\['start'\] has the key .*Path\('x'\).*: use a string or a number"),
        ({Colour.RED}, r"\['start'\] has the element .*Colour\.RED"),
        ([0, {"deep": (1, slice(2))}], r"\['start'\]\[1\]\['deep'\]\[1\] is builtins\.slice"),
    ],
)
def test_what_would_not_come_back_is_refused_with_its_path(value: Any, message: str):
    with pytest.raises(CheckpointError, match=message):
        encode({"model": {}, "callbacks": {"timer": {"start": value}}})


def test_a_value_that_contains_itself_is_an_error():
    loop: list[Any] = []
    loop.append(loop)

    with pytest.raises(
        CheckpointError, match=r"x\[0\]\[0\].*\[\.\.\.\] contains itself, or is nested"
    ):
        encode({"x": loop})


def test_an_enum_that_is_not_imported_is_its_name_with_a_warning(caplog):
    encoded = {TAG: "enum", "class": "os_gone:Colour", "value": "RED"}

    assert decode(encoded) == "RED"
    assert "os_gone:Colour is not imported" in caplog.text


def test_an_enum_s_address_never_leads_to_anything_but_an_enum(caplog):
    assert decode({TAG: "enum", "class": "os:system", "value": "name"}) == "name"


def test_a_tag_of_a_newer_version_is_named():
    with pytest.raises(CheckpointError, match="'quaternion' was written by a newer version"):
        decode({TAG: "quaternion", "value": 1})


def random_tree(source: random.Random, depth: int) -> Any:
    if depth == 0 or source.random() < 0.4:
        return source.choice(PLAIN + TENSORS + TAGGED)
    items = [random_tree(source, depth - 1) for _ in range(source.randrange(4))]
    if source.random() < 0.3:
        return items
    if source.random() < 0.3:
        return tuple(items)
    return {source.choice(["a", "b", TAG, 3, (1, "x")]): item for item in items}


@pytest.mark.parametrize("seed", range(60))
def test_every_tree_that_is_accepted_comes_back(seed: int):
    tree = {"x": random_tree(random.Random(seed), 4)}

    assert equal(through_a_file(tree), tree)


def test_thousands_of_tensors_cost_milliseconds():
    state = {i: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)} for i in range(3000)}
    times = []

    for _ in range(5):
        start = time.perf_counter()
        encode({"optimizer": {"state": state}})
        times.append(time.perf_counter() - start)

    assert min(times) < 0.05
