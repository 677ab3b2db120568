"""Damaged files of a run are errors of ours that name the file, or say nothing at all."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danling.errors import RunDirectoryError
from danling.run.lock import LockHolder
from danling.run.record import RunFile

DAMAGED: dict[str, Any] = {
    "deep": b"[" * 1_000_000,
    "a long number": b'{"schema": 1, "a": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"schema": 1, "a": "\xff"}',
    "cut": b'{"schema": 1, "sta',
    "zeros": bytes(500),
    "a schema of true": {"schema": True},
    "a status that is none": {"schema": 1, "status": "flying"},
    "a status that is a list": {"schema": 1, "status": ["running"]},
    "launches that are a number": {"schema": 1, "launches": 3},
    "a launch that is a number": {"schema": 1, "launches": [3]},
    "a launch without an end": {"schema": 1, "launches": [{}]},
    "an id that is a number": {"schema": 1, "run_id": 7},
    "inputs that are a text": {"schema": 1, "hash_inputs": "x"},
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_an_error_that_names_it(tmp_path: Path, content: Any):
    path = tmp_path / "run.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    with pytest.raises(RunDirectoryError, match=r"run\.json"):
        RunFile.read(path)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_record_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
):
    path = tmp_path_factory.mktemp("run") / "run.json"
    path.write_bytes(content)

    with contextlib.suppress(RunDirectoryError):
        RunFile.read(path)


HOLDER = {"host": "a", "pid": 1, "start_time": "then", "run": "x"}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        "9" * 5000,
        "[1]",
        "",
        json.dumps({**HOLDER, "pid": float("1e400")}),
        json.dumps({**HOLDER, "pid": 2**80}),
        json.dumps({**HOLDER, "pid": -1}),
        json.dumps({**HOLDER, "pid": [1]}),
        json.dumps({**HOLDER, "host": None}),
    ],
    ids=range(9),
)
def test_a_lock_that_says_nothing_sensible_says_nothing(text: str):
    assert LockHolder.read(text) == LockHolder()
    assert not LockHolder.read(text).is_gone
    assert LockHolder.read(json.dumps(HOLDER)).host == "a"
