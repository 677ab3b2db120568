from __future__ import annotations

import contextlib
import json
import math
import os
from datetime import UTC, date, datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danling.errors import ConfigError
from danling.files.json import (
    MAX_DEPTH,
    canonical_json,
    dotted,
    dumps,
    loads,
    read_json,
    to_jsonable,
    to_plain,
)


class Colour(Enum):
    RED = "r"


class Level(IntEnum):
    LOW = 1


class Text(str):
    __slots__ = ()


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("é", "é"),
        (Text("x"), "x"),
        (10**400, 10**400),
        ((1, (2,)), [1, [2]]),
        (Colour.RED, "RED"),
        (Level.LOW, "LOW"),
        (Path("a") / "b", "a/b"),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (date(2024, 1, 2), "2024-01-02"),
        (datetime(2024, 1, 2, 3, tzinfo=UTC), "2024-01-02T03:00:00+00:00"),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), "NaN"),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("s"), "s"),
        (np.array(2), 2),
        (torch.tensor(1.5), 1.5),
        (torch.tensor(True), True),
        (torch.bfloat16, "torch.bfloat16"),
        (torch.device("cuda:0"), "cuda:0"),
    ],
    ids=repr,
)
def test_a_value_becomes_plain(value, expected):
    plain = to_jsonable({"key": value})["key"]

    assert plain == expected
    assert type(plain) is type(expected)


def test_one_error_lists_every_value_that_cannot_be_saved():
    def relu():
        pass

    cyclic: list[Any] = []
    cyclic.append(cyclic)
    value = {
        "model": {"layers": [1, 2, {"act": relu}]},
        "tags": {"b"},
        "key": b"x",
        "weight": torch.ones(2),
        "cyclic": cyclic,
        "table": {1: 2},
        "big": 10**5000,
        "thing": object(),
        "good": 1,
    }

    with pytest.raises(ConfigError) as caught:
        to_jsonable(value, "config")

    lines = str(caught.value).splitlines()
    assert lines[0] == "8 values cannot be saved:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "config.model.layers[2].act",
        "config.tags",
        "config.key",
        "config.weight",
        "config.cyclic[0]",
        "config.table",
        "config.big",
        "config.thing",
    ]
    assert 'relu> (function) is not JSON-serialisable; use a name ("relu")' in lines[1]
    assert "0x" not in str(caught.value)


def test_a_single_problem_is_a_single_line():
    with pytest.raises(ConfigError, match=r"\Aconfig\.f: <.*> \(function\) is not .*\Z"):
        to_jsonable({"f": lambda: 0}, "config")


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 5000])
def test_deep_nesting_is_a_clear_error(levels):
    with pytest.raises(ConfigError, match=f"nested deeper than {MAX_DEPTH} levels"):
        to_jsonable(nested(levels), "config")


def test_the_deepest_nesting_that_is_accepted_can_be_written_and_read():
    value = nested(MAX_DEPTH - 1)

    assert loads(dumps(value)) == value


def test_the_value_is_not_changed():
    value = {"a": (1, math.nan), "b": [Colour.RED]}

    to_jsonable(value)

    assert value["b"] == [Colour.RED]
    assert isinstance(value["a"], tuple)


def test_the_same_object_twice_is_no_cycle():
    shared = [1]

    assert to_jsonable([shared, shared]) == [[1], [1]]


def test_plain_values_keep_their_non_finite_floats():
    plain = to_plain({"a": (math.inf, Path("x"))})

    assert plain == {"a": [math.inf, "x"]}


def test_dumps_writes_valid_json():
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = dumps({"a": math.nan, "b": [math.inf], "c": "\ud800\u2028"}, indent=2)

    assert json.loads(text, parse_constant=refuse) == {
        "a": "NaN",
        "b": ["Infinity"],
        "c": "\ud800\u2028",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "a": 2}', "f.json: the key 'a' appears twice"),
        ('{"x": {"a": 1, "a": 2}}', "f.json: the key 'a' appears twice"),
        ('{\n "a": 1,\n}', "f.json, line 3, column 1: not valid JSON"),
        ("", "f.json, line 1, column 1: not valid JSON"),
        ("[" * 100_000, "f.json: nested deeper"),
    ],
)
def test_wrong_json_names_the_file_and_the_place(text, problem):
    with pytest.raises(ConfigError) as caught:
        loads(text, "f.json")

    assert str(caught.value).startswith(problem)


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    assert canonical_json({"b": 1, "a": {"d": 1, "c": 2}}) == '{"a":{"c":2,"d":1},"b":1}'
    assert canonical_json({"a": {"c": 2, "d": 1}, "b": 1}) == '{"a":{"c":2,"d":1},"b":1}'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-0.0, "0.0"),
        ([-0.0, {"a": -0.0}], '[0.0,{"a":0.0}]'),
        (1, "1"),
        (1.0, "1.0"),
        (1e-07, "1e-07"),
        ("é", '"\\u00e9"'),
        (math.nan, '"NaN"'),
        ((1, 2), "[1,2]"),
        (True, "true"),
    ],
)
def test_canonical_json_of_a_value(value, expected):
    assert canonical_json(value) == expected


WORDS = ["NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize("word", WORDS)
def test_a_number_that_json_lacks_is_never_taken_for_the_text_of_its_name(word: str):
    value = [float(word), word, f"\\{word}", f"\\\\{word}", f"{word}!", {"key": word}]

    again = loads(dumps(value))

    assert repr(again) == repr(value)
    assert json.loads(dumps(value))[0] == word
    assert repr(loads(f'{{"old": "{word}"}}')["old"]) == repr(float(word))


def test_a_file_that_is_read_and_written_again_stays_the_same(tmp_path: Path):
    value = {"a": float("inf"), "b": "Infinity", "c": "\\Infinity"}
    text = dumps(value)

    for _ in range(3):
        text = dumps(loads(text))

    assert loads(text) == value


HOSTILE = {
    "deep lists": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 1_000_000,
    "a little too deep": b"[" * 102 + b"]" * 102,
    "a long number": b'{"a": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"a": "\xff"}',
    "a key twice": b'{"a": 1, "a": 2}',
    "nothing": b"",
    "zeros": bytes(1000),
    "cut": b'{"a": [1, 2',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_an_error_that_names_it(tmp_path: Path, content: bytes):
    (tmp_path / "run.json").write_bytes(content)

    with pytest.raises(ConfigError, match=r"run\.json"):
        read_json(tmp_path / "run.json")


def test_a_pipe_and_a_directory_are_no_json_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ConfigError, match="pipe: not a regular file"):
        read_json(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8")))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_value_or_a_config_error(content: bytes):
    with contextlib.suppress(ConfigError):
        loads(content)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.sampled_from(WORDS),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_what_is_read(value: Any):
    assert repr(loads(dumps(value))) == repr(value)


def test_nested_keys_are_dotted():
    assert dotted({"a": {"b": {"c": 1}, "d": {}}, "e": [1]}) == {"a.b.c": 1, "a.d": {}, "e": [1]}
