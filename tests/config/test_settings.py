from __future__ import annotations

import warnings

import pytest

from danling import Config, ConfigError
from danling.config import settings
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


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("project_root", "s3://bucket/runs", "is a URL, and a run is written to a local folder"),
        ("project_root", "gs:/bucket", "is a URL"),
        ("project_root", "$NOT_SET_ANYWHERE/x", "uses $NOT_SET_ANYWHERE, which is not set"),
        ("project_root", "", "is not a folder"),
        ("checkpoint_dir_name", "../../victim", "is not the name of a folder"),
        ("checkpoint_dir_name", "/tmp/victim", "is not the name of a folder"),
        ("checkpoint_dir_name", "a\\b", "is not the name of a folder"),
        ("checkpoint_dir_name", ".", "is not the name of a folder"),
        ("checkpoint_dir_name", "..", "is not the name of a folder"),
        ("checkpoint_dir_name", "", "is not the name of a folder"),
        ("accelerate.gradient_accumulation_steps", 0, "expected at least 1, got 0"),
        ("accelerate.gradient_accumulation_steps", -1, "expected at least 1, got -1"),
        ("accelerate.gradient_accumulation_steps", 1.5, "expected an int, got 1.5"),
        ("accelerate.gradient_accumulation_steps", True, "expected an int, got True"),
        ("limit_batches", {"train": -1}, "config.limit_batches.train: expected a number"),
        ("limit_batches", {"train": 1.5}, "or a share from 0.0 to 1.0, got 1.5"),
        ("limit_batches.val", "x", "config.limit_batches.val: expected an int or a float"),
        ("overfit_batches", -1, "expected a number of batches"),
        ("fast_dev_run", -1, "expected true, false or a number of batches, got -1"),
        ("min_epochs", -1, "expected at least 0, got -1"),
        ("accumulate", "rows", "expected one of 'batches', 'samples'"),
        ("code_timeout", -1, "expected at least 0, got -1"),
    ],
)
def test_a_wrong_value_of_a_well_known_key_is_refused_where_it_is_set(key, value, problem):
    for write in (
        lambda: Config({key: value}),
        lambda: Config().__setitem__(key, value),
        lambda: Training({key: value}),
    ):
        with pytest.raises(ConfigError) as caught:
            write()
        assert str(caught.value).startswith(f"config.{key.partition('.')[0]}")
        assert problem in str(caught.value)


class Training(Config):
    checkpoint_dir_name: str = "saved"
    project_root: str = "runs"


def test_the_project_root_follows_home_and_variables(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")

    assert Config(project_root="~/x").project_root == "/home/me/x"
    assert Config(project_root="$HOME/x").project_root == "/home/me/x"
    assert Config.parse(["--project-root", "${SCRATCH}"[:1] + "SCRATCH/y"]).project_root == (
        "/scratch/y"
    )
    assert Config(project_root="C:\\runs").project_root == "C:\\runs"


def test_the_accumulation_of_the_command_line_is_a_number():
    config = Config.parse(["--accelerate.gradient_accumulation_steps", "2"])

    assert config.accelerate.gradient_accumulation_steps == 2
    assert Config(accelerate={"gradient_accumulation_steps": "2"}).accelerate == {
        "gradient_accumulation_steps": 2
    }


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("1.0", 1.0), ("0.25", 0.25), ("10", 10)])
def test_an_amount_of_the_command_line_is_a_number_or_a_share(text, expected):
    config = Config.parse([f"--limit-batches.train={text}", "--overfit-batches", text])

    assert config.limit_batches == {"train": expected}
    assert type(config.limit_batches["train"]) is type(config.overfit_batches) is type(expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_epochs", 1),
        ("min_steps", 1),
        ("limit_batches", {"train": 1}),
        ("overfit_batches", 0.5),
        ("fast_dev_run", True),
        ("evaluate_at_start", True),
        ("accumulate", "samples"),
    ],
)
def test_a_key_that_came_later_is_in_the_run_id_where_it_is_not_its_default(key, value):
    default = SETTINGS[key].default

    assert Config({key: value}).semantic() == Config().semantic() | {key: value}
    assert Config({key: default}).semantic() == Config().semantic()


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("batch_size", "dataloader.batch_size"),
        ("precision", "accelerate.mixed_precision"),
        ("mixed_precision", "accelerate.mixed_precision"),
        ("num_train_epochs", "max_epochs"),
        ("accumulate_grad_batches", "accelerate.gradient_accumulation_steps"),
        ("output_dir", "project_root"),
    ],
)
def test_a_word_of_another_library_that_nobody_reads_is_answered_once(word, meant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are near misses as well
        config = Config({word: "x", "width": 3})

    with pytest.warns(UserWarning, match="nobody has read") as caught:
        config.warn_unread()

    assert [str(each.message) for each in caught] == [
        f"nobody has read config.{word} (did you mean {meant!r}?), config.width"
    ]


def test_every_key_that_other_libraries_have_a_word_for_is_there():
    for key in set(settings._MEANT.values()):
        head, _, option = key.partition(".")
        assert head in SETTINGS
        assert not option or head in ("accelerate", "dataloader")
    assert not set(settings._MEANT) & set(SETTINGS)
