"""Damaged, foreign and moved directories are listed or passed over with a reason."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import danling as dl
from danling.cli.main import main

RECORD: dict[str, Any] = {
    "schema": 1,
    "name": "tiny-run",
    "id": "aaaaaaaa-bbbbbbbb-cccccccc",
    "uuid": "cccccccc-0000-4000-8000-000000000000",
    "run_id": "b" * 32,
    "experiment_id": "a" * 32,
    "status": "finished",
    "reason": None,
    "created": "2026-01-01T00:00:00+00:00",
    "started": "2026-01-01T00:00:00+00:00",
    "ended": "2026-01-01T00:01:00+00:00",
    "launches": [],
    "code": {"commit": "0" * 40, "dirty": False, "source": "git"},
    "environment": {},
    "hash_inputs": {"seed": 0, "optim": {"lr": 0.1}},
}
NAME = "tiny-run-aaaaaaaa-bbbbbbbb-cccccccc"


def write(path: Path, content: bytes | str) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def record(run: Path, **changes: Any) -> None:
    write(run / "run.json", json.dumps({**RECORD, **changes}))


def replaced_by_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("")


def loop(run: Path) -> None:
    shutil.rmtree(run)
    run.symlink_to(run.name)


def directory_as_file(run: Path) -> None:
    (run / "run.json").unlink()
    (run / "run.json").mkdir()


def pipe(run: Path) -> None:
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")


def loop_in_it(run: Path) -> None:
    (run / "run.json").unlink()
    (run / "run.json").symlink_to("run.json")


def checkpoint_of_zeros(run: Path) -> None:
    (run / "checkpoints").mkdir()
    write(run / "checkpoints" / "best.pth", bytes(100))


PASSED_OVER: dict[str, Callable[[Path], object]] = {
    "truncated": lambda run: write(run / "run.json", json.dumps(RECORD)[:200]),
    "empty file": lambda run: write(run / "run.json", ""),
    "no run.json": lambda run: (run / "run.json").unlink(),
    "binary": lambda run: write(run / "run.json", bytes(range(256))),
    "a list": lambda run: write(run / "run.json", "[]"),
    "a number": lambda run: write(run / "run.json", "1"),
    "null": lambda run: write(run / "run.json", "null"),
    "deep": lambda run: write(run / "run.json", "[" * 100_000),
    "later schema": lambda run: record(run, schema=99),
    "schema of text": lambda run: record(run, schema="one"),
    "schema zero": lambda run: record(run, schema=0),
    "no schema": lambda run: write(run / "run.json", json.dumps({"status": "x"})),
    "no uuid": lambda run: record(run, uuid=None),
    "status of numbers": lambda run: record(run, status=3),
    "directory as file": directory_as_file,
    "pipe": pipe,
    "loop of links in it": loop_in_it,
    "file for folder": replaced_by_file,
    "loop of links": loop,
}
LISTED: dict[str, Callable[[Path], object]] = {
    "launches of text": lambda run: record(run, launches="none"),
    "launches of numbers": lambda run: record(run, launches=[1, None]),
    "code of text": lambda run: record(run, code="x", environment=[], hash_inputs=3),
    "created is no time": lambda run: record(run, created="yesterday"),
    "broken best": lambda run: write(run / "best.json", '{"val": '),
    "best of lists": lambda run: write(run / "best.json", '[["val"]]'),
    "broken metrics": lambda run: write(run / "metrics.jsonl", b"\xff\n[]\n{}\n{"),
    "broken yaml": lambda run: write(run / "runner.yaml", "a: [1\n  b: {"),
    "lock is a directory": lambda run: (run / ".lock").mkdir(),
    "checkpoints is a file": lambda run: write(run / "checkpoints", "x"),
    "checkpoint of zeros": checkpoint_of_zeros,
    "results of numbers": lambda run: write(run / "results.json", "[1, 2]"),
    "marks of text": lambda run: write(run / "marks.json", '{"tags": 3, "notes": [1]}'),
    "unknown status": lambda run: record(run, status="\x1b[31mred\n"),
    "another name": lambda run: run.rename(run.with_name("renamed\n\x1b[2Jfolder")),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run = tmp_path / "experiments" / NAME
    run.mkdir(parents=True)
    record(run)
    return run.parent


@pytest.mark.parametrize("damage", PASSED_OVER.values(), ids=PASSED_OVER)
def test_what_is_no_run_is_passed_over_with_a_reason(
    damage: Callable[[Path], object], root: Path, capsys: pytest.CaptureFixture[str]
):
    damage(root / NAME)

    runs = dl.runs(root)
    code = main(["ls"])

    assert len(runs) == 0
    assert [entry.path.name for entry in runs.passed_over] == [NAME]
    assert runs.passed_over[0].reason
    assert code == 1
    assert f"1 entry was passed over: {NAME}: " in capsys.readouterr().err


READING = [
    ["ls"],
    ["ls", "--json"],
    ["ls", "-c", "tags,notes,size,epoch,host"],
    ["show", "@1"],
    ["show", "@1", "--json"],
    ["logs", "@1"],
    ["seeds", "-m", "seed"],
    ["diff", "@1", "@1"],
    ["gc"],
    ["export", "--format", "markdown"],
    ["export", "--history", "--json"],
]


@pytest.mark.parametrize("damage", LISTED.values(), ids=LISTED)
def test_what_is_damaged_is_listed_and_shown(
    damage: Callable[[Path], object], root: Path, capsys: pytest.CaptureFixture[str]
):
    damage(root / NAME)

    assert len(dl.runs(root)) == 1
    for words in READING:
        assert main(words) in (0, 1)
    assert "\x1b" not in capsys.readouterr().out


def test_there_are_thirty_kinds():
    assert len(PASSED_OVER) + len(LISTED) >= 30


def test_a_foreign_folder_is_passed_over_and_a_band_is_not_mentioned(root: Path):
    (root / "data").mkdir()
    (root / "tiny-seeds-12ab").mkdir()
    (root / "tiny-seeds-12ab" / "events.out.tfevents.1").write_text("")

    assert [entry.path.name for entry in dl.runs(root).passed_over] == ["data"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_directory_without_permission_is_passed_over(root: Path):
    assert not dl.runs(root).passed_over  # everything is imported before the rights go
    with tempfile.TemporaryDirectory() as folder:
        others = Path(folder) / "experiments"
        shutil.copytree(root, others)
        Path(folder).chmod(0o755)
        (others / NAME).chmod(0)

        child = os.fork()
        if child == 0:
            try:
                os.seteuid(65534)
                reasons = [entry.reason for entry in dl.runs(others).passed_over]
                os._exit(0 if reasons == ["run.json cannot be read: Permission denied"] else 1)
            finally:
                os._exit(2)

        assert os.waitpid(child, 0)[1] == 0
