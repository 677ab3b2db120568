"""The tree of errors, and the end of their messages."""

from __future__ import annotations

import inspect

import pytest

from danling import errors
from danling.errors import did_you_mean


def test_every_error_of_the_library_is_a_danling_error() -> None:
    found = [
        error
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if error.__module__ == errors.__name__
    ]

    assert len(found) > 8
    assert all(issubclass(error, errors.DanLingError) for error in found)


def test_the_drawn_tree_names_every_error() -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if "──" in line]

    drawn = {line.split("──")[-1].split()[0] for line in lines}

    assert drawn | {"DanLingError", "did_you_mean"} == set(errors.__all__)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.CallbackError, TypeError),
        (errors.RunLockedError, OSError),
        (errors.CheckpointError, OSError),
        (errors.ResumeError, RuntimeError),
    ],
)
def test_an_error_is_also_caught_as_what_python_would_raise(
    error: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(error, builtin)


def test_a_full_disk_can_be_told_from_the_rest() -> None:
    error = errors.CheckpointError(28, "not saved", "latest.pth")

    assert error.errno == 28
    assert error.filename == "latest.pth"


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("on_stpe", ["on_step", "on_save"], "did you mean 'on_step'?"),
        ("zzz", ["b", "a"], "valid are 'a', 'b'"),
        ("zzz", [], "there are none"),
    ],
)
def test_a_message_names_the_nearest_valid_word(word: str, known: list[str], expected: str) -> None:
    assert did_you_mean(word, known) == expected
