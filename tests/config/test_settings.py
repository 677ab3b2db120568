from __future__ import annotations

import warnings

import pytest

from danling import Config, ConfigError
from danling.config.settings import SETTINGS


class Optim(Config):
    name: str = "adamw"
    lr: float = 1e-3


def test_well_known_keys_read_as_their_defaults_and_are_not_stored():
    config = Config(width=3)

    assert config.max_epochs is None
    assert config["log_interval"] == 50
    assert config.get("evaluate_every") == "1 epoch"
    assert config.dataloader == {}
    assert config.to_dict() == {"width": 3}
    assert list(config) == ["width"]
    assert "log_interval" not in config
    assert config == Config(width=3)


def test_an_unset_well_known_section_can_be_filled():
    config = Config()

    config.dataloader.batch_size = 32
    config["accelerate.mixed_precision"] = "bf16"

    assert config.to_dict() == {
        "dataloader": {"batch_size": 32},
        "accelerate": {"mixed_precision": "bf16"},
    }
    assert Config().to_dict() == {}
    with pytest.raises(ConfigError, match=r"config\.dataloader\.batch_size is frozen"):
        Config().freeze().dataloader.batch_size = 3


def test_resolved_has_every_well_known_key():
    resolved = Config(width=3, max_epochs=2, dataloader={"batch_size": 4}).resolved()

    assert resolved["max_epochs"] == 2
    assert resolved["dataloader"] == {"batch_size": 4}
    assert resolved["project_root"] == "experiments"
    assert set(resolved) == {*SETTINGS, "width"}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("log_intervall", "log_interval"),
        ("max_epoch", "max_epochs"),
        ("epochs", "max_epochs"),
        ("num_epochs", "max_epochs"),
        ("experiment", "experiment_name"),
        ("grad_norm", "max_grad_norm"),
        ("seeds", "seed"),
    ],
)
def test_a_near_miss_of_a_well_known_key_warns_where_it_is_written(key, meant):
    for write in (
        lambda: Config({key: 1}),
        lambda: Config(**{key: 1}),
        lambda: Config().__setitem__(key, 1),
        lambda: Config().__setattr__(key, 1),
    ):
        with pytest.warns(UserWarning, match=f"config.{key} .* did you mean '{meant}'") as caught:
            write()
        assert caught[0].filename == __file__


def test_other_keys_and_keys_of_sections_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = Config(hidden_size=1, model={"log_intervall": 3}, learning_rate=3, batch_size=3)
        config.model.epochs = 3
        config.hidden_size = 4

    assert config.model.epochs == 3


def test_a_section_is_not_at_the_top():
    config = Config(model={"seed": "x", "epoch": 3, "name": "resnet"}, optim=Optim())

    assert config.model.seed == "x"
    assert config.model.name == "resnet"
    assert not hasattr(config.model, "max_epochs")
    assert not hasattr(config.optim, "max_epochs")
    assert config.model.resolved() == {"seed": "x", "epoch": 3, "name": "resnet"}
    with pytest.raises(ConfigError, match=r"config\.optim has no key 'max_epochs'"):
        config.optim.max_epochs = 3
    with pytest.raises(ConfigError, match=r"config\.optim has no key 'max_epochs'"):
        Config(optim=Optim(max_epochs=3))
