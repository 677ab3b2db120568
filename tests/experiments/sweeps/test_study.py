"""Sweeps whose configurations Optuna chooses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pytest

import danling as dl
from danling.errors import ConfigError
from danling.experiments.sweeps.study import Study, direction_of
from tests.support.sweeps import finish, kill_with_children, start, wait_for_lines

TRAIN = """\
import torch

import danling as dl
from danling.callbacks import OptunaPruning
from danling.testing import TinyRunner

class C(dl.Config):
    experiment_name = "tiny"
    seed = 0
    max_epochs = 3
    monitor = "val/height"
    monitor_mode = "max"
    dataloader = {"batch_size": 4}
    width: int = 1
    slope: float = 0.5

config = C.parse()
runner = TinyRunner(config, callbacks=[OptunaPruning()], default_callbacks=True)
runner.metrics["height"] = lambda output, target: torch.tensor(config.width * (1 - config.slope))
runner.train()
"""
FLAGS = ("--width", "1..8", "--slope", "0.0..1.0", "--seed", "0", "--optimize", "val/height")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(TRAIN)
    for command in (["init", "-q"], ["add", "train.py"], ["commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def trials(root: Path) -> list[Any]:
    (file,) = root.glob(".danling/sweeps/*/study.db")
    storage = f"sqlite:///{file}"
    (summary,) = optuna.get_all_study_summaries(storage)
    found: list[Any] = optuna.load_study(study_name=summary.study_name, storage=storage).trials
    return found


@pytest.mark.parametrize(
    ("metric", "mode", "direction"),
    [
        ("val/accuracy", None, "maximize"),
        ("val/loss", None, "minimize"),
        ("val/bits_per_letter", None, "minimize"),
        ("val/loss", "max", "maximize"),
        ("val/accuracy", "min", "minimize"),
    ],
)
def test_the_direction_is_that_of_the_name_or_the_mode(
    metric: str, mode: str | None, direction: str
):
    assert direction_of(metric, mode) == direction


def test_a_range_is_continuous_whole_numbers_are_ordered_and_words_are_choices(tmp_path: Path):
    axes = {
        "lr": ["1e-5..1e-1:log"],
        "width": ["1", "2", "3"],
        "kind": ["adam", "sgd"],
        "fixed": ["7"],
    }
    study = Study(axes, "val/loss", 3, direction="minimize", sampler="random")
    assert study.open(tmp_path) == 0

    jobs = [study.ask() for _ in range(4)]

    assert jobs[3] is None
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    stored = optuna.load_study(study_name=tmp_path.name, storage=storage).trials
    spaces = stored[0].distributions
    assert spaces["lr"] == optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)
    assert spaces["width"] == optuna.distributions.IntDistribution(1, 3)
    assert spaces["kind"] == optuna.distributions.CategoricalDistribution(["adam", "sgd"])
    assert "fixed" not in spaces
    for job, trial in zip(jobs[:3], stored, strict=True):
        assert job is not None
        assert job.configuration["fixed"] == "7"
        assert job.configuration["width"] == str(trial.params["width"])
        assert float(job.configuration["lr"]) == pytest.approx(trial.params["lr"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "tpee"}, "--sampler tpee: did you mean 'tpe'?"),
        ({"pruner": "medain"}, "--pruner medain: did you mean 'median'?"),
        ({"pruner": "threshold"}, "it needs arguments"),
    ],
)
def test_unknown_samplers_and_pruners_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        Study({}, "val/loss", 1, direction="minimize", **options)


def test_a_storage_that_cannot_be_opened_is_refused(tmp_path: Path):
    study = Study({"width": ["1", "2"]}, "val/loss", 1, direction="minimize")

    with pytest.raises(ConfigError, match="--storage nowhere:"):
        study.open(tmp_path, "nowhere://")


@pytest.mark.exhaustive
def test_goes_on_after_it_was_killed_as_if_nothing_had_been(project: Path):
    flags = (*FLAGS, "--trials", "3", "--random-seed", "3")
    process = start(project, *flags)
    wait_for_lines(process, "[2/3]")
    kill_with_children(process)
    begun = trials(project / "experiments")
    assert not begun[-1].state.is_finished()

    code, out, err = finish(project, *flags, "--json")

    assert code == 0, err
    assert f"it goes on after {len(begun)} trials" in err
    told = json.loads(out)["data"]
    found = trials(project / "experiments")
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 3
    assert told["best"]["value"] == max(trial.value for trial in found)
    assert len(dl.runs()) == len({tuple(trial.params.items()) for trial in found})
    assert {run.status for run in dl.runs()} == {"finished"}
    assert finish(project, "-C", "other", *flags)[0] == 0
    other = trials(project / "other")
    assert [trial.params for trial in found] == [trial.params for trial in other]
    assert [trial.value for trial in found] == [trial.value for trial in other]


@pytest.mark.exhaustive
def test_a_hopeless_trial_stops_its_run(project: Path):
    flags = (*FLAGS, "--trials", "6", "--sampler", "random", "--random-seed", "14")

    code, out, err = finish(project, *flags)

    assert code == 0, err
    found = trials(project / "experiments")
    pruned = [trial for trial in found if trial.state.name == "PRUNED"]
    assert pruned
    assert f"{len(pruned)} pruned" in out
    stopped = dl.runs().filter(status="stopped")
    assert len(stopped) == len(pruned)
    assert all(str(run.reason).startswith("the trial is pruned at epoch 1") for run in stopped)
    best = max(trial.value for trial in found if trial.state.name == "COMPLETE")
    assert dl.runs()["@best"].score == pytest.approx(best)
