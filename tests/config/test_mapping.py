# ruff: noqa: RUF012 - a config copies its defaults
from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import pytest

from danling import Config, ConfigError
from danling.config.config import MissingKeyError, NotInRunId


class Act(Enum):
    RELU = "relu"
    GELU = "gelu"


class Optim(Config):
    name: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


class Training(Config):
    optim: Optim
    layers: list[int] = [64, 64]
    weights: dict[str, float] = {}
    act: Act = Act.RELU
    data: Path = Path("data")
    note: Annotated[str, NotInRunId] = ""


def untyped() -> Config:
    return Config(
        {"optim": {"lr": 0.1, "name": "sgd"}, "layers": [{"size": 1}, {"size": 2}]}, max_epochs=3
    )


def test_values_are_read_by_attribute_by_item_and_by_dotted_key():
    config = untyped()

    assert config.optim.lr == config["optim"]["lr"] == config["optim.lr"] == 0.1
    assert config.get("optim.lr") == 0.1
    assert config.get("optim.wd", 5) == 5
    assert config.layers[1].size == 2
    assert "optim.lr" in config
    assert "optim.wd" not in config
    assert {**config}.keys() == {"optim", "layers", "max_epochs"}


def test_values_are_written_by_attribute_by_item_and_by_dotted_key():
    config = Config()

    config.width = 3
    config["optim.lr"] = 0.1
    config["optim"]["wd"] = 0.2
    config.optim.momentum = 0.9
    config.model = {"depth": 2}

    assert config.to_dict() == {
        "width": 3,
        "optim": {"lr": 0.1, "wd": 0.2, "momentum": 0.9},
        "model": {"depth": 2},
    }
    assert type(config.model) is Config


def test_reading_an_unknown_attribute_never_creates_it():
    config = untyped()
    before = config.to_dict()

    for read in (
        lambda: config.optimm,
        lambda: config.optim.lrr,
        lambda: config["optim.x.y"],
        lambda: config[3],
        lambda: config["max_epochs.x"],
    ):
        with pytest.raises((AttributeError, KeyError)):
            read()

    assert not hasattr(config, "model")
    assert config.to_dict() == before


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(
        MissingKeyError, match=r"\Aconfig\.optim has no key 'lrr'; did you mean 'lr'"
    ):
        untyped().optim.lrr  # noqa: B018
    with pytest.raises(KeyError, match=r"config has no key 'optin'; did you mean 'optim'"):
        untyped()["optin"]


def test_a_key_inside_a_value_that_is_no_section_is_an_error():
    with pytest.raises(ConfigError, match=r"config\.max_epochs is 3 and no section: 'x' cannot"):
        untyped()["max_epochs.x"] = 1
    with pytest.raises(MissingKeyError, match=r"'max_epochs' is 3"):
        untyped()["max_epochs.x"]


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a..b", 3, None])
def test_a_key_is_a_string_with_names_between_dots(key):
    with pytest.raises(ConfigError, match="is not a key"):
        Config({key: 1})


@pytest.mark.parametrize(
    "key", ["keys", "items", "copy", "freeze", "frozen", "semantic", "_values"]
)
def test_a_key_that_an_attribute_would_hide_is_refused(key):
    for write in (
        lambda: setattr(Config(), key, True) if key != "_values" else Config({key: 1}),
        lambda: Config({"model": {key: True}}),
        lambda: Config().__setitem__(key, True),
    ):
        with pytest.raises(ConfigError, match="attribute of every config"):
            write()


def test_unknown_keys_of_a_subclass_are_refused_with_the_nearest():
    for write in (
        lambda: Training(layer=[1]),
        lambda: Training().__setattr__("layer", [1]),
        lambda: Training().merge({"layer": [1]}),
    ):
        with pytest.raises(ConfigError, match=r"config has no key 'layer'; did you mean 'layers'?"):
            write()


def test_a_subclass_takes_the_well_known_keys_with_their_types():
    training = Training(max_epochs="3", project_root=Path("runs"))

    assert training.max_epochs == 3
    assert training.project_root == "runs"
    with pytest.raises(ConfigError, match=r"config\.max_epochs: expected an int or null"):
        Training(max_epochs="many")
    with pytest.raises(ConfigError, match=r"config\.monitor_mode: expected one of 'min', 'max'"):
        Config(monitor_mode="maximum")
    with pytest.raises(ConfigError, match=r"config\.log_interval: expected at least 1, got 0"):
        Config(log_interval=0)


def test_the_caller_keeps_no_hand_in_the_configuration():
    layers, optim = [1, 2], Config(lr=0.1)
    config = Config(layers=layers, optim=optim)

    layers.append(3)
    optim.lr = 0.5

    assert config.to_dict() == {"layers": [1, 2], "optim": {"lr": 0.1}}


def test_the_constructor_merges_into_the_defaults_and_an_assignment_replaces():
    class Model(Config):
        optim: Optim = Optim(lr=0.5, name="sgd")

    model = Model({"optim": {"name": "lion"}})
    assert model.optim.to_dict() == {"name": "lion", "lr": 0.5, "betas": (0.9, 0.999)}

    model["optim"] = {"name": "lion"}
    assert model.optim.lr == 1e-3


def test_nested_subclasses_keep_their_type():
    class Lion(Optim):
        cautious: bool = True

    config = Config(optim=Lion())
    training = Training(optim=Lion(lr=1))

    assert type(config.optim) is Lion
    assert type(training.optim) is Lion
    assert type(training.copy().optim) is Lion
    with pytest.raises(ConfigError, match=r"config\.optim has no key 'x'"):
        config.optim.x = 1


def test_deleting():
    config = untyped()

    del config.max_epochs
    del config["optim.lr"]
    assert config.pop("layers")[0].size == 1
    assert config.pop("max_epochs", 7) == 7
    assert config.to_dict() == {"optim": {"name": "sgd"}}
    with pytest.raises(KeyError):
        del config["nothing"]
    with pytest.raises(KeyError):
        config.pop("nothing")
    with pytest.raises(ConfigError, match=r"config\.layers is a declared field"):
        del Training().layers


def test_setdefault_sets_a_well_known_key_that_reads_as_its_default():
    config = Config()

    assert config.setdefault("max_epochs", 5) == 5
    assert config.setdefault("max_epochs", 6) == 5
    assert config.max_epochs == 5


def test_a_configuration_takes_a_mapping():
    with pytest.raises(ConfigError, match=r"takes a mapping, got a str; Config\.load reads files"):
        Config("config.yaml")  # type: ignore[arg-type]
