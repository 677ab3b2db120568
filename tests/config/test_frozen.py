from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from danling import Config, ConfigError
from danling.config.frozen import copy_value, freeze_value, plain_value, thaw_value


def value() -> dict[str, Any]:
    return {"list": [1, {"a": [2]}], "tuple": ([3],), "text": "x"}


@pytest.mark.parametrize("rebuild", [copy_value, plain_value, thaw_value])
def test_a_rebuilt_value_is_equal_and_shares_no_container(rebuild):
    original = value()

    rebuilt = rebuild(original)
    rebuilt["list"][1]["a"].append(9)
    rebuilt["tuple"][0].append(9)

    assert original == value()
    assert type(rebuilt["tuple"]) is tuple


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda v: v["list"].append(1), "config.key.list"),
        (lambda v: v["list"].extend([1]), "config.key.list"),
        (lambda v: v["list"].insert(0, 1), "config.key.list"),
        (lambda v: v["list"].remove(1), "config.key.list"),
        (lambda v: v["list"].pop(), "config.key.list"),
        (lambda v: v["list"].clear(), "config.key.list"),
        (lambda v: v["list"].sort(), "config.key.list"),
        (lambda v: v["list"].reverse(), "config.key.list"),
        (lambda v: v["list"].__setitem__(0, 1), "config.key.list"),
        (lambda v: v["list"].__delitem__(0), "config.key.list"),
        (lambda v: v["list"].__iadd__([1]), "config.key.list"),
        (lambda v: v["list"].__imul__(2), "config.key.list"),
        (lambda v: v["list"][1]["a"].append(1), "config.key.list[1].a"),
        (lambda v: v["tuple"][0].append(1), "config.key.tuple[0]"),
        (lambda v: v.update(a=1), "config.key"),
        (lambda v: v.pop("list"), "config.key"),
        (lambda v: v.popitem(), "config.key"),
        (lambda v: v.clear(), "config.key"),
        (lambda v: v.setdefault("new", 1), "config.key"),
        (lambda v: v.__setitem__("a", 1), "config.key"),
        (lambda v: v.__delitem__("list"), "config.key"),
        (lambda v: v.__ior__({"a": 1}), "config.key"),
    ],
)
def test_every_change_of_a_frozen_value_is_refused_with_its_path(change, path):
    frozen = freeze_value(value(), "config.key")

    with pytest.raises(ConfigError) as caught:
        change(frozen)

    assert str(caught.value).startswith(f"{path} is frozen")
    assert frozen == value()


def test_a_frozen_value_behaves_as_what_it_was():
    frozen = freeze_value(value(), "config")

    assert json.dumps(frozen) == json.dumps(value())
    assert [*frozen["list"], 3] == [1, {"a": [2]}, 3]
    for same in (pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen)):
        assert same == frozen
        with pytest.raises(ConfigError, match="is frozen"):
            same["list"].append(1)


def test_thawing_undoes_freezing():
    thawed = thaw_value(freeze_value(value(), "config"))
    thawed["list"].append(3)

    assert thawed["list"] == [1, {"a": [2]}, 3]


def test_sections_in_lists_are_copied_frozen_and_made_plain():
    sections = [Config(a=[1])]

    copied = copy_value(sections)
    plain = plain_value(sections)
    freeze_value(sections, "config")

    assert (type(copied[0]), type(plain[0])) == (Config, dict)
    assert not copied[0].frozen
    assert sections[0].frozen


def test_a_value_that_contains_itself_is_left_alone():
    cyclic: list[Any] = []
    cyclic.append(cyclic)

    assert copy_value(cyclic) is cyclic
