# ruff: noqa: RUF012 - a config copies its defaults
# mypy: disable-error-code="arg-type,call-arg,misc"
# (values in these tests are converted when they are set, or are wrong on purpose)
from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Optional

import numpy as np
import pytest
import torch

from danling import Config
from danling.config.types import describe_type, is_section, require_supported, union_arms
from danling.errors import ConfigError


class Act(Enum):
    RELU = "relu"
    GELU = "gelu"


class Size(IntEnum):
    SMALL = 1


class Optim(Config):
    lr: float = 0.1
    name: str = "sgd"


class Everything(Config):
    integer: int = 0
    number: float = 0.0
    flag: bool = False
    text: str = ""
    path: Path = Path()
    act: Act = Act.RELU
    size: Size = Size.SMALL
    choice: Literal["a", "b", 3] = "a"
    maybe: int | None = None
    old_style: Optional[float] = None  # noqa: UP045
    either: bool | str = False
    number_or_name: int | str = 0
    integers: list[int] = []
    any_list: list = []
    pair: tuple[int, float] = (0, 0.0)
    many: tuple[str, ...] = ()
    weights: dict[str, float] = {}
    table: dict[str, list[int]] = {}
    section: Optim
    maybe_section: Optim | None = None
    several: list[Optim] = []
    open_section: Mapping[str, Any] = {}
    anything: Any = None


GOOD = [
    ("integer", 3, 3),
    ("integer", 3.0, 3),
    ("integer", "3", 3),
    ("integer", "1e3", 1000),
    ("integer", np.int64(3), 3),
    ("integer", torch.tensor(3), 3),
    ("integer", Size.SMALL, 1),
    ("number", 1, 1.0),
    ("number", "1e-3", 1e-3),
    ("number", np.float32(0.5), 0.5),
    ("number", "Infinity", float("inf")),
    ("number", ".inf", float("inf")),
    ("flag", True, True),
    ("flag", "true", True),
    ("flag", "False", False),
    ("flag", np.bool_(True), True),
    ("text", "no", "no"),
    ("text", Path("a/b"), "a/b"),
    ("path", "a/b", Path("a/b")),
    ("path", PurePosixPath("a"), Path("a")),
    ("act", "GELU", Act.GELU),
    ("act", "gelu", Act.GELU),
    ("act", Act.GELU, Act.GELU),
    ("size", 1, Size.SMALL),
    ("choice", "b", "b"),
    ("choice", 3, 3),
    ("maybe", None, None),
    ("maybe", 2.0, 2),
    ("old_style", 1, 1.0),
    ("either", True, True),
    ("either", "auto", "auto"),
    ("either", "true", "true"),
    ("number_or_name", "7", "7"),
    ("number_or_name", 7, 7),
    ("integers", (1, 2.0), [1, 2]),
    ("any_list", ["a", 1], ["a", 1]),
    ("pair", [1, 2], (1, 2.0)),
    ("many", ["a", "b"], ("a", "b")),
    ("weights", {"a": 1}, {"a": 1.0}),
    ("weights", {"items": 1, "a.b": 2}, {"items": 1.0, "a.b": 2.0}),
    ("table", {"a": (1,)}, {"a": [1]}),
    ("section", {"lr": 1}, Optim(lr=1.0)),
    ("maybe_section", {"lr": 1}, Optim(lr=1.0)),
    ("several", [{"lr": 1}, Optim()], [Optim(lr=1.0), Optim()]),
    ("open_section", {"a": {"b": 1}}, Config(a={"b": 1})),
    ("anything", "no", "no"),
    ("anything", {"a": 1}, Config(a=1)),
]


@pytest.mark.parametrize(("key", "value", "expected"), GOOD, ids=str)
def test_a_value_is_converted_to_the_type_of_its_field(key, value, expected):
    config = Everything({key: value})

    assert config[key] == expected
    assert type(config[key]) is type(expected)


BAD = [
    ("integer", "many", "config.integer: expected an int, got 'many' (str)"),
    ("integer", 1.5, "config.integer: expected an int, got 1.5 (float)"),
    ("integer", True, "config.integer: expected an int, got True (bool)"),
    ("integer", float("inf"), "config.integer: expected an int, got inf (float)"),
    ("integer", None, "config.integer: expected an int, got None (NoneType)"),
    ("number", "fast", "config.number: expected a float, got 'fast' (str)"),
    ("number", 10**400, "config.number: expected a float, got 1"),
    ("flag", "no", "config.flag: expected true or false, got 'no' (str)"),
    ("flag", 1, "config.flag: expected true or false, got 1 (int)"),
    ("text", 5, "config.text: expected a string, got 5 (int); put it in quotes"),
    ("path", 5, "config.path: expected a path, got 5 (int)"),
    ("act", "GLU", "config.act: 'GLU' is not a Act; did you mean 'GELU'?"),
    ("choice", "c", "config.choice: expected one of 'a', 'b', 3, got 'c' (str)"),
    ("choice", 3.0, "config.choice: expected one of 'a', 'b', 3, got 3.0 (float)"),
    ("maybe", "x", "config.maybe: expected an int or null, got 'x' (str)"),
    ("either", 2, "config.either: expected true or false or a string, got 2 (int)"),
    ("integers", 3, "config.integers: expected a list of int, got 3 (int)"),
    ("integers", "12", "config.integers: expected a list of int, got '12' (str)"),
    ("integers", [1, "x"], "config.integers[1]: expected an int, got 'x' (str)"),
    ("pair", [1], "config.pair: expected 2 values (int, float), got [1] (list)"),
    ("weights", {"a": "x"}, "config.weights.a: expected a float, got 'x' (str)"),
    ("weights", {1: 2.0}, "config.weights: expected a mapping with string keys"),
    ("section", 3, "config.section: expected a mapping with string keys, got 3 (int)"),
    ("section", {"lrr": 1}, "config.section has no key 'lrr'; did you mean 'lr'?"),
    ("maybe_section", {"lr": "x"}, "config.maybe_section.lr: expected a float, got 'x'"),
    ("several", [{}, {"lr": "x"}], "config.several[1].lr: expected a float, got 'x' (str)"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=str)
def test_a_value_of_the_wrong_type_names_path_value_and_type(key, value, message):
    with pytest.raises(ConfigError) as caught:
        Everything({key: value})

    assert str(caught.value).startswith(message)


def test_a_value_that_is_refused_changes_nothing():
    config = Everything(integer=1)

    with pytest.raises(ConfigError):
        config["integer"] = "x"

    assert config.integer == 1


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true or false"),
        (int | None, "an int or null"),
        (Optional[float], "a float or null"),  # noqa: UP045
        (Path, "a path"),
        (Any, "any value"),
        (Act, "a Act"),
        (Literal["min", "max"], "one of 'min', 'max'"),
        (list, "a list"),
        (list[str], "a list of string"),
        (tuple[int, ...], "a list of int"),
        (tuple[int, float], "2 values (int, float)"),
        (dict[str, int], "a mapping with string keys"),
        (Config, "a mapping with string keys"),
    ],
    ids=str,
)
def test_a_type_is_described_in_words(annotation, words):
    assert describe_type(annotation) == words


def test_the_arms_of_a_union_are_its_types_without_none():
    assert union_arms(int | str | None) == (int, str)
    assert union_arms(Optional[int]) == (int,)  # noqa: UP045
    assert union_arms(list[int]) == (list[int],)


def test_only_classes_of_configurations_are_sections():
    assert is_section(Config)
    assert not is_section(dict)
    assert not is_section(dict[str, int])


@pytest.mark.parametrize(
    "annotation", [int, Path, Act, Config, list[dict[str, Act]], tuple[int, ...], Literal[1, True]]
)
def test_types_that_come_back_from_a_file_are_supported(annotation):
    require_supported(annotation, "Model.key")


@pytest.mark.parametrize("annotation", [bytes, set, list[bytes], dict[int, int], Literal[b"x"]])
def test_types_that_do_not_come_back_from_a_file_are_refused(annotation):
    with pytest.raises(ConfigError, match=r"\AModel\.key: "):
        require_supported(annotation, "Model.key")
