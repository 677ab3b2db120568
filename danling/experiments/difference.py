"""The differences between two runs, in the order in which a cause is looked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from danling.errors import RunError
from danling.experiments.repeat.code import commits_between, find_repository, recorded_tree
from danling.experiments.repeat.commands import split_command
from danling.experiments.stored import StoredRun
from danling.experiments.values import duration_text, value_text
from danling.files.json import dotted
from danling.identity.git import GitError, Repository
from danling.identity.worktree import WorkingTree

__all__ = ["Change", "CodeDifference", "Difference", "difference"]


_NOT_COMPARED = ("variables.", "cpu_count")
_MISSING = object()
_MOST_SHOWN = 6  # changes of a kind in one line


@dataclass(frozen=True)
class Change:
    """A value in the first run and in the second; None where one has none."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.key} {value_text(self.after) or 'null'}"
        if self.after is None:
            return f"- {self.key} {value_text(self.before) or 'null'}"
        texts = value_text(self.before), value_text(self.after)
        if texts[0] == texts[1]:
            texts = str(self.before), str(self.after)
        return f"{self.key} {texts[0]} → {texts[1]}"


@dataclass(frozen=True)
class CodeDifference:
    """The change of the code."""

    same: bool
    before: str
    """The commit, with a star where there were uncommitted changes."""
    after: str
    commits: tuple[str, ...] = ()
    """Commits that only the second has, and, after a minus, only the first."""
    files: tuple[tuple[str, int, int], ...] = ()
    """Path, lines added, lines removed."""
    patch: str = ""
    note: str = ""
    """Why the files could not be compared."""

    def __str__(self) -> str:
        if self.same:
            return f"the same, {self.after}" if self.after else "the same"
        text = f"{self.before or 'no commit'} → {self.after or 'no commit'}"
        if self.note:
            return f"{text}: {self.note}"
        added, removed = (
            sum(numbers) for numbers in ([f[1] for f in self.files], [f[2] for f in self.files])
        )
        names = ", ".join(file[0] for file in self.files[:3])
        more = ", ..." if len(self.files) > 3 else ""
        return (
            f"{text}: {_count(len(self.commits), 'commit')}, {_count(len(self.files), 'file')} "
            f"+{added} -{removed} ({names}{more})"
        )


@dataclass(frozen=True)
class Difference:
    """The differences between two runs."""

    first: StoredRun
    second: StoredRun
    config: list[Change] = field(default_factory=list)
    code: CodeDifference = field(default_factory=lambda: CodeDifference(True, "", ""))
    environment: list[Change] = field(default_factory=list)
    command: list[Change] = field(default_factory=list)
    metrics: list[Change] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether configuration and code are the same."""
        return not self.config and self.code.same

    def lines(self) -> list[tuple[str, str]]:
        """One line for each kind of difference: its title and text."""
        parts = {
            "environment": self.environment,
            "command": self.command,
            "metrics": self.metrics,
        }
        listed = [(title, _listed(changes)) for title, changes in parts.items()]
        return [("config", _listed(self.config)), ("code", str(self.code)), *listed]

    def __str__(self) -> str:
        return "\n".join(f"{title:<12} {text}" for title, text in self.lines())

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values."""
        changes = {
            name: [
                {"key": change.key, "before": change.before, "after": change.after}
                for change in getattr(self, name)
            ]
            for name in ("config", "environment", "command", "metrics")
        }
        code = {
            "same": self.code.same,
            "before": self.code.before,
            "after": self.code.after,
            "commits": list(self.code.commits),
            "files": [{"path": p, "added": a, "removed": r} for p, a, r in self.code.files],
            "note": self.code.note,
        }
        return {"first": self.first.id, "second": self.second.id, **changes, "code": code}


def difference(first: StoredRun, second: StoredRun) -> Difference:
    """The differences between two runs; see `Run.diff`."""
    return Difference(
        first,
        second,
        config=_changes(first.settings, second.settings),
        code=_code(first, second),
        environment=_changes(_environment(first), _environment(second)),
        command=_changes(_command(first), _command(second)),
        metrics=_metrics(first, second),
    )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    keys = dict.fromkeys([*before, *after])
    return [
        Change(key, before.get(key), after.get(key))
        for key in keys
        if before.get(key, _MISSING) != after.get(key, _MISSING)
    ]


def _environment(run: StoredRun) -> dict[str, Any]:
    recorded = {
        key.removeprefix("versions."): value
        for key, value in dotted(run.environment).items()
        if not key.startswith(_NOT_COMPARED)
    }
    launch = run.launches[-1] if run.launches else {}
    known = {**recorded, "world_size": launch.get("world_size")}
    return known | {name: version for name, version in run.packages.items() if name not in known}


def _command(run: StoredRun) -> dict[str, Any]:
    """The script and its interpreter: what the flags say is in the configuration."""
    argv = run.launches[0].get("argv") if run.launches else None
    parts = split_command([str(word) for word in argv]) if isinstance(argv, list) else None
    if parts is None:
        return {}
    return {"script": parts.script, "python": " ".join(parts.python)}


def _metrics(first: StoredRun, second: StoredRun) -> list[Change]:
    best = [dotted(run.best or {}) for run in (first, second)]
    changes = _changes(*best)
    # what the runs are judged by comes first
    changes.sort(key=lambda change: change.key != second.monitor)
    texts = [duration_text(run.duration) for run in (first, second)]
    if texts[0] != texts[1]:
        changes.append(Change("time", *texts))
    if first.status != second.status:
        changes.insert(0, Change("status", first.status, second.status))
    return changes


def _code(first: StoredRun, second: StoredRun) -> CodeDifference:
    shown = _shown(first), _shown(second)
    if first.experiment_id == second.experiment_id:
        return CodeDifference(True, *shown)
    try:
        return _compared(first, second, find_repository(second))
    except (RunError, GitError, OSError) as error:
        return CodeDifference(False, *shown, note=str(error))


def _compared(first: StoredRun, second: StoredRun, repository: Repository) -> CodeDifference:
    old, new = str(first.commit), str(second.commit)
    commits = list(commits_between(repository, old, new))
    commits += [f"-{line}" for line in commits_between(repository, new, old)]
    with WorkingTree.of(repository) as tree:
        trees = recorded_tree(tree, first), recorded_tree(tree, second)
        numbers = tree.run("diff-tree", "-r", "-M", "--numstat", *trees).decode("utf-8", "replace")
        patch = tree.run("diff-tree", "-r", "-M", "-p", *trees).decode("utf-8", "replace")
    rows = [line.split("\t", 2) for line in numbers.splitlines()]
    files = tuple((row[2], _lines(row[0]), _lines(row[1])) for row in rows if len(row) == 3)
    return CodeDifference(False, _shown(first), _shown(second), tuple(commits), files, patch)


def _lines(text: str) -> int:
    return int(text) if text.isdigit() else 0  # git writes "-" for a binary file


def _shown(run: StoredRun) -> str:
    return f"{(run.commit or '')[:8]}{'*' if run.dirty else ''}"


def _listed(changes: list[Change]) -> str:
    shown = [str(change) for change in changes[:_MOST_SHOWN]]
    if len(changes) > len(shown):
        shown.append(f"and {len(changes) - len(shown)} more (--json has all)")
    return " · ".join(shown) or "the same"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
