"""What each tracker is told about a run, and which trackers there are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from danling.errors import CallbackError
from danling.trackers import GOES_ON, KINDS, Identity, check_kind

NEW = Identity("digits", "digits-mlp-1f", "0" * 32, Path("runs/a"), Path("runs"))
RESUMED = Identity("digits", "digits-mlp-1f", "0" * 32, Path("runs/a"), Path("runs"), "known")


def test_every_tracker_of_accelerate_can_be_used_but_tensorboard_s():
    assert set(KINDS) == set(LOGGER_TYPE_TO_CLASS) - {"tensorboard"}


def test_it_is_told_of_every_tracker_whether_a_killed_run_goes_on():
    assert set(GOES_ON) == set(KINDS)


def test_a_misspelt_tracker_is_an_error_with_the_nearest_name():
    with pytest.raises(CallbackError, match=r"Tracker\('mlflo'\): did you mean 'mlflow'"):
        check_kind("mlflo")


def test_tensorboard_has_a_callback_of_its_own():
    with pytest.raises(CallbackError, match=r"use the callback TensorBoard\(\)"):
        check_kind("tensorboard")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if find_spec(kind) is None])
def test_a_tracker_that_is_not_installed_is_an_error_with_the_command(kind: str):
    with pytest.raises(CallbackError, match=f"is not installed: pip install {kind}"):
        check_kind(kind)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("wandb", {"id": "0" * 32, "resume": "allow"}),
        ("comet_ml", {"experiment_key": "0" * 32, "mode": "get_or_create"}),
        ("swanlab", {"id": "0" * 32, "resume": "allow"}),
        ("trackio", {"name": "digits-mlp-1f", "resume": "allow"}),
        ("mlflow", {"run_id": "known"}),
        ("aim", {"run_hash": "known", "force_resume": True}),
        ("clearml", {"reuse_last_task_id": "known", "continue_last_task": 0}),
    ],
)
def test_a_resumed_run_is_the_same_run_in_the_tracker(kind: str, expected: dict[str, Any]):
    options = KINDS[kind].options(RESUMED)

    assert options | expected == options


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mlflow", {"run_id": None}),
        ("aim", {"run_hash": None, "force_resume": False}),
        ("clearml", {"continue_last_task": False}),
        ("dvclive", {"resume": False, "save_dvc_exp": False}),
    ],
)
def test_a_new_run_is_a_new_run_in_the_tracker(kind: str, expected: dict[str, Any]):
    options = KINDS[kind].options(NEW)

    assert options | expected == options
