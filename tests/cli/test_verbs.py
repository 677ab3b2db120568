"""Every verb: as JSON, in a pipe, in 40 columns, without colours, on nothing and without rights."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import danling as dl
from danling.cli.main import VERBS, main
from tests.support.week import copy_week, make_week

READING: dict[str, list[str]] = {
    "ls": [],
    "show": ["@1"],
    "diff": ["@1", "@2"],
    "best": [],
    "seeds": [],
    "plot": ["@1", "-m", "val.loss"],
    "logs": ["@1"],
    "watch": [],
    "resume": ["@1", "--current-code"],
    "export": [],
    "verify": ["@1"],
    "doctor": [],
    "completion": ["bash"],
}
WRITING: dict[str, list[str]] = {
    "report": ["-o", "page.html"],
    "rerun": ["@1"],
    "sweep": ["train.py", "--seed", "0..2", "--dry-run"],
    "tag": ["@1", "paper"],
    "note": ["@1", "odd"],
    "rm": ["@failed"],
    "restore": [],
    "gc": [],
}
SHAPES: dict[str, type] = {
    **dict.fromkeys(["ls", "show", "diff", "plot", "logs", "note", "rm", "gc"], dict),
    **dict.fromkeys(["report", "doctor", "completion", "tensorboard"], dict),
    **dict.fromkeys(["best", "seeds", "watch", "export", "verify", "resume", "rerun"], list),
    **dict.fromkeys(["sweep", "tag", "restore"], list),
}
COMMAND = {"argv", "cwd", "environment", "notes"}
KEYS: dict[str, set[str]] = {
    "ls": {"runs", "passed_over"},
    "show": {"id", "name", "status", "reason", "config", "best", "code", "launches", "checkpoints"},
    "diff": {"first", "second", "config", "code", "environment", "command", "metrics"},
    "best": {"id", "name", "metric", "value", "epoch", "checkpoint"},
    "seeds": {"optim.lr", "optim.weight_decay", "n", "others"},
    "plot": {"tag", "curves"},
    "logs": {"id", "lines"},
    "watch": {"id", "status", "latest"},
    "resume": COMMAND,
    "rerun": COMMAND,
    "sweep": {"seed"},
    "tag": {"id", "tags"},
    "note": {"id", "notes"},
    "rm": {"done", "runs"},
    "restore": {"id", "name"},
    "gc": {"done", "bytes", "removed"},
    "export": {"id", "status", "optim.lr", "val.accuracy"},
    "report": {"path", "bytes", "runs"},
    "verify": {"id", "ok", "findings"},
    "doctor": {"versions", "devices", "accelerate", "git", "disk"},
    "completion": {"shell", "script"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_week(tmp_path_factory.mktemp("made") / "week", seeds=1)


@pytest.fixture
def week(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = copy_week(made, tmp_path / "week")
    monkeypatch.chdir(folder)
    return folder


def test_every_verb_is_tried():
    assert {*READING, *WRITING, "tensorboard"} == set(VERBS)


@pytest.mark.parametrize("verb", [*READING, *WRITING])
def test_json_has_a_schema_and_the_documented_shape(
    verb: str, week: Path, capfd: pytest.CaptureFixture[str]
):
    main([verb, *{**READING, **WRITING}[verb], "--json"])

    printed = json.loads(capfd.readouterr().out)
    assert printed.keys() == {"schema", "data"}
    assert printed["schema"] == "danling/1"
    assert isinstance(printed["data"], SHAPES[verb])
    data: Any = printed["data"]
    rows = data if isinstance(data, list) else [data]
    assert rows or verb == "restore"  # there is nothing in the trash
    assert all(KEYS[verb] <= row.keys() for row in rows)


@pytest.mark.parametrize("verb", [*READING, *WRITING])
def test_works_in_a_pipe_without_escapes_and_without_cutting(
    verb: str, week: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "40")

    code = main([verb, *{**READING, **WRITING}[verb]])

    printed = capfd.readouterr().out
    assert code == 0 or verb == "restore"  # there is nothing in the trash
    assert "\x1b" not in printed
    assert "…" not in printed


@pytest.mark.parametrize("verb", ["ls", "show", "diff", "best", "seeds", "plot", "watch", "gc"])
@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_fits_a_narrow_terminal(verb: str, plain: dict[str, str], week: Path):
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "40", **plain}
    words = {**READING, **WRITING}[verb]

    printed = on_terminal([verb, *words], environment)

    colours = re.findall(r"\x1b\[[\d;]*m", printed)
    bare = re.sub(r"\x1b\[[\d;]*m", "", printed)
    assert "Traceback" not in printed
    assert not plain or not colours
    if verb in ("ls", "best", "seeds", "watch"):
        assert max(map(len, bare.splitlines())) <= 40
        assert plain or colours


@pytest.mark.parametrize("verb", [*READING, *WRITING])
def test_every_verb_works_on_a_narrow_terminal_without_colours(verb: str, week: Path):
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "40", "NO_COLOR": "1"}

    printed = on_terminal([verb, *{**READING, **WRITING}[verb]], environment)

    assert printed
    assert "Traceback" not in printed
    assert "\x1b" not in printed
    if verb in ("rm", "restore", "tag"):
        assert max(map(len, printed.splitlines())) <= 40 or verb == "tag"


def on_terminal(words: list[str], environment: dict[str, str]) -> str:
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "danling", *words],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    os.close(theirs)
    printed = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        printed += piece
    process.wait()
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("verb", [*READING, *WRITING])
def test_on_an_empty_folder_it_says_what_to_do(
    verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "train.py").write_text("")

    code = main([verb, *{**READING, **WRITING}[verb]])

    assert code in (0, 1)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("verb", [*READING, "rm", "gc"])
def test_without_a_folder_it_says_where_to_look(
    verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    if verb in ("doctor", "completion"):
        return

    code = main([verb, *{**READING, **WRITING}[verb]])

    assert code == 1
    assert "name one with -C DIR or DANLING_ROOT" in capfd.readouterr().err


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_reading_needs_no_right_to_write(week: Path):
    # every other pytest that starts takes the rights to the folders of pytest away again
    open_to_all = Path(tempfile.mkdtemp(prefix="danling-"))
    try:
        shutil.copytree(week, open_to_all / "week", symlinks=True)
        open_to_all.chmod(0o755)
        read_as_nobody(open_to_all / "week")
    finally:
        shutil.rmtree(open_to_all)


def read_as_nobody(week: Path) -> None:
    """Run each verb in a folder, first as root and then as a user without rights there."""
    verbs = [[verb, *words] for verb, words in READING.items()]
    strict = [verb not in ("verify", "doctor") for verb in READING]  # git asks whose files they are
    program = (
        "import os, sys; from danling.cli.main import main\n"
        f"verbs, strict = {verbs!r}, {strict!r}\n"
        "def run(): return [main(words) and test for words, test in zip(verbs, strict)]\n"
        "run(); main(['tag', '@1', 'old']); os.seteuid(65534)\n"  # all is imported by then
        "sys.exit(any(run()) or main(['tag', '@1', 'paper']) != 1)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=week)

    assert done.returncode == 0, done.stderr
    assert "marks.json cannot be written: Permission denied" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["ls", "-F", "optim.lrr > 1"], 2, "did you mean 'optim.lr'?"),
        (["ls", "-F", "import os"], 2, "cannot be read"),
        (["ls", "-s", "val.acuracy"], 2, "did you mean 'val.accuracy'?"),
        (["ls", "-F", "optim.lr > 100"], 1, "no run is selected"),
        (["show", "zzz"], 1, "danling ls lists the runs"),
        (["show", "@0"], 1, "@1 is the newest"),
        (["show", "@bst"], 1, "did you mean '@best'?"),
        (["show", "moons-mlp"], 2, "selects 6 runs; take one of"),
        (["best", "-m", "train.accuracy"], 2, "say --mode min or max"),
        (["rm"], 2, "name the runs to remove"),
        (["tag", "@1", "two words"], 2, "one word"),
        (["plot", "@1", "-m", "val.los"], 2, "no run has a curve"),
        (["export", "-m", "nothing"], 2, "no run has 'nothing'"),
        (["sweep", "missing.py", "--seed", "1"], 1, "there is no script"),
        (["sweep", "train.py", "--seed"], 2, "--seed needs values"),
        (["-C", "nowhere"], 2, "usage"),
        (["ls", "-C", "nowhere"], 1, "there is no folder 'nowhere'"),
        (["ls", "--lenght", "3"], 2, "unrecognized"),
    ],
)
def test_errors_say_what_to_do_and_have_their_codes(
    words: list[str], code: int, message: str, week: Path, capfd: pytest.CaptureFixture[str]
):
    try:
        found = main(words)
    except SystemExit as leaving:  # argparse's own
        found = int(leaving.code or 0)

    printed = capfd.readouterr()
    assert message in printed.err
    assert found == code
    assert "Traceback" not in printed.err


def test_selection_words(week: Path):
    runs = dl.runs()
    run = runs[2]

    assert runs[run.uuid[:6]] is run
    assert runs[run.run_id] is run
    assert runs[run.id] is run
    assert runs[run.path.name] is run
    assert runs[str(run.path)] == run
    assert runs["@3"] is run
    assert runs["@best"] is runs.best()


def test_a_closed_pipe_is_quiet(week: Path):
    command = f"{sys.executable} -m danling export --history | head -1"

    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)

    assert done.stdout == "id,tag,global_step,value,time\n"
    assert done.stderr == ""


def test_an_interrupt_is_130(week: Path):
    program = (
        "import os, signal, sys; from danling.cli import following, main;"
        "following.list_runs = lambda *_: os.kill(os.getpid(), signal.SIGINT);"
        "sys.exit(main.main(['watch']))"
    )

    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 130


def test_help_has_examples_and_loads_little():
    program = (
        "import sys; from danling.cli.main import main\ntry: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'yaml', 'git', 'numpy'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0
    assert "examples:" in done.stdout
    for verb in VERBS:
        with pytest.raises(SystemExit):
            main([verb, "--help"])
