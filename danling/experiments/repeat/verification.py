"""Whether a run is what it says: its ids, its files, its checkpoints, its code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from danling.errors import CheckpointError, ConfigError, RunError
from danling.experiments.reading import read_json, read_settings
from danling.experiments.repeat.code import code_problem, find_repository
from danling.experiments.run import Run
from danling.files.json import dotted, dumps
from danling.identity import ids
from danling.identity.code import Code
from danling.identity.git import GitError
from danling.identity.worktree import WorkingTree
from danling.run.record import record_digest

__all__ = ["Finding", "verify"]


_PROGRESS = ("results.json", "latest.json", "best.json")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    """record, ids, config, files, checkpoint or code."""
    ok: bool
    text: str


def verify(run: Run) -> list[Finding]:
    """Recompute the ids of a run, and check every file, every checkpoint and the code.

    It reads all checkpoints from the first byte to the last, and loads torch.
    """
    findings: list[Finding] = []
    for check in (_record, _ids, _config, _files, _checkpoints, _code):
        findings += check(run)
    return findings


def _record(run: Run) -> Iterator[Finding]:
    """Whether run.json is what DanLing has written, byte for byte; older ones do not tell."""
    digest = run.record.get("digest")
    if digest is None:
        return
    try:
        written = run.paths.run_json.read_bytes()
    except OSError as error:
        yield Finding("record", False, f"run.json: {error.strerror}")
        return
    expected = (dumps(run.record, indent=2) + "\n").encode()
    if digest != record_digest(run.record) or written != expected:
        yield Finding("record", False, "run.json: its content is not what was written")
    else:
        yield Finding("record", True, "run.json is as it was written")


def _ids(run: Run) -> Iterator[Finding]:
    record = run.record
    problems = []
    try:
        known = {key: record["code"][key] for key in Code.__dataclass_fields__}
        code = Code(**{**known, "extra": tuple(known["extra"])})
        experiment = UUID(record["experiment_uuid"])
        if ids.experiment_uuid(code) != experiment:
            problems.append("experiment_uuid is not that of the recorded code")
        expected = ids.run_uuid(experiment, record["hash_inputs"])
        if expected != UUID(record["run_uuid"]):
            problems.append("run_uuid is not that of the recorded code and configuration")
        problems += [
            f"{name}_id is not the hex of {name}_uuid"
            for name in ("experiment", "run")
            if UUID(record[f"{name}_uuid"]).hex != record[f"{name}_id"]
        ]
        if record["id"] != run.id:
            problems.append(f"id is {record['id']!r}, and its parts give {run.id!r}")
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        problems.append(f"the ids cannot be computed: {type(error).__name__} {error}")
    if not run.path.name.endswith(run.id):
        problems.append(f"the directory is named {run.path.name!r}, and the id is {run.id}")
    yield from (Finding("ids", False, f"run.json: {problem}") for problem in problems)
    if not problems:
        yield Finding("ids", True, "the ids are those of the recorded code and configuration")


def _config(run: Run) -> Iterator[Finding]:
    try:
        written = dotted(read_settings(run.paths.runner_yaml))
    except (ConfigError, OSError) as error:
        yield Finding("config", False, f"runner.yaml: {error}")
        return
    drifted = [
        f"{key} is {written[key]!r} in runner.yaml and {value!r} in run.json"
        for key, value in run.settings.items()
        if key in written and written[key] != value and value is not None
    ]
    yield from (Finding("config", False, problem) for problem in drifted)
    if not drifted:
        yield Finding("config", True, "runner.yaml and run.json agree")


def _files(run: Run) -> Iterator[Finding]:
    problems = []
    for name in _PROGRESS:
        try:
            read_json(run.path / name)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error}")
    problems += _metrics_problems(run)
    problems += _consistency(run)
    yield from (Finding("files", False, problem) for problem in problems)
    if not problems:
        yield Finding("files", True, "results and metrics can be read and agree")


def _metrics_problems(run: Run) -> list[str]:
    try:
        with open(run.paths.metrics, "rb") as file:
            # a half line at the end is of a process that was killed
            broken = sum(line.endswith(b"\n") and not _is_json(line) for line in file)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"metrics.jsonl: {error.strerror}"]
    return [f"metrics.jsonl: {broken} lines are not valid JSON"] if broken else []


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _consistency(run: Run) -> list[str]:
    problems = []
    if run.latest is not None and run.results and run.latest != run.results[-1]:
        problems.append("latest.json is not the last of results.json")
    if run.best is not None and run.results and not any(run.best == r for r in run.results):
        problems.append("best.json is not one of results.json")
    return problems


def _checkpoints(run: Run) -> Iterator[Finding]:
    from danling.checkpoint.reading import read_checkpoint

    files = run.checkpoints
    uuid = str(UUID(run.uuid)) if len(run.uuid) == 32 else run.uuid
    checked: dict[tuple[int, int], str | None] = {}
    for file in files:
        status = os.stat(file.path) if file.path.exists() else None
        key = (status.st_dev, status.st_ino) if status else (0, 0)
        if key not in checked:  # `best` and `latest` may be one file
            checked[key] = None
            try:
                read_checkpoint(file.path, run=uuid, whole=False)
            except CheckpointError as error:
                checked[key] = str(error)
        problem = checked[key]
        text = problem or f"{file.name}: epoch {file.epoch}, step {file.global_step}, intact"
        yield Finding("checkpoint", problem is None, text)
    for path in sorted(run.path.glob("*/*.corrupt-*")):
        yield Finding("checkpoint", False, f"{path.name} was found damaged before")


def _code(run: Run) -> Iterator[Finding]:
    yield from _code_of(run, run.code)


def _code_of(run: Run, code: Any) -> Iterator[Finding]:
    if code.get("partial"):
        yield Finding("code", False, "the code could not be read in time when the run began")
    try:
        with WorkingTree.of(find_repository(run)) as tree:
            problem = code_problem(tree, run)
    except (RunError, GitError, OSError) as error:
        yield Finding("code", False, f"the code cannot be had again: {error}")
        return
    commit = f"commit {str(run.commit)[:12]}"
    text = f"{commit} and {problem}" if problem else f"{commit} and patch give the code"
    yield Finding("code", problem is None, text)
