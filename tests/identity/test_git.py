"""Git may be missing, slow, hanging or broken: a run starts all the same, and soon."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from danling.identity.git import GitError, GitTimeoutError, Repository
from tests.support.clock import SetClock
from tests.support.repositories import git, make_repository, read_code_elsewhere

TIMEOUT = 2.0


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "repository")


def fake_git(folder: Path, script: str) -> str:
    """A PATH on which git is a shell script; `$real` is the real one."""
    folder.mkdir()
    program = folder / "git"
    program.write_text(f"#!/bin/sh\nreal={shutil.which('git')}\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_importing_the_modules_of_identity_imports_neither_git_nor_torch():
    modules = ["identity.git", "identity.worktree", "identity.ids", "identity.patch"]
    modules += ["identity.environment", "identity.redaction", "identity.modules", "run.run"]
    modules += ["run.lock", "run.record", "run.search", "run.choice", "files.atomic"]
    script = f"import sys, {', '.join(f'danling.{name}' for name in modules)}\n"
    script += "print(sorted({'git', 'torch', 'accelerate', 'numpy', 'yaml'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.stdout.strip() == "[]"


def test_without_a_git_program_the_source_files_are_the_code(repository, tmp_path):
    (tmp_path / "empty").mkdir()

    code = read_code_elsewhere(repository, PATH=str(tmp_path / "empty"))

    assert code["source"] == "files"
    assert code["commit"] == git(repository, "rev-parse", "HEAD")  # it can be read without git
    assert code["dirty"] is None
    assert code["note"] == "there is no git program"


def test_importing_danling_needs_no_git_program(tmp_path):
    command = [sys.executable, "-c", "import danling, danling.identity.ids; print('fine')"]

    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)}
    )

    assert (done.stdout.strip(), done.stderr) == ("fine", "")


def test_a_git_that_hangs_from_the_start_costs_no_more_than_the_timeout(repository, tmp_path):
    marker = tmp_path / "pid"
    script = f"sleep 60 & echo $! >> {marker}\nwait"

    code = read_code_elsewhere(repository, timeout=TIMEOUT, PATH=fake_git(tmp_path / "bin", script))

    assert code["partial"] is True
    assert TIMEOUT <= code["seconds"] < TIMEOUT + 1
    assert [pid for pid in marker.read_text().split() if is_alive(int(pid))] == []


def test_a_git_that_hangs_half_way_leaves_a_partial_code_with_the_commit(repository, tmp_path):
    script = 'case "$*" in *status*) sleep 60;; *) exec "$real" "$@";; esac'

    code = read_code_elsewhere(repository, timeout=TIMEOUT, PATH=fake_git(tmp_path / "bin", script))

    assert code["partial"] is True
    assert code["commit"] == git(repository, "rev-parse", "HEAD")
    assert code["seconds"] < TIMEOUT + 1
    assert code["experiment_id"] != read_code_elsewhere(repository)["experiment_id"]


def test_a_git_that_fails_is_told_with_its_own_words(repository):
    found = Repository(repository, TIMEOUT)

    with pytest.raises(GitError, match=r"git failed: fatal: .*nonsense"):
        found.run("rev-parse", "nonsense", config={})


def test_the_deadline_is_common_to_all_questions(repository, monkeypatch: pytest.MonkeyPatch):
    clock = SetClock(monkeypatch)
    found = Repository(repository, 60)
    found.run("rev-parse", "HEAD", config={})
    clock.pass_time(61)

    with pytest.raises(GitTimeoutError):
        found.run("rev-parse", "HEAD", config={})


@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR"])
def test_variables_that_a_git_hook_sets_do_not_lead_to_another_repository(
    repository, tmp_path, variable
):
    other = make_repository(tmp_path / "other")
    (other / "train.py").write_text("lr = 0.2\n")
    expected = read_code_elsewhere(repository)

    places = {"GIT_DIR": other / ".git", "GIT_COMMON_DIR": other / ".git", "GIT_WORK_TREE": other}
    variables: dict[str, Any] = {variable: str(places[variable])}
    code = read_code_elsewhere(repository, **variables)

    assert code | {"seconds": 0} == expected | {"seconds": 0}


def test_git_never_asks_for_a_password_nor_takes_an_optional_lock(repository, tmp_path):
    log = tmp_path / "log"
    script = f'echo "$GIT_TERMINAL_PROMPT $GIT_OPTIONAL_LOCKS $1" >> {log}\nexec "$real" "$@"'

    read_code_elsewhere(repository, PATH=fake_git(tmp_path / "bin", script))

    lines = [line for line in log.read_text().splitlines() if not line.endswith("version")]
    assert {line.rsplit(" ", 1)[0] for line in lines} == {"0 0"}
    assert [line for line in lines if line.endswith("status")] == ["0 0 status"]


def test_the_environment_is_as_it_was_after_gitpython_was_imported(repository):
    script = "import os; from pathlib import Path; from danling.identity.code import read_code\n"
    script += "before = dict(os.environ); read_code(Path.cwd()); print(before == dict(os.environ))"

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True
    )

    assert done.stdout.strip() == "True"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
