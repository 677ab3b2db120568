# mypy: disable-error-code="arg-type,call-arg,misc"
# (values in these tests are converted when they are set, or are wrong on purpose)
from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from danling import Config, ConfigError
from danling.config.settings import STATE_KEYS
from danling.files.json import canonical_json
from tests.support.configs import Act, Optim, Training


@pytest.mark.parametrize("key", STATE_KEYS)
def test_state_is_refused_from_users(key, tmp_path):
    (tmp_path / "c.yaml").write_text(f"{key}: 3\n")

    for write in (
        lambda: Config({key: 3}),
        lambda: Config(**{key: 3}),
        lambda: setattr(Config(), key, 3),
        lambda: Config().merge({key: 3}),
        lambda: Training(**{key: 3}),
        lambda: Config.load("c.yaml"),
    ):
        with pytest.raises(ConfigError, match=rf"config\.{key} is the run's state: the runner"):
            write()
    with pytest.raises(AttributeError, match=r"read it on runner\.config"):
        getattr(Config(), key)


def test_bound_state_is_live_and_copies_are_not_bound():
    counters = {"epoch": 0}
    config = Config(width=3)
    config.bind_state({"epoch": lambda: counters["epoch"], "id": lambda: "abc"})

    counters["epoch"] = 5

    assert (config.epoch, config["epoch"], config.id) == (5, 5, "abc")
    assert config.to_dict(state=True) == {"width": 3, "epoch": 5, "id": "abc"}
    assert config.to_dict() == {"width": 3}
    assert config == Config(width=3)
    for unbound in (config.copy(), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert unbound == config
        assert not hasattr(unbound, "epoch")
    with pytest.raises(ConfigError, match="is the run's state"):
        config.epoch = 3
    with pytest.raises(ConfigError, match="not the state of a run: loss"):
        config.bind_state({"loss": lambda: 0})


def test_a_declared_field_with_the_name_of_state_is_for_sections_only():
    config = Config(optim=Optim(name="sgd"))

    config.check()
    assert config.optim.name == "sgd"
    for refuse in (Optim().check, lambda: Optim().bind_state({})):
        with pytest.raises(ConfigError, match="Optim declares name: the state of a run"):
            refuse()


def test_one_error_lists_every_value_that_cannot_be_saved():
    def relu():
        pass

    cyclic: dict[str, Any] = {}
    cyclic["again"] = [cyclic]
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    config = Config(
        model={"layers": [1, {"act": relu}], "table": {1: 2}},
        cyclic=cyclic,
        deep=deep,
        weight=torch.ones(2),
        tags={"a"},
        good=1,
    )

    with pytest.raises(ConfigError) as caught:
        config.check()

    paths = [line.strip().partition(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert paths[:2] == ["config.model.layers[1].act", "config.model.table"]
    assert paths[2] == "config.cyclic.again[0]"
    assert paths[3].startswith("config.deep.a.a.a")
    assert paths[4:] == ["config.weight", "config.tags"]
    assert repr(config)
    assert config.copy().good == 1
    assert config.diff(config.copy()) == {}


def test_a_configuration_that_can_be_saved_passes_the_check():
    Training(seed=torch.tensor(3)).check()
    Config(a=math.nan, b=(1, 2), c=Path("x"), d=Act.RELU, e=torch.float16).check()


def test_a_large_configuration_is_checked_saved_and_loaded(tmp_path):
    values = {f"key{n}": {"text": "x" * 900, "numbers": [n, n / 3]} for n in range(2_000)}
    config = Config(values)

    config.check()
    config.save(tmp_path / "c.yaml")

    assert (tmp_path / "c.yaml").stat().st_size > 1_800_000
    assert Config.load(tmp_path / "c.yaml") == config


def test_the_semantic_part_has_a_fixed_text():
    config = Config(optim={"lr": 1e-3, "betas": (0.9, 0.999)}, seed=1, max_epochs=3)

    assert canonical_json(config.semantic()) == (
        '{"accelerate":{},"dataloader":{},"deterministic":false,"evaluate_every":"1 epoch",'
        '"max_epochs":3,"max_grad_norm":null,"max_grad_value":null,"max_steps":null,'
        '"monitor":null,"monitor_mode":"min","optim":{"betas":[0.9,0.999],"lr":0.001},'
        '"scheduler_interval":"step","seed":1}'
    )


def same(one: Config, other: Config) -> bool:
    return canonical_json(one.semantic()) == canonical_json(other.semantic())


def test_the_semantic_part_does_not_depend_on_how_values_are_written():
    assert same(Training(optim={"lr": 1}), Training({"optim.lr": "1.0"}))
    assert same(Training(data="a"), Training(data=Path("a")))
    assert same(Training(act="GELU"), Training(act=Act.GELU))
    assert same(Config(a=1, b=2), Config(b=2, a=1))
    assert same(Config(a=(1, 2)), Config(a=[1, 2]))
    assert same(Config(a=-0.0), Config(a=0.0))
    assert same(Config(a=math.nan), Config(a="NaN"))


def test_writing_a_default_out_changes_nothing():
    assert same(Training(), Training(layers=[64, 64], optim=Optim(), evaluate_every="1 epoch"))
    assert same(Config(), Config(Config().resolved()))


def test_without_a_field_one_and_one_point_zero_differ():
    assert not same(Config(test_size=1), Config(test_size=1.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"project_root": "x", "experiment_name": "x", "run_name": "x", "checkpoint_dir_name": "x"},
        {"log_interval": 3, "poll_interval": 3, "resume": "auto", "elastic": True},
        {"accelerate": {"cpu": True, "device_placement": False}},
        {"dataloader": {"num_workers": 3, "pin_memory": True, "train": {"prefetch_factor": 3}}},
    ],
)
def test_what_does_not_change_the_result_is_not_in_the_semantic_part(changes):
    assert same(Config(changes), Config())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"max_epochs": 1},
        {"deterministic": True},
        {"accelerate": {"mixed_precision": "bf16"}},
        {"dataloader": {"batch_size": 3}},
        {"dataloader": {"train": {"drop_last": True, "num_workers": 1}}},
        {"model": {"num_workers": 3}},
        {"anything": None},
    ],
)
def test_what_may_change_the_result_is_in_the_semantic_part(changes):
    assert not same(Config(changes), Config())


def test_the_semantic_part_of_the_configuration_is_not_its_state():
    config = Config()
    before = canonical_json(config.semantic())

    config.bind_state({"epoch": lambda: 3})

    assert canonical_json(config.semantic()) == before
    assert config.to_dict() == {}


def test_a_drawn_seed_is_not_in_the_semantic_part_until_it_is_chosen():
    config = Config()
    config.record_drawn_seed(7)

    assert config.seed == 7
    assert config.drawn_seed
    assert same(config, Config())
    assert same(config.copy(), Config())
    assert config.to_dict() == {"seed": 7}

    chosen = config.merge({"seed": 8})
    assert not chosen.drawn_seed
    assert same(chosen, Config(seed=8))


def test_containers_of_omegaconf_are_read_as_what_they_hold():
    omegaconf = pytest.importorskip("omegaconf", reason="pip install omegaconf")
    made = omegaconf.OmegaConf.create({"optim": {"lr": 1, "wd": "${optim.lr}"}, "layers": [1, 2]})

    config = Config(made)
    training = Training(optim=omegaconf.OmegaConf.create({"lr": 2}), layers=made.layers)

    assert config.to_dict() == {"optim": {"lr": 1, "wd": 1}, "layers": [1, 2]}
    assert (training.optim.lr, training.layers) == (2.0, [1, 2])
    assert Config(layers=made.layers).layers == [1, 2]
    with pytest.raises(ConfigError, match="takes a mapping, got a list"):
        Config(made.layers)
    with pytest.raises(ConfigError, match=r"this DictConfig cannot be read: .*lr"):
        Config(optim=omegaconf.OmegaConf.create({"lr": "???"}))


def test_run_ids_are_those_of_before_the_later_keys():
    assert set(Config().semantic()) == {
        "accelerate",
        "dataloader",
        "deterministic",
        "evaluate_every",
        "max_epochs",
        "max_grad_norm",
        "max_grad_value",
        "max_steps",
        "monitor",
        "monitor_mode",
        "scheduler_interval",
        "seed",
    }
