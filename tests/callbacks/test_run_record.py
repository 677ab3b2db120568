from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.logging import Logging
from danling.callbacks.run_directory import RunDirectory
from danling.callbacks.run_record import RunRecord
from danling.config.config import Config
from danling.testing import CallbackContract


def record_of(runner) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((runner.dir / "run.json").read_text())
    return record


def test_the_record_tells_what_ran(make_runner):
    runner = make_runner([RunDirectory(), RunRecord()])

    runner.train()

    record = record_of(runner)
    assert record["status"] == "finished"
    for name in ("name", "id", "run_id", "experiment_id"):
        assert record[name] == getattr(runner, name)
    assert record["uuid"] == str(runner.uuid)
    (launch,) = record["launches"]
    assert launch["pid"] == os.getpid()
    assert (launch["start_step"], launch["end_step"]) == (0, 12)
    assert launch["start_time"] <= launch["end_time"] == record["ended"]
    assert record["environment"]["versions"]["torch"]


def test_it_is_running_while_it_runs(make_runner):
    seen: list[dict[str, Any]] = []
    look = LambdaCallback(on_train_start=lambda runner: seen.append(record_of(runner)))

    make_runner([RunDirectory(), RunRecord(), look]).train()

    assert seen[0]["status"] == "running"
    assert seen[0]["launches"][0]["end_time"] is None


def test_a_stop_is_recorded_with_its_reason(make_runner):
    stop = LambdaCallback(on_step=lambda runner: runner.stop("enough"))
    runner = make_runner([RunDirectory(), RunRecord(), stop])

    runner.train()

    record = record_of(runner)
    assert (record["status"], record["reason"]) == ("stopped", "enough")


@pytest.mark.parametrize("hook", ["on_setup", "on_step", "on_epoch_end", "on_train_end"])
def test_a_failure_is_recorded_with_its_error(make_runner, hook: str):
    def fail(runner):
        raise ValueError("boom")

    hooks: dict[str, Any] = {hook: fail}
    runner = make_runner([RunDirectory(), RunRecord(), LambdaCallback(**hooks)])
    with pytest.raises(ValueError, match="boom"):
        runner.train()

    record = record_of(runner)
    assert (record["status"], record["reason"]) == ("failed", "ValueError: boom")


def test_every_launch_has_an_entry(make_runner):
    runner = make_runner([RunDirectory(), RunRecord()], max_epochs=1)
    runner.train()
    uuid = record_of(runner)["uuid"]

    runner.config.max_epochs = 2
    runner.train()

    record = record_of(runner)
    steps = [(launch["start_step"], launch["end_step"]) for launch in record["launches"]]
    assert steps == [(0, 6), (6, 12)]
    assert record["uuid"] == uuid


def test_the_configuration_can_be_run_again(make_runner):
    runner = make_runner([RunDirectory(), RunRecord()], optim={"lr": 1e-3})
    runner.train()

    text = (runner.dir / "runner.yaml").read_text()
    again = Config.parse(["--config", str(runner.dir / "runner.yaml")])

    assert again.semantic() == runner.config.semantic()
    assert "global_step" not in text
    assert "uuid" not in text


def test_packages_are_listed(make_runner):
    runner = make_runner([RunDirectory(), RunRecord()])

    runner.train()

    packages = json.loads((runner.dir / "metadata" / "packages.json").read_text())
    assert "torch" in packages


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, and a main script in it."""
    git("init", "--quiet")
    (tmp_path / "train.py").write_text("import model\n")
    (tmp_path / "model.py").write_text("width = 1\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "start")
    monkeypatch.setattr(
        sys.modules["__main__"], "__file__", str(tmp_path / "train.py"), raising=False
    )
    return tmp_path


def test_uncommitted_code_is_in_a_patch_that_restores_it(make_runner, project: Path):
    (project / "model.py").write_text("width = 2\n")
    (project / "new.py").write_text("depth = 3\n")
    runner = make_runner([RunDirectory(), RunRecord()])

    runner.train()

    code = record_of(runner)["code"]
    restored = project / "restored"
    assert (code["commit"], code["dirty"]) == (git("rev-parse", "HEAD"), True)
    git("worktree", "add", "--quiet", str(restored), code["commit"])
    git("-C", str(restored), "apply", str(runner.dir / "metadata" / "code.patch"))
    assert (restored / "model.py").read_text() == "width = 2\n"
    assert (restored / "new.py").read_text() == "depth = 3\n"


def test_committed_code_has_no_patch(make_runner, project: Path):
    runner = make_runner([RunDirectory(), RunRecord()])

    runner.train()

    assert record_of(runner)["code"]["dirty"] is False
    assert not (runner.dir / "metadata" / "code.patch").exists()


def test_a_launch_of_other_code_says_so_and_has_its_own_patch(
    make_runner, project: Path, capfd: pytest.CaptureFixture[str]
):
    (project / "model.py").write_text("width = 2\n")
    first = make_runner([RunDirectory(), RunRecord()])
    first.train()
    patch = (first.dir / "metadata" / "code.patch").read_bytes()
    (project / "model.py").write_text("width = 3\n")

    again = make_runner([RunDirectory(), Logging(), RunRecord()], resume=str(first.dir))
    again.train()

    record, metadata = record_of(again), again.dir / "metadata"
    assert again.dir == first.dir
    assert record["code"]["tree"] != record["launches"][1]["code"]["tree"]
    assert (metadata / "code.patch").read_bytes() == patch
    assert b"+width = 3" in (metadata / "code-2.patch").read_bytes()
    assert "the code has changed since the run began" in capfd.readouterr().err


def test_a_second_training_of_the_same_code_has_no_second_patch(make_runner, project: Path):
    (project / "model.py").write_text("width = 2\n")
    runner = make_runner([RunDirectory(), RunRecord()], max_epochs=1)
    runner.train()

    runner.config.max_epochs = 2
    runner.train()

    assert sorted(path.name for path in (runner.dir / "metadata").glob("*.patch")) == ["code.patch"]


def test_what_cannot_be_written_is_a_warning(make_runner, capfd: pytest.CaptureFixture[str]):
    in_the_way = LambdaCallback(on_setup=lambda runner: (runner.dir / "runner.yaml").mkdir())
    in_the_way.priority = 0  # after RunDirectory, before RunRecord
    runner = make_runner([RunDirectory(), Logging(), in_the_way, RunRecord()])

    runner.train()

    assert record_of(runner)["status"] == "finished"
    assert "writing the record of the run failed" in capfd.readouterr().err


def test_without_a_directory_there_is_no_record(make_runner, tmp_path: Path):
    make_runner([RunRecord()]).train()

    assert list(tmp_path.iterdir()) == []


def test_it_takes_no_time(make_runner):
    times: list[float] = []
    clock = LambdaCallback(
        on_setup=lambda runner: times.append(time.perf_counter()),
        on_train_start=lambda runner: times.append(time.perf_counter()),
    )
    clock.priority = 1

    make_runner([RunDirectory(), clock, RunRecord()]).train()

    assert times[1] - times[0] < 0.3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_the_configuration_which_may_hold_secrets_is_its_owner_s_alone(make_runner):
    runner = make_runner([RunDirectory(), RunRecord()], db={"password": "hunter2"})

    runner.train()

    assert runner.paths.runner_yaml.stat().st_mode & 0o777 == 0o600
    assert "hunter2" in runner.paths.runner_yaml.read_text()


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return RunRecord()
