"""Any configuration comes back from every way of writing it; any bytes are read or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danling import Config
from danling.config.yaml import load_yaml
from danling.errors import ConfigError, DanLingError
from danling.files.json import canonical_json

RESERVED = {*dir(Config), *Config._reserved}
keys = st.text(
    st.characters(codec="utf-8", exclude_characters=".=\x00\r\n", exclude_categories=["Cc", "Cs"]),
    min_size=1,
    max_size=8,
).filter(lambda key: key not in RESERVED and key != "extends")
texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["${a}", "$${a}", "no", "1e-3", "null", "[1", "{", "NaN", ""]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)
trees = st.dictionaries(keys.map(lambda key: f"x-{key}"), values, max_size=4)
# a random key may be like a well-known one
pytestmark = pytest.mark.filterwarnings("ignore:.*is not read by the library")
fuzz = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def same(one: Config, other: Config) -> bool:
    return canonical_json(one.semantic()) == canonical_json(other.semantic())


@fuzz
@given(tree=trees)
def test_a_configuration_comes_back_from_every_file_with_its_run_id(tree, tmp_path):
    config = Config(tree)

    for name in ("c.yaml", "c.json"):
        config.save(tmp_path / name)
        assert Config.load(tmp_path / name) == config
        assert same(Config.load(tmp_path / name), config)
    assert Config.parse(["--config", str(tmp_path / "c.yaml")]) == config
    assert same(config.copy(), config)


@fuzz
@given(tree=trees)
def test_a_configuration_comes_back_from_the_command_line(tree):
    config = Config({key.replace("-", "_"): value for key, value in tree.items()})
    plain = {key: config.to_dict()[key] for key in config}

    parsed = Config.parse([f"--{key}={json.dumps(value)}" for key, value in escaped(plain).items()])

    assert same(parsed, config)


def escaped(value: Any) -> Any:
    from danling.config.references import escape

    return escape(value)


@fuzz
@given(
    number=st.floats(),
    count=st.integers(),
    flag=st.booleans(),
    name=texts,
    rates=st.lists(st.floats()),
)
def test_a_typed_configuration_comes_back_with_its_types(
    number, count, flag, name, rates, tmp_path
):
    config = Typed(number=number, count=count, flag=flag, name_of=name, rates=rates)

    for suffix in ("yaml", "json"):
        config.save(tmp_path / f"c.{suffix}")
        loaded = Typed.load(tmp_path / f"c.{suffix}")
        assert repr(loaded) == repr(config)
        assert same(loaded, config)


class Typed(Config):
    number: float = 0.0
    count: int = 0
    flag: bool = False
    name_of: str = ""
    rates: list[float] = []  # noqa: RUF012


@fuzz
@given(data=st.binary(max_size=200) | texts.map(str.encode))
@pytest.mark.parametrize("name", ["c.yaml", "c.json"])
def test_any_bytes_are_a_configuration_or_an_error_that_names_the_file(data, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)

    for kind in (Config, Typed):
        try:
            kind.load(path)
        except DanLingError as error:
            assert name in str(error)  # noqa: PT017


@fuzz
@given(tree=trees, position=st.integers(0, 10**6), byte=st.integers(0, 255))
@pytest.mark.parametrize("name", ["c.yaml", "c.json"])
def test_one_damaged_byte_is_read_or_named(tree, position, byte, name, tmp_path):
    path: Path = tmp_path / name
    Config(tree | {"x": 1}).save(path)
    data = bytearray(path.read_bytes())
    data[position % len(data)] = byte
    path.write_bytes(bytes(data))

    try:
        Config.load(path)
    except ConfigError as error:
        assert name in str(error)  # noqa: PT017


@fuzz
@given(text=texts | st.text("[]{}:,&*!<>-?|'\"# \n\t0a", max_size=60))
def test_yaml_of_any_text_is_a_value_or_an_error(text):
    try:
        load_yaml(text, "c.yaml")
    except ConfigError as error:
        assert str(error).startswith("c.yaml")  # noqa: PT017


@fuzz
@given(arguments=st.lists(st.sampled_from(["--x", "--number", "--no-flag", "a=1", "--"]) | texts))
def test_any_command_line_is_read_or_left_with_code_2(arguments):
    wanted = [each for each in arguments if each not in ("-h", "--help", "--print-config")]
    try:
        Typed.parse(wanted)
    except SystemExit as left:
        assert left.code == 2  # noqa: PT017


def test_the_fuzz_knows_values_that_are_not_finite():
    assert same(Config(a=math.inf), Config(a="Infinity"))
