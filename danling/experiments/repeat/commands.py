"""The command lines that go on with a run, or repeat it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from danling.errors import RunDirectoryError, RunError
from danling.experiments.repeat.code import CODE_FOLDER, Rebuilt, has_changed, rebuild, script_in
from danling.experiments.stored import StoredRun
from danling.files.json import dumps

__all__ = ["Command", "command", "repeated", "resumed", "split_command", "text_of"]


_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
_OWN = ("resume", "project_root")


@dataclass(frozen=True)
class Command:
    """A command line, and where to type it."""

    argv: list[str]
    cwd: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set."""
    notes: tuple[str, ...] = ()
    """The things that are not as they were."""

    def __str__(self) -> str:
        words = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        line = " ".join([*words, shlex.join(self.argv)])
        return f"cd {shlex.quote(str(self.cwd))} && {line}" if self.cwd else line


@dataclass(frozen=True)
class CommandParts:
    """A command line of Python, in its parts."""

    python: list[str]
    """The interpreter and its options."""
    script: str
    is_module: bool
    """Whether the script is the name of a module, after `-m`."""
    arguments: list[str]

    @property
    def argv(self) -> list[str]:
        return [*self.python, *(["-m"] if self.is_module else []), self.script, *self.arguments]


def split_command(argv: Sequence[str]) -> CommandParts | None:
    """The parts of a command line of Python; None where it runs no script.

    Example:
        >>> split_command(["python", "-u", "-m", "train", "--lr"])
        CommandParts(python=['python', '-u'], script='train', is_module=True, arguments=['--lr'])
    """
    words, python = list(argv[1:]), list(argv[:1])
    while words and words[0].startswith("-") and words[0] != "-":
        option = words.pop(0)
        if option == "-m" and words:
            return CommandParts(python, words[0], True, words[1:])
        if option == "-c":
            return None
        python.append(option)
        if option in _WITH_VALUE and words:
            python.append(words.pop(0))
    return CommandParts(python, words[0], False, words[1:]) if words else None


def command(run: StoredRun, kind: str, overrides: Mapping[str, Any]) -> list[str]:
    """The command line of a kind; see `Run.command`.

    Raises:
        RunDirectoryError: No command line is recorded.
        ValueError: There is no such kind.
    """
    if kind not in ("rerun", "resume"):
        raise ValueError(f"kind={kind!r}: valid are 'rerun' and 'resume'")
    flags = [f"--{key}={text_of(value)}" for key, value in overrides.items()]
    if kind == "resume":
        return resumed(run, flags).argv
    parts = _parts(run, 0)
    return _launched(run, replace(parts, arguments=[*parts.arguments, *flags])).argv


def resumed(run: StoredRun, flags: Sequence[str] = (), root: Path | None = None) -> Command:
    """The command that goes on with a run in its own directory.

    Args:
        run: The run.
        flags: Further flags of the script.
        root: The folder of the runs, below which the code of the run is rebuilt where the code has
            changed since; None to go on with the code as it is now.

    Raises:
        RunDirectoryError: No command line is recorded.
    """
    parts = _parts(run, -1)
    resume = ["--resume", str(run.path.resolve())]
    cwd = run.launches[-1].get("cwd")
    notes = []
    if not isinstance(cwd, str) or not os.path.isdir(cwd):
        notes.append(
            f"the folder {cwd} in which it was started is gone: this is for the current one"
        )
        cwd = None
    notes += _masked(parts)
    parts = replace(parts, arguments=[*parts.arguments, *flags, *resume])
    environment: dict[str, str] = {}
    if root is not None and has_changed(run, root):
        rebuilt = rebuild(run, root.resolve() / CODE_FOLDER)
        parts, environment = _moved(run, parts, rebuilt.path, run.launches[-1].get("cwd"))
        notes += ["the code has changed since: it goes on with its own, rebuilt", *rebuilt.notes]
    found = _launched(run, parts)
    place = Path(cwd) if cwd else None
    return replace(found, cwd=place, environment=environment, notes=(*notes, *found.notes))


def repeated(run: StoredRun, root: Path, flags: Sequence[str] = ()) -> tuple[Command, Rebuilt]:
    """The command that runs the code of a run again, after that was rebuilt in a git worktree.

    The script comes from the worktree, and relative paths of data lead to the current folder.

    Raises:
        RunDirectoryError: No command line is recorded.
        RunError: The code cannot be rebuilt.
    """
    parts = _parts(run, 0)
    rebuilt = rebuild(run, root.resolve() / CODE_FOLDER)
    cwd = run.launches[0].get("cwd")
    parts, environment = _moved(run, parts, rebuilt.path, cwd)
    own = ["--project_root", str(root.resolve()), *_drawn_seed(run, flags), *flags]
    made = _launched(run, replace(parts, arguments=[*parts.arguments, *own]))
    notes = (*_masked(parts), *rebuilt.notes, *made.notes, *_other_machine(run))
    return replace(made, environment=environment, notes=notes), rebuilt


def text_of(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else dumps(value)


def _moved(
    run: StoredRun, parts: CommandParts, worktree: Path, cwd: str | None
) -> tuple[CommandParts, dict[str, str]]:
    """The command line of the script in a worktree, and the variables that it needs."""
    arguments = [_in_worktree(word, worktree, cwd) for word in parts.arguments]
    if parts.is_module:  # `-P`: the current folder is not searched for modules
        python = [*parts.python, "-P"]
        return replace(parts, python=python, arguments=arguments), {"PYTHONPATH": str(worktree)}
    script = script_in(worktree, parts.script, cwd)
    if script is None:
        raise RunError(f"{parts.script} of {run.id} is not in its code: it lay outside of git")
    return replace(parts, script=str(script), arguments=arguments), {}


def _parts(run: StoredRun, launch: int) -> CommandParts:
    argv = run.launches[launch].get("argv") if run.launches else None
    words = [word for word in argv if isinstance(word, str)] if isinstance(argv, list) else []
    parts = split_command(words)
    if parts is None:
        raise RunDirectoryError(f"no command line of a script is recorded for {run.id}")
    return replace(parts, arguments=_without_own(parts.arguments))


def _without_own(arguments: Sequence[str]) -> list[str]:
    """The arguments without those that say where, and with which run, to go on."""
    kept: list[str] = []
    skips = False
    for word in arguments:
        if word.startswith("--"):
            name, equals, _ = word.removeprefix("--").replace("-", "_").partition("=")
            skips = name in _OWN and not equals
            if name in _OWN:
                continue
        elif skips:
            continue
        kept.append(word)
    return kept


def _launched(run: StoredRun, parts: CommandParts) -> Command:
    """The command on as many processes as the run had."""
    size = run.launches[-1].get("world_size")
    if not isinstance(size, int) or size < 2:
        return Command(parts.argv)
    variables = run.environment.get("variables")
    local = variables.get("LOCAL_WORLD_SIZE", size) if isinstance(variables, dict) else size
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(local)]
    script = ["--module", parts.script] if parts.is_module else [parts.script]
    argv = [*parts.python, *launcher, *script, *parts.arguments]
    notes = (
        f"it ran on {size} processes, {local} of them on each node: start it on each of those",
    )
    return Command(argv, notes=notes if str(local) != str(size) else ())


def _in_worktree(word: str, worktree: Path, cwd: str | None) -> str:
    """A file of configuration as it is in the worktree; everything else as it is."""
    flag, equals, value = word.rpartition("=")
    if Path(value).suffix not in (".yaml", ".yml", ".json"):
        return word
    found = script_in(worktree, value, cwd)
    return f"{flag}{equals}{found}" if found else word


def _drawn_seed(run: StoredRun, flags: Sequence[str]) -> list[str]:
    if run.settings.get("seed") is not None or run.seed is None:
        return []
    return [] if any(flag.startswith("--seed") for flag in flags) else ["--seed", str(run.seed)]


def _masked(parts: CommandParts) -> list[str]:
    hidden = [word for word in parts.arguments if "***" in word or "<masked>" in word]
    return [f"secrets were masked, write them yourself: {' '.join(hidden)}"] if hidden else []


def _other_machine(run: StoredRun) -> list[str]:
    import platform
    import socket

    notes = []
    now = {"host": socket.gethostname(), "python": platform.python_version()}
    for key, value in now.items():
        then = run.environment.get(key)
        if isinstance(then, str) and then != value:
            notes.append(f"another {key}: {then} then, {value} now")
    notes.append("data is not part of the code: relative paths lead to the current folder")
    return notes
