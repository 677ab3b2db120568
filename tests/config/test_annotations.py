from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from danling import Config
from danling.config.types import describe_type, is_section, require_supported, union_arms
from danling.errors import ConfigError


class Act(Enum):
    RELU = "relu"


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
