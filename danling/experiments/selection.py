"""Words that select runs, the same for every command.

a1b2            the run of which one part of the id begins so
a1b2c3d4        all runs that have this as a whole part: of one code, or of one configuration
digits-mlp      the runs of this name; digits-* of names like it
experiments/x   the run in this directory
@1  @2          the newest, the one before
@best           the best one, by the runs' own monitor
@failed         those of this status; @killed, @running and so on
@all            all
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from danling.errors import DanLingError, RunDirectoryError, did_you_mean
from danling.experiments.ranking import ranked
from danling.experiments.run import Run
from danling.run.record import STATUSES

__all__ = ["SelectionError", "select", "select_one"]


_HEX = re.compile(r"[0-9a-f-]+", re.ASCII)
_PART = 8  # digits of a part of the short id
_MOST_CANDIDATES = 10


class SelectionError(DanLingError, LookupError):
    """A word selects no run, or more than one where one is meant.

    Attributes:
        candidates: The runs that it may mean; none where there is no such run.
    """

    def __init__(self, message: str, candidates: Iterable[Run] = ()) -> None:
        super().__init__(message)
        self.candidates = list(candidates)


def select(runs: Sequence[Run], words: Iterable[str]) -> list[Run]:
    """The runs that any of the words selects, in the order of the words, each once.

    Raises:
        SelectionError: A word selects no run, or is the beginning of several ids.
    """
    found: dict[Run, None] = {}
    for word in words:
        found |= dict.fromkeys(_of_word(runs, word))
    return list(found)


def select_one(runs: Sequence[Run], word: str) -> Run:
    """The one run that a word selects.

    Raises:
        SelectionError: It selects none, or more than one.
    """
    found = _of_word(runs, word)
    if len(found) > 1:
        raise _ambiguous(word, found)
    return found[0]


def _of_word(runs: Sequence[Run], word: str) -> Sequence[Run]:
    if word.startswith("@"):
        return _special(runs, word)
    for match in (_by_path, _by_name, _by_id):
        found = match(runs, word)
        if found:
            return found
    names = {run.name for run in runs}
    near = f"; {did_you_mean(word, names)}" if names else ""
    raise SelectionError(f"no run is selected by {word!r}{near} (danling ls lists the runs)")


def _special(runs: Sequence[Run], word: str) -> Sequence[Run]:
    name = word[1:]
    if name.isdigit():
        place = int(name)
        if not 1 <= place <= len(runs):
            raise SelectionError(
                f"there is no {word}: there are {len(runs)} runs, @1 is the newest"
            )
        return [runs[place - 1]]
    statuses = (*STATUSES, "killed")
    words: Mapping[str, Callable[[], Sequence[Run]]] = {
        "best": lambda: ranked(runs)[:1],
        "all": lambda: list(runs),
        **{status: partial(_of_status, runs, status) for status in statuses},
    }
    if name not in words:
        near = did_you_mean(word, [f"@{known}" for known in words])
        raise SelectionError(f"{word!r} selects nothing: {near}")
    found = words[name]()
    if not found:
        raise SelectionError(f"no run is selected by {word}")
    return found


def _of_status(runs: Sequence[Run], status: str) -> Sequence[Run]:
    return [run for run in runs if run.status == status]


def _by_path(runs: Sequence[Run], word: str) -> Sequence[Run]:
    if "/" not in word and not Path(word, "run.json").is_file():
        return []
    path = Path(word)
    known = [run for run in runs if run.path.resolve() == path.resolve()]
    if known or not path.is_dir():
        return known
    try:
        return [Run(path)]
    except RunDirectoryError as error:
        raise SelectionError(str(error)) from error


def _by_name(runs: Sequence[Run], word: str) -> Sequence[Run]:
    exact = [run for run in runs if word in (run.name, run.path.name)]
    if exact or not any(char in word for char in "*?["):
        return exact
    return [run for run in runs if fnmatchcase(run.name, word) or fnmatchcase(run.path.name, word)]


def _by_id(runs: Sequence[Run], word: str) -> Sequence[Run]:
    word = word.lower()
    if not _HEX.fullmatch(word):
        return []
    whole = [run for run in runs if word in _whole_parts(run)]
    if whole:
        return whole
    bare = word.replace("-", "")
    found = [
        run
        for run in runs
        if run.id.startswith(word)
        or any(part.startswith(bare) for part in (run.uuid, run.run_id, run.experiment_id))
    ]
    if len(found) > 1:
        raise _ambiguous(word, found)
    return found


def _whole_parts(run: Run) -> set[str]:
    parts = (run.experiment_id, run.run_id, run.uuid)
    return {run.id, *parts, *(part[:_PART] for part in parts)}


def _ambiguous(word: str, found: Sequence[Run]) -> SelectionError:
    shown = [f"  {run.id}  {run.name}  {run.status}" for run in found[:_MOST_CANDIDATES]]
    more = len(found) - len(shown)
    if more:
        shown.append(f"  and {more} more")
    message = f"{word!r} selects {len(found)} runs; take one of\n" + "\n".join(shown)
    return SelectionError(message, found)
