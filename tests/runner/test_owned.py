"""Identity and directory, as a runner shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

import danling as dl


def make(root: Path, **config: object) -> dl.AccelerateRunner:
    return dl.AccelerateRunner({"seed": 0, "project_root": str(root), **config})


def test_without_a_directory_asking_for_it_says_who_makes_it(tmp_path: Path) -> None:
    runner = make(tmp_path)

    assert not runner.has_dir
    with pytest.raises(dl.DanLingError, match="RunDirectory makes it when the run opens"):
        _ = runner.dir


def test_ids_are_those_of_the_directory(tmp_path: Path) -> None:
    runner = make(tmp_path, experiment_name="digits", run_name="mlp")

    with runner:
        pass

    assert runner.dir.parent == tmp_path
    assert runner.dir.name == f"{runner.name}-{runner.id}"
    assert runner.name == "digits-mlp"
    parts = (runner.experiment_id, runner.run_id, runner.uuid.hex)
    assert runner.id == "-".join(part[:8] for part in parts)
    assert runner.checkpoint_dir == runner.dir / "checkpoints"
    assert runner.log_path.read_text()


def test_the_config_shows_the_state_of_the_run(tmp_path: Path) -> None:
    runner = make(tmp_path)

    with runner:
        assert runner.config.id == runner.id
        assert runner.config["run_uuid"] == str(runner.run_uuid)
        assert runner.config.epoch == 0


def test_the_directory_is_locked_while_the_run_is_open_and_free_after(tmp_path: Path) -> None:
    from danling.run.lock import is_locked

    runner = make(tmp_path)

    with runner:
        locked = is_locked(runner.dir)

    assert locked
    assert not is_locked(runner.dir)


def test_a_run_that_opens_again_keeps_its_directory(tmp_path: Path) -> None:
    runner = make(tmp_path)
    with runner:
        first = runner.dir

    with runner:
        second = runner.dir

    assert first == second


def test_a_name_that_would_leave_the_project_is_refused(tmp_path: Path) -> None:
    runner = make(tmp_path / "project", run_name="../../x")

    with pytest.raises(dl.DanLingError, match="run_name"), runner:
        pass

    assert not list(tmp_path.rglob("*x*"))


def test_a_directory_that_cannot_be_made_fails_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    runner = make(tmp_path / "file" / "experiments")

    with pytest.raises(dl.DanLingError, match="project_root"), runner:
        pass

    assert runner.global_step == 0
