"""Texts of a run: readable, complete, and without secrets."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from danling.config.config import Config
from danling.run.directory import RunPaths
from danling.tensorboard.text import (
    changes_text,
    code_text,
    config_text,
    crash_text,
    model_text,
    run_texts,
)

TOKEN = "hf_" + "a1B2" * 8
LAUNCH = {"end_time": None, "exit_reason": None}


def test_no_text_holds_a_secret(tmp_path: Path, monkeypatch):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "code.patch").write_text(f'+api_key = "{TOKEN}"\n')
    environment = {"variables": {"HF_TOKEN": TOKEN}, "python": "3.11"}
    record = {"schema": 1, "code": {"commit": "1f"}, "environment": environment}
    (tmp_path / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr("sys.orig_argv", ["python", "train.py", "--token", TOKEN])

    config = Config({"hub": {"token": TOKEN}, "database": {"password": "hunter2"}, "lr": 0.1})
    texts = run_texts(config, RunPaths(tmp_path), nn.Linear(2, 1))

    assert sorted(texts) == [
        "run/1_config",
        "run/2_changed_from_defaults",
        "run/3_command",
        "run/4_model",
        "run/5_environment",
        "run/6_code",
    ]
    assert [tag for tag, text in texts.items() if TOKEN in text or "hunter2" in text] == []
    assert "lr: 0.1" in texts["run/1_config"]
    assert "+api_key" in texts["run/6_code"]


def test_a_run_that_goes_on_with_other_code_shows_that_code(tmp_path: Path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "code-2.patch").write_text("+later\n")
    record = {
        "schema": 1,
        "code": {"commit": "1f"},
        "launches": [LAUNCH, LAUNCH | {"code": {"commit": "2e"}}],
    }
    (tmp_path / "run.json").write_text(json.dumps(record))

    text = run_texts(Config(), RunPaths(tmp_path), None)["run/6_code"]

    assert "| commit | 2e |" in text
    assert "+later" in text


def test_a_run_without_a_record_has_the_texts_that_need_none(tmp_path: Path):
    texts = run_texts(Config(), RunPaths(tmp_path), None)

    assert sorted(texts) == ["run/1_config", "run/2_changed_from_defaults", "run/3_command"]


def test_a_fence_in_a_text_does_not_end_its_block():
    assert config_text({"doc": "```\nx\n```"}).startswith("````yaml\n")


def test_a_patch_too_long_for_a_page_is_cut(tmp_path: Path):
    patch = tmp_path / "code.patch"
    patch.write_text("+line\n" * 100_000)

    text = code_text({}, patch)

    assert 100_000 < len(text) < 101_000
    assert "the rest is in code.patch" in text


def test_shared_parameters_count_once():
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False)})
    model["b"] = model["a"]

    assert "| **all** | ModuleDict | 9 | 9 |" in model_text(model)


def test_a_model_of_many_parts_is_cut():
    model = nn.ModuleList(nn.Linear(1, 1) for _ in range(60))

    lines = model_text(model).splitlines()

    assert lines[-1] == "| ... | 10 more | | |"
    assert len(lines) == 54


def test_a_crash_shows_where_and_masks_what():
    try:
        raise ValueError(f"cannot log in with password={TOKEN!r}")
    except ValueError as error:
        text = crash_text(error)

    assert "test_a_crash_shows_where_and_masks_what" in text
    assert TOKEN not in text


class Optim(Config):
    lr: float = 0.1
    momentum: float = 0.9


class Typed(Config):
    data: str
    optim: Optim = Optim()


class WithDefaults(Config):
    optim: Optim = Optim()


def test_only_what_differs_from_the_defaults_is_a_change():
    text = changes_text(WithDefaults({"optim.lr": 0.5}, max_epochs=3, monitor_mode="min"))

    assert text.splitlines()[2:] == ["| max_epochs | 3 | None |", "| optim.lr | 0.5 | 0.1 |"]


def test_a_class_whose_fields_have_no_default_has_changes_too():
    text = changes_text(Typed(data="digits", max_epochs=3))

    assert "| data | digits |  |" in text
    assert "| max_epochs | 3 | None |" in text
