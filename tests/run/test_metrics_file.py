from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danling.errors import ConfigError
from danling.run.metrics_file import MetricsFile, MetricsTable, read_metrics
from tests.support.calls import calls_of


def steps(path: Path) -> list[int]:
    return [row["global_step"] for row in read_metrics(path)]


def written(path: Path, *global_steps: int) -> MetricsFile:
    file = MetricsFile(path)
    for step in global_steps:
        file.append({"global_step": step})
    file.close()
    return file


def test_rows_reach_the_disk_with_flush_and_not_before(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")

    file.append({"global_step": 1})
    existed = file.path.exists()
    file.flush()

    assert not existed
    assert file.path.read_text() == '{"global_step": 1}\n'
    file.close()


def test_what_json_lacks_is_a_string(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")

    file.append({"global_step": 1, "nan": float("nan"), "inf": float("inf")})
    file.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    row = json.loads(file.path.read_text(), parse_constant=refuse)
    assert row == {"global_step": 1, "nan": "NaN", "inf": "Infinity"}


def test_a_value_that_is_no_number_is_refused(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")

    with pytest.raises(ConfigError, match="loss"):
        file.append({"global_step": 1, "loss": {1, 2}})

    assert file.rows == 0


def test_a_closed_file_goes_on_where_it_was(tmp_path: Path):
    file = written(tmp_path / "metrics.jsonl", 1, 2)

    file.append({"global_step": 3})
    file.close()

    assert steps(file.path) == [1, 2, 3]
    assert file.rows == 3


def test_the_cut_removes_later_steps_and_returns_them(tmp_path: Path):
    written(tmp_path / "metrics.jsonl", 10, 20, 20, 30, 40)
    file = MetricsFile(tmp_path / "metrics.jsonl")

    removed = file.cut(20, aside=tmp_path / "metadata" / "abandoned.jsonl")

    assert removed == 2
    assert steps(tmp_path / "metadata" / "abandoned.jsonl") == [30, 40]
    assert steps(file.path) == [10, 20, 20]
    assert file.rows == 3


def test_the_cut_keeps_no_more_rows_than_there_were(tmp_path: Path):
    """An evaluation logs after the checkpoint of the same step, and is done again."""
    written(tmp_path / "metrics.jsonl", 10, 20, 20)
    file = MetricsFile(tmp_path / "metrics.jsonl")

    assert file.cut(20, rows=2) == 1
    assert steps(file.path) == [10, 20]


def test_a_file_that_is_not_there_has_nothing_to_cut(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")

    assert file.cut(100, rows=7) == 0
    assert not file.path.exists()


@pytest.mark.parametrize("length", range(1, 20))
def test_a_half_line_is_skipped_and_then_cut(tmp_path: Path, length: int):
    path = tmp_path / "metrics.jsonl"
    written(path, 1, 2)
    with open(path, "rb+") as file:
        file.truncate(path.stat().st_size - length)

    read = steps(path)
    resumed = MetricsFile(path)
    resumed.cut(100)
    resumed.append({"global_step": 3})
    resumed.close()

    assert read == [1]
    assert steps(path) == [1, 3]


def test_a_reader_meets_the_rows_of_a_run_that_is_running(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"global_step": 1})
    file.flush()

    rows = read_metrics(file.path)
    file.append({"global_step": 2})
    file.flush()

    assert [row["global_step"] for row in rows] == [1, 2]
    file.close()


def test_a_disk_that_is_full_in_the_middle_of_a_row_leaves_whole_rows(tmp_path: Path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"global_step": 1})
    file.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limit[1]))

    try:
        file.append({"global_step": 2})
        with pytest.raises(OSError, match="too large"):
            file.flush()
        full = file.path.read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    file.close()

    assert full == '{"global_step": 1}\n'
    assert steps(file.path) == [1, 2]


def test_a_killed_process_loses_only_what_was_not_flushed(tmp_path: Path):
    script = """
import os, signal
from danling.run.metrics_file import MetricsFile
from tests.support.calls import calls_of
file = MetricsFile("metrics.jsonl")
for step in range(1, 1000):
    file.append({"global_step": step})
    if step == 500:
        file.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=os.environ)

    assert killed.returncode == -9
    assert steps(tmp_path / "metrics.jsonl") == list(range(1, 501))


def test_a_row_costs_the_same_however_many_there_are(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    row = {"global_step": 1, "epoch": 0, "train/loss": 0.5}

    def add() -> None:
        file.append(row)
        file.flush()

    add()  # it opens the file
    first = calls_of(add)
    for _ in range(20_000):
        file.append(row)
    file.flush()
    last = calls_of(add)

    assert last == first
    assert "read" not in first
    file.close()


def test_only_the_row_s_step_is_read_when_a_file_is_cut(tmp_path: Path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    written(path, *range(1000))
    parsed: list[bytes] = []
    monkeypatch.setattr("danling.run.metrics_file._parse", parsed.append)

    assert MetricsFile(path).cut(499) == 500
    assert parsed == []


@pytest.mark.parametrize("line", [b"[" * 100_000 + b"\n", b"\xff\xfe\n", b'{"global_step": "x"}\n'])
def test_a_damaged_line_stays_and_hides_no_other(tmp_path: Path, line: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"global_step": 1}\n' + line + b'{"global_step": 2}\n{"global_step": 3}\n')

    removed = MetricsFile(path).cut(2)

    assert removed == 1
    assert path.read_bytes() == b'{"global_step": 1}\n' + line + b'{"global_step": 2}\n'


# The table


def cells(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def row(step: int, **values: float) -> dict[str, float]:
    return {"global_step": step, "epoch": 0, "time": 1.5, **values}


def test_a_new_tag_fills_up_the_rows_before_it(tmp_path: Path):
    table = MetricsTable(tmp_path / "metrics.csv")
    for step, tag in enumerate("abca"):
        table.append(row(step, **{tag: 1.0}))
        table.flush()
    table.close()

    assert cells(table.path) == [
        ["global_step", "epoch", "time", "a", "b", "c"],
        ["0", "0", "1.5", "1.0", "", ""],
        ["1", "0", "1.5", "", "1.0", ""],
        ["2", "0", "1.5", "", "", "1.0"],
        ["3", "0", "1.5", "1.0", "", ""],
    ]


def test_a_table_that_was_cut_back_is_the_undisturbed_one_when_it_goes_on(tmp_path: Path):
    undisturbed = MetricsTable(tmp_path / "undisturbed.csv")
    undisturbed.append(row(1, a=1.0))
    undisturbed.append(row(2, b=2.0))
    undisturbed.close()
    whole = undisturbed.path.read_bytes()
    killed = tmp_path / "killed.csv"

    for length in range(len(whole) + 1):  # a process may be killed anywhere in a write
        killed.write_bytes(whole[:length])
        table = MetricsTable(killed)
        table.cut(1)
        if table.rows == 0:
            table.append(row(1, a=1.0))
        table.append(row(2, b=2.0))
        table.close()
        assert killed.read_bytes() == whole, length


def test_a_table_is_cut_to_the_number_of_rows_too(tmp_path: Path):
    table = MetricsTable(tmp_path / "metrics.csv")
    for value in (1.0, 2.0):
        table.append(row(1, a=value))
    table.close()

    assert MetricsTable(table.path).cut(1, rows=1) == 1
    assert cells(table.path)[1:] == [["1", "0", "1.5", "1.0"]]


DAMAGED_LINES = [
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"1" * 5000,
    b'{"global_step": ' + b"1" * 5000 + b"}",
    b"\xff\xfe",
    b'"text"',
    b'{"global_step": 1, "global_step": 2}',
    b"\x00" * 100,
    b"",
]


@pytest.mark.parametrize("damaged", DAMAGED_LINES, ids=range(len(DAMAGED_LINES)))
def test_a_damaged_line_is_skipped_with_a_warning_and_stays_where_it_is(
    tmp_path: Path, damaged: bytes, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"global_step": 1}\n' + damaged + b'\n{"global_step": 2}\n')

    assert steps(path) == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 1 damaged lines were skipped"
    ]
    file = MetricsFile(path)
    assert file.cut(1) == 1
    assert path.read_bytes() == b'{"global_step": 1}\n' + damaged + b"\n"
    assert file.rows == 2


@given(content=st.binary(max_size=300), step=st.integers(0, 3), rows=st.none() | st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_and_cut_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, step: int, rows: int | None
):
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    written = b'{"global_step": 1}\n' + content
    path.write_bytes(written)

    list(read_metrics(path))
    aside = path.with_name("abandoned.jsonl")
    MetricsFile(path).cut(step, rows, aside)

    kept, moved = path.read_bytes(), aside.read_bytes() if aside.exists() else b""
    assert kept + moved == written[: written.rindex(b"\n") + 1]  # all but a half line
    assert kept.endswith(b"\n") or not kept
