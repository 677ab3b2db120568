"""Columns: what can be shown, filtered and sorted by, under one name everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from danling.errors import ConfigError, did_you_mean
from danling.experiments.stored import StoredRun

__all__ = ["FIELDS", "Column", "column", "differing_settings", "known_columns"]


Column = Callable[[StoredRun], Any]
"""Gives the value of a run, or None."""

FIELDS: Mapping[str, Column] = {
    "id": lambda run: run.id,
    "uuid": lambda run: run.uuid,
    "run_id": lambda run: run.run_id,
    "experiment_id": lambda run: run.experiment_id,
    "name": lambda run: run.name,
    "status": lambda run: run.status,
    "reason": lambda run: run.reason,
    "age": lambda run: run.age,
    "time": lambda run: run.duration,
    "created": lambda run: run.record.get("created"),
    "started": lambda run: run.record.get("started"),
    "ended": lambda run: run.record.get("ended"),
    "seed": lambda run: run.seed,
    "score": lambda run: run.score,
    "epoch": lambda run: (run.latest or {}).get("epoch"),
    "global_step": lambda run: (run.latest or {}).get("global_step"),
    "commit": lambda run: run.commit,
    "branch": lambda run: run.code.get("branch"),
    "dirty": lambda run: run.dirty,
    "host": lambda run: run.environment.get("host"),
    "launches": lambda run: len(run.launches),
    "tags": lambda run: list(run.tags),
    "notes": lambda run: " | ".join(note.text for note in run.notes),
    "size": lambda run: run.size,
    "path": lambda run: str(run.path),
}
"""The columns that every run has."""

_RESULTS: Mapping[str, Column] = {"best": lambda run: run.best, "latest": lambda run: run.latest}


def column(runs: Iterable[StoredRun], name: str) -> Column:
    """The column of a name.

    In this order a name is a field of every run (`status`), a value of a result
    (`best.val.loss`, `latest.val.loss`), a key of the configuration (`optim.lr`), and a value of
    the best result (`val.loss`). `config.name` is the key `name` of the configuration.

    Args:
        runs: The runs that are asked; a name that none of them knows is wrong.
        name: The name of the column; `val/loss` is `val.loss`.

    Raises:
        ConfigError: There is no such column; the message has the nearest.
    """
    if name in FIELDS:
        return FIELDS[name]
    runs = list(runs)
    if not runs:
        return lambda run: None
    key = name.replace("/", ".")
    for candidate in _candidates(key):
        if any(candidate(run) is not _MISSING for run in runs):
            return lambda run: _plain(candidate(run))
    raise ConfigError(f"no run has {name!r}: {_hint(name, runs)}")


def known_columns(runs: Sequence[StoredRun]) -> list[str]:
    """The names of all columns of some runs."""
    names = dict.fromkeys(FIELDS)
    for run in runs:
        names |= dict.fromkeys(run.settings)
        for kind, result_of in _RESULTS.items():
            for name in _leaves(result_of(run)):
                names |= dict.fromkeys([name, f"{kind}.{name}"] if "." in name else [])
    return list(names)


def differing_settings(runs: Sequence[StoredRun]) -> list[str]:
    """The keys of the configuration that have more than one value in some runs."""
    first: dict[str, Any] = {}
    differing: dict[str, None] = {}
    for count, run in enumerate(runs):
        settings = run.settings
        for key, value in settings.items():
            if key not in first and not count:
                first[key] = value
            elif key not in first or first[key] != value:
                differing[key] = None
        if settings.keys() != first.keys():
            differing |= dict.fromkeys(key for key in first if key not in settings)
    return list(differing)


_MISSING = object()


def _candidates(key: str) -> list[Column]:
    head, _, rest = key.partition(".")
    if head in _RESULTS and rest:
        return [lambda run: _nested(_RESULTS[head](run), rest)]
    if head == "config" and rest:
        return [lambda run: run.all_settings.get(rest, _MISSING)]
    return [
        lambda run: run.settings.get(key, _MISSING),
        lambda run: _nested(run.best, key),
        lambda run: _nested(run.latest, key),
        lambda run: run.all_settings.get(key, _MISSING),
    ]


def _nested(value: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return _MISSING if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    return None if value is _MISSING else value


def _leaves(value: Any, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix[:-1]] if prefix else []
    return [name for key, item in value.items() for name in _leaves(item, f"{prefix}{key}.")]


def _hint(name: str, runs: Sequence[StoredRun]) -> str:
    known = known_columns(runs)
    inside = sorted(key for key in known if key.startswith(f"{name}."))
    if inside:
        return f"it is a group, of {', '.join(inside[:6])}"
    near = did_you_mean(name, known)
    if not near.startswith("valid are"):
        return near
    last = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    return did_you_mean(name, last) if last else "`danling ls --keys` lists what there is"
