"""Which run `resume="auto"` and a path take, whatever lies around, and what a refusal leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from danling.callbacks import CSVLogger, EarlyStopping, Preemption, ProgressBar, TensorBoard
from danling.config import Config
from danling.errors import DanLingError, ResumeError, RunLockedError
from danling.run.lock import DirectoryLock
from danling.run.search import find_runs
from tests.identity.test_git import fake_git
from tests.support.resume_runs import (
    STEPS,
    interrupted,
    log,
    make_runner,
    record,
    trained,
    tree,
    weights,
)

# The surroundings of the same command


def a_slow_git(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_git(project.parent / "bin", 'sleep 0.4\nexec "$real" "$@"')
    monkeypatch.setenv("PATH", path)  # of eight questions: longer than the two seconds of a notice


def a_script_beside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "plot.py").write_text("print('unrelated')\n")


def output_of_the_scheduler(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "slurm-17.out").write_text("epoch 0\n")


def an_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = project / ".v" / "lib" / "python3.11" / "site-packages"
    library.mkdir(parents=True)
    (library / "module.py").write_text("x = 1\n")


@pytest.mark.parametrize(
    "change", [a_slow_git, a_script_beside, output_of_the_scheduler, an_environment]
)
def test_auto_finds_its_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., None]
):
    first = interrupted(9, resume="auto")
    change(project, monkeypatch)

    again = trained(resume="auto")

    assert again.dir == first.dir
    assert again.resume_report is not None
    assert (again.resume_report["exact"], again.resume_report["reasons"]) == (True, [])
    assert again.global_step == 2 * STEPS


def test_auto_finds_its_run_while_another_process_grows_a_log_in_the_repository(project: Path):
    grow = "import sys\nwhile True: sys.stdout.write('epoch\\n' * 100); sys.stdout.flush()"
    with open(project / "other.log", "w") as output:
        growing = subprocess.Popen([sys.executable, "-c", grow], stdout=output)
    try:
        first = interrupted(9, resume="auto")
        again = trained(resume="auto")
    finally:
        growing.kill()
        growing.wait()

    assert (project / "other.log").stat().st_size > 0
    assert again.dir == first.dir
    assert record(again)["code"]["dirty"] is False


def test_auto_goes_on_with_a_run_that_its_time_budget_stopped(project: Path):
    first = trained([Preemption(max_time=1e-6)], resume="auto")
    second = trained([Preemption(max_time="1h")], resume="auto")
    third = trained(resume="auto")

    assert first.status == "stopped"
    assert first.global_step < 2 * STEPS
    assert second.dir == first.dir
    assert (second.status, second.global_step) == ("finished", 2 * STEPS)
    assert third.dir != first.dir
    assert weights(second) == weights(third)


def test_a_run_that_its_user_stopped_is_over(project: Path):
    first = make_runner(resume="auto")
    with first:
        for _ in first.epochs():
            for batch in first.batches("train"):
                first.step(first.train_step(batch))
            first.stop("good enough")

    assert trained(resume="auto").dir != first.dir


# Code that cannot be read


def test_auto_takes_the_run_of_the_same_name_and_configuration_where_code_cannot_be_read(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    first = interrupted(9, resume="auto")
    interrupted(9, resume="auto", max_grad_norm=0.5)
    monkeypatch.setenv("PATH", fake_git(project.parent / "bin", "sleep 60"))

    again = trained(resume="auto", code_timeout=0.3)

    assert again.dir == first.dir
    assert again.resume_report is not None
    assert not again.resume_report["exact"]
    (reason,) = again.resume_report["reasons"]
    assert reason.startswith("the code could not be read (git did not answer in time): ")
    assert record(again)["launches"][1]["code"]["partial"] is True


def test_runs_whose_code_could_not_be_read_share_no_id(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", fake_git(project.parent / "bin", "sleep 60"))

    first, second = (trained(code_timeout=0.3, max_steps=1) for _ in range(2))

    assert first.experiment_id != second.experiment_id
    assert first.run_id != second.run_id


# Another code, another configuration


def test_a_fresh_start_names_the_unfinished_run_of_other_code_and_how_to_take_it(project: Path):
    first = interrupted(9, resume="auto")
    (project / "train.py").write_text("lr = 0.2  # mended\n")

    second = trained(resume="auto")

    assert second.dir != first.dir
    assert (
        f"{first.dir} of the same name is unfinished (failed) and differs in the code: go on with "
        f"it with resume='{first.dir}' (on the command line --resume {first.dir})"
    ) in log(second).replace("experiments/", f"{first.dir.parent}/")
    assert trained(resume=str(first.dir)).global_step == 2 * STEPS


def test_a_fresh_start_names_the_unfinished_run_of_another_configuration(project: Path):
    first = interrupted(9, resume="auto")

    second = trained(resume="auto", dataloader={"batch_size": 2})

    assert f"{first.dir.name} of the same name is unfinished" in log(second)
    assert "differs in dataloader.batch_size (4 then, 2 now)" in log(second)


# Damaged runs


def flip(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "not JSON": lambda path: flip(path, b'"status"', b'"status\x00'),
    "another id": lambda path: flip(path, b'"run_id": "', b'"run_id": "0'),
    "another key": lambda path: flip(path, b'"launches"', b'"launchez"'),
    "not UTF-8": lambda path: flip(path, b"name", b"n\xffme"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("by", ["auto", "path"])
def test_a_run_without_a_usable_record_goes_on_and_is_named(damage: str, by: str):
    first = interrupted(9, resume="auto")
    DAMAGES[damage](first.dir / "run.json")

    again = trained(resume="auto" if by == "auto" else str(first.dir))

    assert (again.dir, again.uuid, again.id) == (first.dir, first.uuid, first.id)
    assert again.resume_report is not None
    assert again.resume_report["exact"]
    assert f"{first.dir.name}/run.json is damaged (" in log(again)
    assert weights(again) == weights(trained())
    assert record(again)["status"] == "finished"
    assert [run.path.name for run in find_runs("experiments")].count(first.dir.name) == 1
    assert (first.dir / "run.json.damaged").exists() == (damage != "deleted")


def test_the_ids_of_a_damaged_run_come_from_its_checkpoint_where_its_lock_is_lost_too():
    first = interrupted(9, resume="auto")
    (first.dir / "run.json").unlink()
    (first.dir / ".lock").write_text("")

    again = trained(resume="auto")

    assert (again.dir, again.uuid) == (first.dir, first.uuid)
    assert "with the ids from its newest checkpoint" in log(again)


def test_a_damaged_run_whose_ids_are_lost_is_refused_by_name_and_left_alone():
    first = interrupted(9, resume="auto")
    (first.dir / "run.json").write_text("{")
    (first.dir / ".lock").write_text("")
    for path in first.checkpoint_dir.iterdir():
        path.write_bytes(b"damaged")
    before = tree(first.dir)

    with pytest.raises(ResumeError, match=r"is damaged: run.json: ") as caught:
        trained(resume="auto")

    assert str(first.dir) in str(caught.value)
    assert tree(first.dir) == before
    assert len(list(Path("experiments").glob("danling-*"))) == 1


# Runs of others


def test_auto_refuses_the_run_of_another_user_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    first = interrupted(9, resume="auto")
    os.chown(first.dir, 4242, 4242)
    before = tree(first.dir)

    with pytest.raises(ResumeError, match=r"belongs to the user with the uid 4242"):
        trained(resume="auto")

    assert tree(first.dir) == before
    assert trained(resume=str(first.dir)).dir == first.dir


# A refusal


REFUSALS: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "batch size": {"dataloader": {"batch_size": 2}},
    "sizes of the model": {"model": nn.Linear(4, 1)},
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refused_start_changes_no_byte_of_the_run(reason: str):
    callbacks = [TensorBoard(), CSVLogger(), ProgressBar(), Preemption(), EarlyStopping()]
    first = interrupted(9, callbacks)
    (first.dir / ".0123456789abcdef0123456789abcdef.tmp").write_text("half")
    with open(first.log_path, "a") as file:
        file.write("half a line")
    before = tree(first.dir)
    again = [TensorBoard(), CSVLogger(), ProgressBar(), Preemption(), EarlyStopping()]

    with pytest.raises(DanLingError):
        trained(again, resume=str(first.dir), **REFUSALS[reason])

    assert tree(first.dir) == before
    runner = trained([TensorBoard(), CSVLogger()], resume=str(first.dir))
    assert runner.resume_report is not None
    assert "half a line\n" in log(runner)
    assert "going on in" in log(runner)


def test_a_start_that_finds_the_run_locked_changes_no_byte():
    first = interrupted(9)
    with DirectoryLock(first.dir):
        before = tree(first.dir)

        with pytest.raises(RunLockedError):
            trained(resume=str(first.dir))

        assert tree(first.dir) == before


# A run by its path goes on with its own configuration


def test_a_run_taken_by_its_path_keeps_what_it_was_started_with():
    first = interrupted(9, seed=3, max_grad_norm=0.5, resume="auto")

    config = Config.parse(["--resume", str(first.dir), "--max_epochs", "3"])
    longer = Config.parse(["--resume", str(first.checkpoint_dir / "latest.pth")])

    assert (config.seed, config.max_grad_norm, config.max_epochs) == (3, 0.5, 3)
    assert config.resume == str(first.dir)
    assert longer.to_dict() == config.to_dict() | {
        "max_epochs": 2,
        "resume": str(first.checkpoint_dir / "latest.pth"),
    }
    again = trained(**config)
    assert (again.dir, again.epoch) == (first.dir, 3)
    assert again.resume_report is not None
    assert again.resume_report["exact"]


def test_a_file_and_a_flag_come_before_what_the_run_was_started_with(tmp_path: Path):
    first = interrupted(9, seed=3, max_grad_norm=0.5)
    Config(max_grad_norm=0.7, max_grad_value=1.0).save(tmp_path / "more.yaml")
    flags = ["--config", str(tmp_path / "more.yaml"), "--max_grad_value", "2"]

    config = Config.parse(["--resume", str(first.dir), *flags])

    assert (config.seed, config.max_grad_norm, config.max_grad_value) == (3, 0.7, 2.0)


# Modules that come late


def test_a_module_that_is_imported_too_late_to_count_is_noted(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    (project / "late_helper.py").write_text("depth = 1\n")
    (project / "tracked_helper.py").write_text("depth = 1\n")
    (project / ".gitignore").write_text("experiments\n__pycache__\n")
    from tests.support.repositories import git

    git(project, "add", "tracked_helper.py", ".gitignore")
    git(project, "commit", "--quiet", "--message", "helper")
    monkeypatch.syspath_prepend(str(project))
    from danling.callbacks import LambdaCallback

    def late(runner: Any) -> None:
        import late_helper  # type: ignore[import-not-found]  # noqa: F401
        import tracked_helper  # type: ignore[import-not-found]  # noqa: F401

    try:
        runner = trained([LambdaCallback(name="late", on_epoch_start=late)])
    finally:
        for name in ("late_helper", "tracked_helper"):
            sys.modules.pop(name, None)

    assert record(runner)["launches"][0]["late_imports"] == ["late_helper.py"]
    assert "imported after the code of the run was read" in log(runner)


# Killed runs


def test_others_read_of_a_killed_run_that_it_was_killed(tmp_path: Path):
    if (pid := os.fork()) == 0:
        from danling.callbacks import LambdaCallback

        die = LambdaCallback(on_epoch_end=lambda runner: os.kill(os.getpid(), signal.SIGKILL))
        trained([die])
        os._exit(1)
    os.waitpid(pid, 0)

    (run,) = find_runs("experiments")

    assert run.data["status"] == "running"
    assert (run.status, run.unfinished) == ("killed", True)
