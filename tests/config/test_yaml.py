from __future__ import annotations

import math
import random
import time

import pytest
import yaml

from danling.config.yaml import dump_yaml, load_yaml
from danling.errors import ConfigError
from danling.files.json import MAX_DEPTH

AWKWARD = [
    *("1e-3", "no", "yes", "on", "off", "NULL", "~", "", "010", "0o7", "0x1F", "1:30", "1_000"),
    *("<<", "=", ".nan", "-.inf", "a: b", "# x", "x\ny", " s ", "\u2028", "é", "\ttab", "- a"),
    *("{", "*a", "&a", "!x", "%", "2024-01-01", "\x07", "true", "\U0001f600", "a" * 300, "1."),
    *("-0.0", "+1e5", ".5", "-", "?", "|", ">", "'", '"', "\\", "a\n\n", "\n", "@", "`", "---"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 1e-3),
        ("010", 10),
        ("true", True),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text, expected):
    value = load_yaml(f"key: {text}")["key"]

    assert value == expected
    assert type(value) is type(expected)


def test_not_a_number_is_read():
    assert math.isnan(load_yaml("key: .nan")["key"])


def test_keys_are_strings_as_written():
    assert load_yaml("1: a\nno: b\n1e-3: c\nnull: d") == {
        "1": "a",
        "no": "b",
        "1e-3": "c",
        "null": "d",
    }


def test_anchors_and_merges_work():
    text = "base: &base {lr: 1, wd: 2}\nbig:\n  <<: *base\n  lr: 3\nsame: *base\n"

    assert load_yaml(text) == {
        "base": {"lr": 1, "wd": 2},
        "big": {"lr": 3, "wd": 2},
        "same": {"lr": 1, "wd": 2},
    }


def test_of_several_merged_mappings_the_first_wins():
    text = "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc:\n  <<: [*a, *b]\n"

    assert load_yaml(text)["c"] == {"x": 1, "y": 2}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


WRONG = [
    ("a: 1\nb: 2\na: 3", "f.yaml, line 3, column 1: the key 'a' appears twice"),
    ("x:\n  a: 1\n  'a': 2", "f.yaml, line 3, column 3: the key 'a' appears twice"),
    ("a: [1, 2", "f.yaml, line 2, column 1: not valid YAML"),
    ("a: b: c", "f.yaml, line 1, column 5: not valid YAML"),
    ("a:\n\t- b", "f.yaml, line 2, column 1: not valid YAML"),
    ("a: \x00", "f.yaml: not valid YAML"),
    ("a: !!python/object:os.system x", "f.yaml, line 1, column 4: the tag !!python/object:os"),
    ("!!python/object/apply:os.system [ls]", "f.yaml, line 1, column 1: the tag !!python"),
    ("a: !!set {b}", "f.yaml, line 1, column 4: the tag !!set"),
    ("a: !!int 1.5", "f.yaml, line 1, column 4: '1.5' is not a int"),
    ("a: &x [*x]", "f.yaml, line 1, column 8: the alias *x stands inside"),
    ("a: *x", "f.yaml, line 1, column 4: there is no anchor &x"),
    ("<<: 3", "f.yaml, line 1, column 5: '<<' takes a mapping"),
    ("? [1]\n: 2", "f.yaml, line 1, column 3: a list or mapping cannot be a key"),
    ("a: 1\n---\na: 1", "f.yaml, line 2, column 1: a second document"),
    (BOMB, "f.yaml, line 5, column 29: the aliases repeat"),
    ("[" * 5000, "f.yaml, line 1, column 101: nested deeper"),
    ("[" * 1_000_000, "f.yaml, line 1, column 101: nested deeper"),
    ("".join(" " * n + "a:\n" for n in range(300)), "f.yaml, line 101, column"),
]


@pytest.mark.parametrize(("text", "problem"), WRONG, ids=[problem for _, problem in WRONG])
def test_wrong_yaml_names_the_file_and_the_line(text, problem):
    with pytest.raises(ConfigError) as caught:
        load_yaml(text, "f.yaml")

    assert str(caught.value).startswith(problem)


def test_explicit_tags_of_plain_types_are_read():
    assert load_yaml("a: !!str 1\nb: !!float 1\nc: ! 2\nd: !!int '3'") == {
        "a": "1",
        "b": 1.0,
        "c": "2",
        "d": 3,
    }


def test_a_bomb_of_aliases_costs_nothing():
    start = time.process_time()

    with pytest.raises(ConfigError, match="aliases repeat more than"):
        load_yaml(BOMB)

    assert time.process_time() - start < 1


@pytest.mark.parametrize("text", AWKWARD, ids=repr)
def test_a_string_comes_back_as_the_same_string(text):
    value = {"key": text, text: [text, 1]}

    assert load_yaml(dump_yaml(value)) == value


@pytest.mark.parametrize("text", AWKWARD, ids=repr)
def test_readers_of_yaml_1_1_read_the_same_string(text):
    assert yaml.safe_load(dump_yaml({"key": text})) == {"key": text}


@pytest.mark.parametrize(
    "value",
    [1e-5, 1e300, math.inf, -0.0, 1 / 3, 10**30, True, None, [], {}, [[1], [2]], [{"a": 1}]],
    ids=repr,
)
def test_a_value_comes_back_with_its_type(value):
    assert repr(load_yaml(dump_yaml({"key": value}))) == repr({"key": value})


def random_value(source: random.Random, depth: int) -> object:
    kind = source.randrange(8 if depth else 6)
    if kind == 6:
        return [random_value(source, depth - 1) for _ in range(source.randrange(4))]
    if kind == 7:
        keys = source.sample(AWKWARD, source.randrange(4))
        return {key: random_value(source, depth - 1) for key in keys}
    scalars = (None, True, source.randrange(-9, 9), source.gauss(0, 1e3), source.choice(AWKWARD))
    return scalars[min(kind, 4)]


def test_random_trees_come_back_equal():
    source = random.Random(0)

    for _ in range(300):
        value = {"key": random_value(source, 4)}

        assert load_yaml(dump_yaml(value)) == value


def test_the_deepest_nesting_that_is_accepted_comes_back():
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = {"a": value}

    assert load_yaml(dump_yaml(value)) == value


def test_lists_of_scalars_stay_on_one_line_and_keys_in_order():
    assert dump_yaml({"b": (0.9, 0.99), "a": {"c": [{"d": 1}]}}) == (
        "b: [0.9, 0.99]\na:\n  c:\n  - d: 1\n"
    )


def test_a_string_that_is_not_unicode_is_refused():
    with pytest.raises(ConfigError, match="not valid Unicode"):
        dump_yaml({"a": "\ud800"})
