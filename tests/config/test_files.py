# ruff: noqa: RUF012 - a config copies its defaults
# mypy: disable-error-code="arg-type,call-arg,misc"
# (values in these tests are converted when they are set, or are wrong on purpose)
from __future__ import annotations

import json
import math
import stat
from pathlib import Path

import pytest

from danling import Config, ConfigError
from tests.support.configs import Training


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_a_file_comes_back_equal_and_with_its_types(tmp_path, suffix):
    training = Training(
        optim={"lr": 1, "betas": [0.5, 0.6]},
        layers=[1],
        weights={"a.b": 1, "items": math.inf},
        act="GELU",
        data="x/y",
        note="no",
        max_epochs=3,
        dataloader={"batch_size": 2, "train": {"num_workers": 2}},
    )

    training.save(tmp_path / f"c{suffix}")
    loaded = Training.load(tmp_path / f"c{suffix}")

    assert loaded == training
    assert repr(loaded) == repr(training)
    assert [path.name for path in tmp_path.iterdir()] == [f"c{suffix}"]


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_an_untyped_file_comes_back_equal(tmp_path, suffix):
    config = Config(
        a=1e-3,
        b="1e-3",
        c="no",
        d=(1, 2),
        e={"f": None, "g": []},
        h=Path("x"),
        i=math.nan,
        j=10**30,
    )

    config.save(tmp_path / f"c{suffix}")
    loaded = Config.load(tmp_path / f"c{suffix}")

    assert loaded == config
    assert loaded.semantic() == config.semantic()


def test_json_is_valid_json(tmp_path):
    Config(a=math.nan).save(tmp_path / "c.json")

    assert json.loads((tmp_path / "c.json").read_text(), parse_constant=pytest.fail) == {"a": "NaN"}


def test_the_resolved_configuration_starts_the_same_run(tmp_path):
    training = Training(optim={"lr": 3})
    resolved = Config(training.resolved())
    resolved.save(tmp_path / "runner.yaml")

    assert Training.load(tmp_path / "runner.yaml").semantic() == training.semantic()


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("c.yaml", "a: 1\nb: 2\na: 3\n", "c.yaml, line 3, column 1: the key 'a' appears twice"),
        ("c.yaml", "optim:\n  lr: [1\n", "c.yaml, line 3, column 1: not valid YAML"),
        ("c.yaml", "optim: {lr: fast}", "c.yaml: config.optim.lr: expected a float, got 'fast'"),
        ("c.yaml", "deterministic: no", "c.yaml: config.deterministic: expected true or false"),
        ("c.yaml", "optim: {lrr: 1}", "c.yaml: config.optim has no key 'lrr'; did you mean 'lr'?"),
        ("c.yaml", "- a\n- b\n", "c.yaml: a config is a mapping, and this is a list"),
        ("c.yaml", "a: !!python/object:x.Y {}", "c.yaml, line 1, column 4: the tag !!python"),
        ("c.json", '{"a": 1, "a": 2}', "c.json: the key 'a' appears twice"),
        ("c.json", '{"a": 1', "c.json, line 1, column 8: not valid JSON"),
        ("c.json", "[1]", "c.json: a config is a mapping, and this is a list"),
        ("c.toml", "", "c.toml: a config file ends in .yaml, .yml, .json, not in '.toml'"),
    ],
)
def test_a_wrong_file_is_named_with_the_place(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)

    with pytest.raises(ConfigError) as caught:
        Training.load(name)

    assert str(caught.value).startswith(problem)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\n")

    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read: No such file"):
        Config.load("missing.yaml")
    with pytest.raises(ConfigError, match=r"binary\.yaml: not UTF-8 text, at byte 3"):
        Config.load("binary.yaml")


def test_an_empty_yaml_file_is_an_empty_configuration(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing\n")

    assert Config.load("c.yaml") == Config()


def test_a_configuration_that_cannot_be_saved_leaves_the_old_file(tmp_path):
    Config(a=1).save("c.yaml")

    with pytest.raises(ConfigError, match=r"config\.a: .* is not JSON-serialisable"):
        Config(a=object()).save("c.yaml")

    assert Config.load("c.yaml") == Config(a=1)


def test_a_file_extends_others_relative_to_its_folder(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "base.yaml").write_text("optim: {lr: 1, name: sgd}\nlayers: [1]\n")
    (tmp_path / "base" / "data.json").write_text('{"extends": "base.yaml", "data": "x"}')
    (tmp_path / "c.yaml").write_text("extends: [base/data.json]\noptim: {lr: 2}\n")

    config = Training.load(tmp_path / "c.yaml")

    assert config.optim.to_dict() == {"name": "sgd", "lr": 2.0, "betas": (0.9, 0.999)}
    assert (config.layers, config.data) == ([1], Path("x"))
    assert Training.parse(["--config", str(tmp_path / "c.yaml")]) == config
    assert "extends" not in config


def test_files_that_extend_each_other_in_a_circle_are_named(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: ./a.yaml\n")

    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "a.yaml")

    a, b = (str((tmp_path / name).resolve()) for name in ("a.yaml", "b.yaml"))
    assert f"in a circle: {a} -> {b} -> {a}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("extends: 3", "c.yaml: 'extends' takes the path of a file, or a list"),
        ("extends: missing.yaml", "missing.yaml: cannot be read"),
    ],
)
def test_a_wrong_extends_is_refused(text, problem):
    Path("c.yaml").write_text(text)

    with pytest.raises(ConfigError) as caught:
        Config.load("c.yaml")

    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("c.yaml", b"a: 1\nb: " + b"9" * 5000, "c.yaml, line 2, column 4: a number of 5000 digits"),
        ("c.json", b'{"a": ' + b"9" * 5000 + b"}", "c.json: "),
        ("c.yaml", b"a: " + b"[" * 5000, "c.yaml, line 1, column "),
        ("c.json", b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "c.json"),
        ("c.json", b'{"a": ' + b"[" * 200_000, "c.json"),
        ("c.json", b'{"a": "\xff"}', "c.json: not UTF-8 text, at byte 7"),
        ("c.yaml", b"a: \x00", "c.yaml: not valid YAML"),
    ],
    ids=["digits", "json digits", "deep", "json deep", "json deeper", "bytes", "control"],
)
def test_damage_is_an_error_with_its_place(name, content, problem):
    Path(name).write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        Config.load(name)

    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_private_file_is_its_owners_alone(tmp_path, suffix):
    path = tmp_path / f"c.{suffix}"
    Config(token="x").save(path)
    path.chmod(0o644)

    Config(token="y").save(path, private=True)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Config.load(path) == Config(token="y")


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_infinities_of_a_float_field_come_back_as_floats(suffix):
    class Model(Config):
        low: float = 0.0
        high: float | None = None
        gap: list[float] = []

    model = Model(low=-math.inf, high=math.inf, gap=[math.nan])
    model.save(f"c.{suffix}")
    loaded = Model.load(f"c.{suffix}")

    assert (loaded.low, loaded.high) == (-math.inf, math.inf)
    assert math.isnan(loaded.gap[0])
