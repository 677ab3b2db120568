from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from danling.cli.main import main


def test_the_end_of_a_log(root: Path, capsys: pytest.CaptureFixture[str]):
    (path,) = root.glob("*-00000003")
    (path / "run.log").write_text("".join(f"line {n}\x1b[2J\n" for n in range(100)))

    assert main(["logs", "@1", "-n", "2"]) == 0

    assert capsys.readouterr().out == "line 98\\x1b[2J\nline 99\\x1b[2J\n"
    assert main(["logs", "@1", "-f", "-n", "1"]) == 0  # nobody works on it: it ends
    assert main(["logs", "@2"]) == 1
    assert "has written no log yet" in capsys.readouterr().err


def test_a_log_is_followed_until_the_run_ends(root: Path):
    (path,) = root.glob("*-00000003")
    program = (
        "import sys; from danling.run.lock import DirectoryLock\n"
        "path = sys.argv[1] + '/run.log'\n"
        "with DirectoryLock(sys.argv[1]), open(path, 'a', buffering=1) as log:\n"
        "    print('held', flush=True)\n"
        "    for line in sys.stdin: print(line.strip(), file=log); print('written', flush=True)\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stdout.readline() == "held\n"
    command = [sys.executable, "-m", "danling", "logs", "@1", "-f"]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    for number in range(3):
        worker.stdin.write(f"epoch {number}\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "written\n"
        assert reader.stdout.readline() == f"epoch {number}\n"
    assert reader.poll() is None

    worker.stdin.close()
    worker.wait()

    assert reader.wait() == 0
    worker.stdout.close()
    reader.stdout.close()


def test_watching_ends_when_nothing_runs(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["watch", "--json"]) == 0

    rows = json.loads(capsys.readouterr().out)["data"]
    assert [row["status"] for row in rows] == ["finished"] * 3
    assert rows[0]["latest"]["epoch"] == 2
