# mypy: disable-error-code="arg-type,call-arg,misc"
# (values in these tests are converted when they are set, or are wrong on purpose)
from __future__ import annotations

import copy
import json
import math
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from danling import Config, ConfigError
from danling.config import ABSENT, MissingKeyError
from danling.files.json import canonical_json
from tests.support.configs import Optim, Training


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
        Config("config.yaml")


def test_freezing_is_deep_and_the_error_names_the_path():
    config = Training(weights={"a": 1})
    config.freeze()

    for change, path in (
        (lambda: setattr(config, "note", "x"), "config.note"),
        (lambda: setattr(config.optim, "lr", 1), "config.optim.lr"),
        (lambda: config.__setitem__("optim.lr", 1), "config.optim.lr"),
        (lambda: config.layers.append(3), "config.layers"),
        (lambda: config.layers.__setitem__(0, 3), "config.layers"),
        (lambda: config.weights.update(a=3), "config.weights"),
        (lambda: config.merge({"optim": {"lr": 3}}), "config.optim.lr"),
        (config.clear, "config.optim"),
        (lambda: config.__delattr__("note"), "config.note"),
    ):
        with pytest.raises(ConfigError, match=rf"\A{path} is frozen"):
            change()

    assert config == Training(weights={"a": 1})
    assert config.frozen
    assert config.optim.frozen
    config.unfreeze()
    config.layers.append(3)
    config.optim.lr = 1
    assert config.layers == [64, 64, 3]


def test_a_copy_is_deep_and_not_frozen():
    config = Training().freeze()

    copied = config.copy()
    copied.optim.lr = 5
    copied.layers.append(1)

    assert config == Training()
    assert type(copied) is Training
    assert copied.optim.lr == 5.0
    assert copy.copy(config) == copy.deepcopy(config) == config


def test_merge_goes_into_sections_and_returns_itself():
    config = untyped()

    merged = config.merge({"optim": {"lr": 1}, "layers": [1], "optim.wd": 2})

    assert merged is config
    assert config.to_dict() == {
        "optim": {"lr": 1, "name": "sgd", "wd": 2},
        "layers": [1],
        "max_epochs": 3,
    }


def test_flatten_and_unflatten_are_inverse():
    config = Config(a={"b": {"c": 1, "d": [1]}, "e": {}}, f=None, g={"h": (1, 2)})

    flat = config.flatten()

    assert flat == {"a.b.c": 1, "a.b.d": [1], "a.e": {}, "f": None, "g.h": (1, 2)}
    assert Config.unflatten(flat) == config
    assert Training.unflatten(Training(weights={"a.b": 1}).flatten()).weights == {"a.b": 1.0}


def test_diff_shows_what_would_be_saved_differently():
    old = Config(lr=1, betas=(1, 2), same=math.nan, gone=1, optim={"wd": 0})
    new = Config(lr=1.0, betas=[1, 2], same=math.nan, log_interval=50, optim={"wd": 1}, max_steps=3)

    assert old.diff(new) == {
        "max_steps": (None, 3),
        "lr": (1, 1.0),
        "gone": (1, ABSENT),
        "optim.wd": (0, 1),
    }
    assert old.diff(old.copy()) == {}
    assert Training().diff({"optim": {"lr": 3}}) == {"optim.lr": (1e-3, 3.0)}
    assert canonical_json(old.diff(new))


def test_equality_is_about_what_is_saved():
    assert Config(a=(1, 2)) == Config(a=[1, 2]) == {"a": [1, 2]}
    assert Config(a=math.nan) == Config(a=math.nan)
    assert Config(a=1) != Config(a=2)
    assert Config(a=1) != 1
    with pytest.raises(TypeError):
        hash(Config())


def test_the_repr_is_the_call_that_makes_it():
    config = Config(optim={"lr": 0.1, "layers": [{"size": 1}] * 9}, path="x" * 80)

    assert repr(Config(a={"b": "x"})) == "Config(a=Config(b='x'))"
    assert eval(repr(config)) == config
    assert repr(Training(data="x" * 80)).count("\n") == 7


def test_completion_knows_the_keys():
    assert {"optim", "layers", "merge", "max_epochs", "log_interval"} <= set(dir(untyped()))


PICKLED = """
import pickle, sys
from danling.files.json import canonical_json
config = pickle.loads(bytes.fromhex(sys.stdin.read()))
print(canonical_json(config.semantic()), config.drawn_seed, config.frozen, repr(config.layers))
"""


@pytest.mark.parametrize("frozen", [False, True])
def test_a_pickle_is_the_same_in_another_process(frozen):
    config = Config(
        layers=[1, {"a": {"z": 1, "b": 2}}], betas=(1, 2), path=Path("x"), table={"q": 1}
    )
    config.record_drawn_seed(3)
    if frozen:
        config.freeze()
    outputs = set()

    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", PICKLED],
            input=pickle.dumps(config).hex(),
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(done.stdout.strip())

    semantic = canonical_json(config.semantic())
    assert outputs == {f"{semantic} True {frozen} [1, Config(a=Config(z=1, b=2))]"}


def random_tree(source: random.Random, depth: int) -> dict[str, Any]:
    keys = source.sample(["alpha", "b/c", "d e", "é", "0", "on", "x"], source.randrange(1, 5))
    return {key: random_value(source, depth) for key in keys}


def random_value(source: random.Random, depth: int) -> Any:
    kind = source.randrange(9 if depth else 7)
    if kind == 7:
        return [random_value(source, depth - 1) for _ in range(source.randrange(4))]
    if kind == 8:
        return random_tree(source, depth - 1)
    scalars = [None, True, source.randrange(-99, 99), source.gauss(0, 1), math.inf, "no", "1e-3"]
    return scalars[kind]


@pytest.mark.parametrize(
    "rounds", [30, pytest.param(1000, marks=pytest.mark.exhaustive)], ids=["thinned", "full"]
)
def test_random_configurations_survive_every_way_of_writing_them(tmp_path, rounds):
    source = random.Random(0)

    for _ in range(rounds):
        config = Config(random_tree(source, 4))
        values = config.to_dict().items()
        config.save("c.yaml")
        config.save("c.json")

        for other in (
            Config.load("c.yaml"),
            Config.load("c.json"),
            Config.unflatten(config.flatten()),
            Config(config.to_dict()),
            config.copy(),
            pickle.loads(pickle.dumps(config)),
            Config.parse([f"--{key}={json.dumps(value)}" for key, value in values]),
        ):
            assert other == config
            assert other.diff(config) == {}
            assert canonical_json(other.semantic()) == canonical_json(config.semantic())


def test_what_was_set_and_not_read_is_named():
    config = Config(optim={"lr": 1, "wd": 2}, model={"width": 1}, lr=3, name_of="x", max_epochs=3)

    assert config.optim.lr == 1
    assert config["name_of"] == "x"

    assert config.unread() == ["optim.wd", "model", "lr"]
    assert config == config.copy()
    assert repr(config)
    config.check()
    config.semantic()
    config.save("c.yaml")
    config.to_dict()
    config.diff(Config())
    pickle.dumps(config)
    assert config.unread() == ["optim.wd", "model", "lr"]


@pytest.mark.parametrize(
    "read",
    [
        lambda config: dict(**config.model),
        lambda config: config.model.to_dict(),
        lambda config: [config.model[key] for key in config.model],
        lambda config: list(config.model.items()),
        lambda config: config["model.width"] + config.get("model.depth"),
        lambda config: config.copy().freeze().model.to_dict(),
        lambda config: copy.deepcopy(config).model.to_dict(),
    ],
)
def test_a_section_that_is_passed_on_was_read(read):
    config = Config(model={"width": 1, "depth": 2})

    read(config)

    assert config.unread() == []


def test_a_declared_key_that_has_its_default_is_not_missed():
    assert Training().unread() == []
    assert Training(layers=[64, 64], note="x").unread() == ["note"]
    assert Training({"optim": {"lr": 3}}).unread() == ["optim"]


def test_a_key_that_is_missing_is_found_in_a_section():
    with pytest.raises(ConfigError, match=r"config has no key 'betas'; did you mean 'optim.betas'"):
        Training(betas=(1, 2))
