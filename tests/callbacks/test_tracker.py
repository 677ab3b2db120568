"""Other trackers: the real ones where they are installed, and one that is out of order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import GeneralTracker
from PIL import Image

from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.results import Results
from danling.callbacks.run_directory import RunDirectory
from danling.callbacks.tracker import Tracker
from danling.run.metrics_file import read_metrics
from danling.testing import CallbackContract
from danling.trackers import GOES_ON
from tests.support.tracker_runs import READ, Shown

FAILED, FINISHED = {"failed", "FAILED"}, {"finished", "FINISHED"}


def points_of(directory: Path) -> list[Any]:
    """The points of `train/loss` in the record."""
    rows = [row for row in read_metrics(directory / "metrics.jsonl") if "train/loss" in row]
    return [[row["global_step"], pytest.approx(row["train/loss"])] for row in rows]


def in_a_process(*arguments: str, status: int = 0) -> str:
    quiet = {"WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    here = {"TRACKIO_DIR": "trackio", "COMET_OFFLINE_DIRECTORY": "comet", "HOME": "home"}
    here |= {"CLEARML_CACHE_DIR": "clearml"}
    places = {name: os.path.abspath(folder) for name, folder in here.items()}
    for place in places.values():
        os.makedirs(place, exist_ok=True)
    # files: a tracker's own process may outlive a killed one, and would hold a pipe open; the pipe
    # that there is tells when the last process that was forked there is gone
    end, held = os.pipe()
    with open("out", "w+") as out, open("err", "w+") as err, os.fdopen(end) as last:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.support.tracker_runs", *arguments],
            stdout=out,
            stderr=err,
            pass_fds=[held],
            timeout=180,
            env=os.environ | quiet | places | {"CLEARML_OFFLINE_MODE": "1"},
        )
        os.close(held)
        last.read()
    assert ended.returncode == status, Path("err").read_text()
    return Path("out").read_text()


def read(kind: str) -> Shown:
    return Shown(**json.loads(in_a_process("read", kind).splitlines()[-1]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", sorted(READ))
def test_a_tracker_shows_a_run_that_failed_and_was_resumed(kind: str):
    pytest.importorskip(kind, reason=f"needs {kind}")

    in_a_process("train", kind)
    then = read(kind)
    [directory] = Path("experiments").glob("tiny-*")
    in_a_process("train", kind, str(directory))
    shown = read(kind)

    expected = points_of(directory)
    assert len(expected) == 8
    assert then.status in FAILED
    assert then.points == expected[:4]
    assert shown.status in FINISHED
    assert shown.points == expected
    # Comet puts a new archive in the place of the old one: with all points, without old pictures
    assert shown.images == (2 if kind == "comet_ml" else 4)
    assert str(shown.params["optim.betas"]) == "[0.9, 0.99]"
    assert str(shown.params["max_epochs"]) in {"4", "4.0"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", sorted(GOES_ON))
def test_a_killed_run_that_goes_on_is_one_run_with_each_point_once(kind: str):
    pytest.importorskip(kind, reason=f"needs {kind}")

    in_a_process("kill", kind, status=-signal.SIGKILL)
    [directory] = Path("experiments").glob("tiny-*")
    in_a_process("train", kind, str(directory))
    shown = read(kind)

    assert shown.runs == 1
    assert shown.points == points_of(directory)
    assert [step for step, _ in shown.points] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert shown.status in FINISHED
    best = json.loads((directory / "best.json").read_text())
    assert shown.best == pytest.approx(best["val"]["loss"])
    assert str(shown.params["optim.betas"]) == "[0.9, 0.99]"
    assert version(kind) == GOES_ON[kind], "write the version that was seen to work into GOES_ON"


class Remote(GeneralTracker):  # type: ignore[misc]  # Accelerate has no types
    """A tracker on a server that is away for some of the calls."""

    name = "remote"
    requires_logging_directory = False

    def __init__(self, *outages: range, refused: str = "") -> None:
        super().__init__()
        self.outages = outages
        self.refused = refused
        self.calls = 0
        self.config: dict[str, Any] = {}
        self.steps: list[int] = []
        self.best: list[tuple[int, dict[str, float]]] = []
        self.is_finished = False

    @property
    def tracker(self) -> None:
        return None

    def call(self) -> None:
        self.calls += 1
        if any(self.calls in outage for outage in self.outages):
            raise ConnectionError("no route to host")

    def start(self) -> None:
        self.call()

    def store_init_configuration(self, values: dict) -> None:
        self.config = values

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        if best := {tag: value for tag, value in values.items() if tag.startswith("best/")}:
            self.best.append((step or 0, best))
            return
        self.call()
        if self.refused in values:
            raise ValueError(f"{self.refused} is no name")
        self.steps.append(step or 0)

    def finish(self) -> None:
        self.call()
        self.is_finished = True


class Gallery(Remote):
    """One that shows images, too."""

    def __init__(self, *outages: range) -> None:
        super().__init__(*outages)
        self.shown: list[tuple[str, tuple[int, int], int | None]] = []

    def log_images(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        self.call()
        self.shown += [
            (tag, image.size, step) for tag, images in values.items() for image in images
        ]


class Figure:
    def savefig(self, file: Any, format: str) -> None:
        Image.new("RGB", (7, 6), "red").save(file, format)


def show_pictures(runner: Any) -> None:
    runner.log_image("samples", torch.rand(3, 4, 5))
    runner.log_figure("curve", Figure())


class TestTracker(CallbackContract):
    default_callbacks = True

    def make(self) -> Tracker:
        return Tracker(Remote())


@pytest.fixture
def at_once(monkeypatch):
    """The tracker is tried again without a delay."""
    monkeypatch.setattr("danling.callbacks.tracker._FIRST_DELAY", 0.0)


def messages_of(caplog) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if "tracker_remote" in record.msg % record.args
    ]


def train(make_runner, tracker: Tracker, *callbacks: Any, **config: Any) -> Any:
    runner = make_runner([RunDirectory(), Results(), tracker, *callbacks], **config)
    runner.train()
    return runner


def test_it_gets_the_configuration_and_every_row(make_runner):
    remote = Remote()

    optim = {"lr": 0.1, "betas": [0.9, 0.99]}
    train(make_runner, Tracker(remote), optim=optim, hub={"api_key": "abcd1234"})

    assert remote.config["optim.lr"] == 0.1
    assert remote.config["hub.api_key"] == "***"
    assert remote.config["optim.betas"] == "[0.9, 0.99]"
    assert remote.steps == [2, 4, 6, 6, 8, 10, 12, 12]
    assert remote.is_finished


def test_it_gets_the_best_score_when_there_is_a_new_one(make_runner):
    remote = Remote()

    runner = train(make_runner, Tracker(remote), max_epochs=3)

    told = dict(remote.best)
    losses = [row["val"]["loss"] for row in runner.results]
    improved = [index for index, loss in enumerate(losses) if loss == min(losses[: index + 1])]
    assert [told[6 * (index + 1)]["best/val/loss"] for index in improved] == [
        losses[index] for index in improved
    ]
    assert len(remote.best) == len(improved)
    assert remote.best[-1][1]["best/epoch"] == runner.best_result["epoch"]


def test_an_outage_from_start_to_end_is_one_warning_and_a_count(make_runner, caplog, at_once):
    remote = Remote(range(1000))

    runner = train(make_runner, Tracker(remote))

    assert runner.status == "finished"
    first, *others = messages_of(caplog)
    assert first == (
        "tracker_remote failed, and the training goes on: ConnectionError: no route to host"
    )
    rows = 8 + 2  # the best score of each of two epochs besides
    assert others == [f"tracker_remote did not get {rows} rows", "tracker_remote failed 12 times"]
    assert len(list(read_metrics(runner.dir / "metrics.jsonl"))) == 8


@pytest.mark.parametrize("outage", [range(1, 2), range(3, 5), range(9, 10)])
def test_what_was_missed_in_an_outage_is_sent_after_it(outage: range, make_runner, at_once):
    remote = Remote(outage)

    train(make_runner, Tracker(remote))

    assert remote.steps == [2, 4, 6, 6, 8, 10, 12, 12]


def test_a_tracker_that_is_away_is_left_alone_for_a_while(make_runner):
    remote = Remote(range(1000))

    train(make_runner, Tracker(remote))

    assert remote.calls == 2  # at the start and at the end


def test_a_row_that_is_refused_does_not_hold_up_the_others(make_runner, caplog, at_once):
    remote = Remote(refused="train/aux")
    log_once = LambdaCallback(
        on_step=lambda runner: runner.global_step == 3 and runner.log("aux", 1.0)
    )

    train(make_runner, Tracker(remote), log_once)

    assert remote.steps == [2, 6, 6, 8, 10, 12, 12]
    assert "tracker_remote did not get 1 rows" in messages_of(caplog)


def test_where_it_is_strict_a_failure_ends_the_training(make_runner):
    with pytest.raises(ConnectionError, match="no route to host"):
        train(make_runner, Tracker(Remote(range(1000)), strict=True))


def test_without_a_directory_it_does_nothing(make_runner):
    remote = Remote()

    make_runner([Tracker(remote)]).train()

    assert remote.calls == 0


def test_two_trackers_have_two_names(make_runner):
    other = Remote()
    other.name = "other"

    runner = train(make_runner, Tracker(Remote()), Tracker(other))

    assert runner.callbacks["tracker_remote"].own.steps == other.steps


# Pictures


def test_images_and_figures_are_shown_at_their_step(make_runner):
    gallery = Gallery()

    train(make_runner, Tracker(gallery), LambdaCallback(on_epoch_end=show_pictures))

    shown = [("samples", (5, 4)), ("curve", (7, 6))]
    assert gallery.shown == [(tag, size, step) for step in (6, 12) for tag, size in shown]


def test_a_tracker_without_images_says_so_once(make_runner, caplog):
    train(make_runner, Tracker(Remote()), LambdaCallback(on_epoch_end=show_pictures))

    assert messages_of(caplog) == ["tracker_remote has no log_images and shows no pictures"]


def test_pictures_are_left_out_in_an_outage_and_shown_after_it(make_runner, at_once):
    gallery = Gallery(range(1, 7))  # the start, and the rows of the first epoch

    train(make_runner, Tracker(gallery), LambdaCallback(on_epoch_end=show_pictures))

    assert [step for *_, step in gallery.shown] == [12, 12]


def test_no_picture_waits_for_a_tracker_that_is_away(make_runner):
    gallery = Gallery(range(3, 1000))

    train(make_runner, Tracker(gallery), LambdaCallback(on_epoch_end=show_pictures))

    assert gallery.calls == 5  # the start, a row, the row that failed, and at the end two more


def test_what_is_no_picture_ends_no_training(make_runner, caplog):
    gallery = Gallery()
    show = LambdaCallback(on_epoch_end=lambda runner: runner.log_image("samples", "pixels"))

    runner = train(make_runner, Tracker(gallery), show)

    assert runner.status == "finished"
    assert len(messages_of(caplog)) == 2
    assert gallery.steps == [2, 4, 6, 6, 8, 10, 12, 12]
