"""Completion, as shells ask for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import danling as dl
from danling.cli.main import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_ids_and_keys(
    shell: str, root: Path, capsys: pytest.CaptureFixture[str]
):
    def completed(*words: str) -> list[str]:
        main(["__complete", *words])
        return capsys.readouterr().out.split()

    uuid = dl.runs(root)[0].uuid[:8]
    assert completed("exp") == ["export"]
    assert completed("show", uuid[:8]) == [uuid]
    assert completed("ls", "-s", "optim.l") == ["optim.lr"]
    assert "--filter" in completed("ls", "--f")
    assert main(["completion", shell]) == 0
    assert "danling __complete" in capsys.readouterr().out


def test_bash_accepts_the_script_and_completes(root: Path, tmp_path: Path):
    (tmp_path / "danling").write_text(f'#!/bin/sh\nexec {sys.executable} -m danling "$@"\n')
    (tmp_path / "danling").chmod(0o755)
    script = (
        'eval "$(danling completion bash)"; COMP_WORDS=(danling repo); COMP_CWORD=1; _danling;'
        ' echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )

    assert done.stdout.split() == ["report"]
