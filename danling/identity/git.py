"""Asking git, through GitPython, with a time limit and without a trace.

GitPython finds the repository and starts git. It is imported on first use: importing it runs git,
which may be missing, slow or hanging.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from danling.errors import DanLingError

if TYPE_CHECKING:
    from git import Repo

__all__ = ["GitError", "GitTimeoutError", "Repository"]


_ENVIRONMENT = {  # GitPython passes the rest of os.environ on, where a git hook may have set these
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_CONFIG_PARAMETERS": "",
    "GIT_LITERAL_PATHSPECS": "0",
    "GIT_ICASE_PATHSPECS": "0",
    "GIT_GLOB_PATHSPECS": "0",
    "GIT_NOGLOB_PATHSPECS": "0",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES": "",
}


class GitError(DanLingError):
    """Git is not there or cannot answer; never reaches the user, the run starts all the same."""


class GitTimeoutError(GitError):
    """Git did not answer in time."""


class Repository:
    """The git repository around a folder; every answer is due before one common deadline.

    Args:
        start: A folder in the working tree.
        timeout: Seconds for everything that is asked.

    Raises:
        GitError: There is no git, no repository or no working tree around `start`.
        GitTimeoutError: Git hangs.
    """

    def __init__(self, start: Path, timeout: float) -> None:
        self.deadline = time.monotonic() + timeout
        repo = _open(start, self.deadline)
        if repo.working_tree_dir is None:
            raise GitError(f"the repository at {repo.git_dir} has no working tree")
        self.root = Path(repo.working_tree_dir).resolve()
        self.git_dir = Path(repo.git_dir).resolve()
        shared = self.git_dir / "commondir"  # of a linked worktree; GitPython asks os.environ first
        link = os.fsdecode(shared.read_bytes()).rstrip("\r\n") if shared.exists() else ""
        self.common_dir = (self.git_dir / link).resolve()
        self._repo = repo

    def head(self) -> str | None:
        """The commit, read from the files of the repository, without git."""
        from git import SymbolicReference

        with suppress(Exception):  # an unborn HEAD, a broken one, a format GitPython cannot read
            return SymbolicReference.dereference_recursive(self._repo, "HEAD")
        return None

    def run(
        self,
        *arguments: str,
        stdin: bytes = b"",
        accept: Sequence[int] = (0,),
        config: Mapping[str, str],
        **variables: str,
    ) -> bytes:
        """Run git at the root of the working tree and return what it prints.

        Args:
            *arguments: The command line of git.
            stdin: The input that git reads.
            accept: Exit statuses that are no failure.
            config: The settings of git for this call.
            **variables: Environment variables.

        Raises:
            GitError: Git failed; the message is its own.
            GitTimeoutError: The deadline has passed; git and its children were killed.
        """
        from git.cmd import Git
        from git.exc import GitCommandNotFound

        # Named directories, unlike discovered ones, may belong to another user.
        directories = {"GIT_DIR": str(self.git_dir), "GIT_WORK_TREE": str(self.root)}
        directories["GIT_COMMON_DIR"] = str(self.common_dir)
        environment = {**_ENVIRONMENT, **directories, **_configuration(config), **variables}
        try:
            handle = Git(str(self.root)).execute(
                [Git.GIT_PYTHON_GIT_EXECUTABLE or "git", *arguments],
                istream=subprocess.PIPE,
                as_process=True,
                env=environment,
                start_new_session=True,
            )
        except GitCommandNotFound as error:
            raise GitError("there is no git program") from error
        assert handle.proc is not None
        return _answer(handle.proc, stdin, self.deadline, accept)


def _open(start: Path, deadline: float) -> Repo:
    if "git" not in sys.modules:
        _probe(deadline)
    unset = "GIT_PYTHON_REFRESH" not in os.environ
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # else the import fails without git
    try:
        import git
    except ImportError as error:
        raise GitError(f"GitPython cannot be used: {error}") from error
    finally:
        if unset:
            del os.environ["GIT_PYTHON_REFRESH"]
    try:
        return git.Repo(start, search_parent_directories=True, expand_vars=False)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError) as error:
        raise GitError(f"there is no git repository around {start}") from error
    except Exception as error:  # GitPython parses files that may hold anything
        raise GitError(f"the git repository around {start} cannot be read: {error}") from error


def _probe(deadline: float) -> None:
    """Find out whether git hangs: importing GitPython runs it, and would wait for ever."""
    pipe = subprocess.PIPE
    command = [os.environ.get("GIT_PYTHON_GIT_EXECUTABLE", "git"), "version"]
    try:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError:
        return  # GitPython is of use without, as far as it goes
    try:
        _answer(process, b"", deadline)
    except GitTimeoutError:
        raise
    except GitError:
        return


def _answer(
    process: subprocess.Popen[bytes], stdin: bytes, deadline: float, accept: Sequence[int] = (0,)
) -> bytes:
    try:
        output, errors = process.communicate(stdin, timeout=max(0, deadline - time.monotonic()))
    except BaseException as error:
        _kill(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise GitTimeoutError("git did not answer in time") from error
        raise
    if process.returncode not in accept:
        reason = errors.decode(errors="replace").strip() or f"exit status {process.returncode}"
        raise GitError(f"git failed: {reason}")
    return output


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill git with all it started; whoever is left holding the pipes is not waited for."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()


def _configuration(config: Mapping[str, str]) -> dict[str, str]:
    variables = {"GIT_CONFIG_COUNT": str(len(config))}
    for index, (key, value) in enumerate(config.items()):
        variables[f"GIT_CONFIG_KEY_{index}"] = key
        variables[f"GIT_CONFIG_VALUE_{index}"] = value
    return variables
