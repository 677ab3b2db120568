from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from danling.callbacks import RayTuneReport
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner

tune: Any = pytest.importorskip("ray.tune")
ray: Any = pytest.importorskip("ray")

ROOT = Path(__file__).resolve().parents[2]


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return RayTuneReport()


@pytest.fixture(autouse=True)
def signals_put_back():
    """Tune takes signals of the process for its own, and keeps them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with one worker."""
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def trainable(settings: dict[str, Any]) -> None:
    """What a worker of Ray does; it is sent there by value, so that it imports what it uses."""
    from danling.callbacks import RayTuneReport
    from danling.testing import TinyRunner

    runner = TinyRunner(
        {"project_root": settings["root"], "max_epochs": 3, "seed": settings["seed"]},
        callbacks=[RayTuneReport({"loss": "val/loss"}, checkpoint=True)],
        default_callbacks=True,
    )
    runner.train()


def tuned(folder: Path, seeds: Any, **options: Any) -> Any:
    tuner = tune.Tuner(
        trainable,
        param_space={"seed": seeds, "root": str(folder / "experiments")},
        run_config=tune.RunConfig(storage_path=str(folder / "ray"), verbose=0, **options),
    )
    return tuner.fit()


@pytest.mark.filterwarnings("ignore")
def test_trials_of_ray_hear_each_epoch_and_get_a_checkpoint(tmp_path, cluster):
    found = tuned(tmp_path, tune.grid_search([0, 1]))

    assert not found.errors
    assert len(found) == 2
    for trial in found:
        alone = TinyRunner({"max_epochs": 3, "seed": trial.config["seed"]})
        alone.train()
        reported = trial.metrics_dataframe
        assert reported["loss"].tolist() == [
            pytest.approx(result["val"]["loss"]) for result in alone.results
        ]
        assert reported["epoch"].tolist() == [1, 2, 3]
        assert (Path(trial.checkpoint.path) / "latest.pth").exists()


@pytest.mark.filterwarnings("ignore")
def test_ray_ends_a_trial_at_a_report(tmp_path, cluster):
    ended = tuned(tmp_path, 0, stop={"training_iteration": 2})

    assert not ended.errors
    assert ended[0].metrics["epoch"] == 2


def test_outside_of_a_trial_nothing_is_reported(caplog):
    caplog.set_level("INFO")
    runner = TinyRunner(callbacks=[RayTuneReport()])
    runner.train()

    assert "this is no trial of Ray Tune" in caplog.text
    assert runner.epoch == 2


def test_a_tag_that_is_in_no_result_is_an_error(monkeypatch):
    report = RayTuneReport(["val/los"])
    monkeypatch.setattr(report, "_trial", lambda: "trial")

    with pytest.raises(CallbackError, match="did you mean 'val/loss'"):
        TinyRunner(callbacks=[report]).train()
