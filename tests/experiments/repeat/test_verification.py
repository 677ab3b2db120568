from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import danling as dl
from danling.experiments import Run
from danling.experiments.repeat.verification import verify

TRAIN = """\
from danling.testing import TinyRunner

TinyRunner({"max_epochs": 2}, default_callbacks=True).train()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "train.py").write_text(TRAIN)
    for command in (["init", "-q"], ["add", "train.py"], ["commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    subprocess.run(["cp", "-a", str(made), str(folder)], check=True)
    monkeypatch.chdir(folder)
    return folder


def bad(project: Path) -> list[str]:
    return [finding.text for finding in verify(dl.runs(project)[0]) if not finding.ok]


def test_a_run_that_nobody_touched_is_clean(project: Path):
    findings = verify(dl.runs(project)[0])

    assert all(finding.ok for finding in findings)
    assert {f.subject for f in findings} == {
        *("record", "ids", "config", "files", "checkpoint", "code")
    }


def test_any_byte_of_run_json_counts(project: Path):
    record = dl.runs(project)[0].path / "run.json"
    content = record.read_bytes()
    places = range(0, len(content), max(len(content) // 25, 1))
    unseen = []
    for place in places:
        changed = bytes([content[place] ^ 1])
        record.write_bytes(content[:place] + changed + content[place + 1 :])
        runs = dl.runs(project)
        if len(runs) and all(finding.ok for finding in verify(runs[0])):
            unseen.append(place)

    assert len(places) >= 25
    assert unseen == []


def cut(run: Run, name: str) -> None:
    path = run.path / name
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE: dict[str, tuple[Callable[[Run], object], str]] = {
    "results": (lambda run: cut(run, "results.json"), "results.json: "),
    "metrics": (
        lambda run: run.paths.metrics.write_text("{]\n"),
        "metrics.jsonl: 1 lines are not valid JSON",
    ),
    "latest": (
        lambda run: run.paths.latest.write_text(json.dumps({**(run.latest or {}), "epoch": 9})),
        "latest.json is not the last of results.json",
    ),
    "checkpoint": (lambda run: cut(run, "checkpoints/previous.pth"), "previous.pth"),
    "config": (
        lambda run: run.paths.runner_yaml.write_text(
            run.paths.runner_yaml.read_text().replace("max_epochs: 2", "max_epochs: 3")
        ),
        "max_epochs is 3 in runner.yaml and 2 in run.json",
    ),
    "name": (
        lambda run: run.path.rename(run.path.with_name("tiny-run-aaaaaaaa-bbbbbbbb-cccccccc")),
        "the directory is named",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_has_changed_is_named(project: Path, kind: str):
    damage, message = DAMAGE[kind]
    damage(dl.runs(project)[0])

    assert any(message in text for text in bad(project))


def test_a_record_of_before_the_digest_is_no_problem(project: Path):
    record = dl.runs(project)[0].path / "run.json"
    content = json.loads(record.read_text())
    del content["digest"]
    record.write_text(json.dumps(content))

    assert bad(project) == []
