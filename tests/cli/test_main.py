from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from danling.cli.main import INTERRUPTED, MISUSED, OK, VERBS, build_parser, main


def test_a_verb_is_loaded_when_it_is_asked_for(root: Path):
    program = (
        "import sys; from danling.cli.main import main; main(['best']);"
        "loaded = {n for n in sys.modules if n.startswith('danling.cli.')};"
        "sys.exit(bool(loaded & {f'danling.cli.{n}' for n in ('curves', 'running', 'serving')}))"
    )

    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as leaving:
        main([verb, "--help"])

    printed = capsys.readouterr().out
    assert leaving.value.code == 0
    assert f"danling {verb}" in printed.partition("examples:")[2] or verb == "completion"
    assert "--json" in printed


def test_without_a_verb_it_is_wrong_usage(capsys: pytest.CaptureFixture[str]):
    assert main([]) == MISUSED
    assert "examples:" in capsys.readouterr().out


def test_a_word_that_looks_like_a_verb_is_none_of_it(root: Path):
    assert build_parser(["show"]).parse_args(["show", "ls"]).selection == "ls"


@pytest.mark.parametrize("words", [["-s", "-val.accuracy"], ["--sort", "-val.accuracy"]])
def test_the_largest_first_is_a_minus(
    root: Path, words: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["ls", "-q", *words, "-n", "2"]) == OK
    assert [line[-1] for line in capsys.readouterr().out.splitlines()] == ["3", "2"]


def test_the_folder_is_that_of_the_option_the_variable_or_upwards(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    inner = root.parent / "src"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert main(["ls", "-q"]) == OK
    monkeypatch.chdir("/")
    assert main(["ls", "-q", "-C", str(root)]) == OK
    monkeypatch.setenv("DANLING_ROOT", str(root))
    assert main(["ls", "-q"]) == OK
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_ctrl_c_and_a_closed_pipe_end_it_quietly(root: Path):
    program = (
        "import os, signal, sys; from danling.cli import listing, main;"
        "listing.list_runs = lambda *_: os.kill(os.getpid(), signal.SIGINT);"
        "sys.exit(main.main(['ls']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (INTERRUPTED, "")
    command = f"{sys.executable} -m danling export --history | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_danling_is_the_command(root: Path):
    command = [sys.executable, "-m", "danling", "ls", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})

    assert len(done.stdout.splitlines()) == 3
