"""The HParams table as the server gives it: columns of all runs, types, rows, status."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danling.config.config import Config
from danling.tensorboard.event_file import EventWriter, read_events
from danling.tensorboard.hparams import (
    START_TAG,
    group_of,
    has_succeeded,
    join_group,
    of_config,
    session_end,
    session_start,
    table_values,
)
from tests.support.tensorboard_server import Server


def write_run(directory: Path, config: Config, status: str | None, accuracy: float) -> None:
    directory.mkdir(parents=True)
    values, group = of_config(config, "1f0c8a42")
    with EventWriter(directory) as writer:
        writer.add([session_start(values, group, 1.0)], step=0)
        writer.add_scalars({"val/accuracy": accuracy}, step=10)
        if status is not None:
            writer.add(session_end(status, 2.0), step=10)


@pytest.fixture(scope="module", params=[True, False], ids=["rust", "python"])
def server(request, tmp_path_factory) -> Iterator[Server]:
    logs = tmp_path_factory.mktemp("hparams") / "logs"
    for seed, accuracy in enumerate([0.5, 0.75, 1.0]):
        config = Config(seed=seed, run_name=f"s{seed}", amp=True, optim={"lr": 0.1, "name": "sgd"})
        write_run(logs / f"seed-{seed}", config, "finished", accuracy)
    write_run(logs / "failed", Config(optim={"lr": 0.2, "momentum": 0.9}), "failed", 0.1)
    write_run(logs / "running", Config(optim={"lr": 0.3, "betas": [0.9, 0.99]}), None, 0.2)
    write_run(logs / "preempted", Config(optim={"lr": 0.4}), "preempted", 0.3)
    with Server(logs, fast=request.param, runs=6) as running:
        running.wait_until(lambda: len(running.session_groups()) == 4)
        yield running


def rows_by_rate(server: Server) -> dict[float, dict[str, Any]]:
    return {row["hparams"]["optim.lr"]: row for row in server.session_groups()}


def test_a_column_is_there_for_each_key_of_any_run_with_its_type(server: Server):
    types = {name: column["type"] for name, column in server.hparams().items()}

    assert types == {
        "amp": "DATA_TYPE_BOOL",
        "optim.betas": "DATA_TYPE_STRING",
        "optim.lr": "DATA_TYPE_FLOAT64",
        "optim.momentum": "DATA_TYPE_FLOAT64",
        "optim.name": "DATA_TYPE_STRING",
    }


def test_seeds_of_one_configuration_are_one_row_with_their_mean(server: Server):
    row = rows_by_rate(server)[0.1]

    assert sorted(session["name"] for session in row["sessions"]) == ["seed-0", "seed-1", "seed-2"]
    [metric] = [value for value in row["metricValues"] if value["name"]["tag"] == "val/accuracy"]
    assert metric["value"] == 0.75


def test_every_row_has_the_status_of_its_run(server: Server):
    statuses = {
        rate: {session["status"] for session in row["sessions"]}
        for rate, row in rows_by_rate(server).items()
    }

    assert statuses == {
        0.1: {"STATUS_SUCCESS"},
        0.2: {"STATUS_FAILURE"},
        0.3: {"STATUS_UNKNOWN"},
        0.4: {"STATUS_UNKNOWN"},
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("fast", [True, False], ids=["rust", "python"])
def test_a_server_keeps_the_first_status_that_it_reads(fast: bool, tmp_path: Path):
    """Why there is no "running": if this fails, TensorBoard has learned to take it back."""
    run = tmp_path / "logs" / "run"
    run.mkdir(parents=True)
    with EventWriter(run) as writer:
        writer.add([session_start({"lr": 0.1}, "a", 1.0), *session_end("failed", 2.0)], step=0)
        writer.add_scalars({"train/loss": 1}, step=1)

    with Server(run.parent, fast=fast) as server:
        server.wait_until(lambda: server.session_groups()[0]["sessions"][0]["status"])
        with EventWriter(run, start_step=2) as writer:
            writer.add(session_end("finished", 3.0), step=2)
            writer.add_scalars({"train/loss": 2}, step=2)
        server.wait_until(lambda: len(server.scalars("run", "train/loss")) == 2)
        shown = server.session_groups()[0]["sessions"][0]["status"]

    assert shown == "STATUS_FAILURE"


@pytest.mark.parametrize("status", ["finished", "failed", "running"])
def test_row_and_success_are_read_back(status: str, tmp_path: Path):
    write_run(tmp_path / "run", Config(optim={"lr": 0.1}), status, 0.5)

    assert group_of(tmp_path / "run") == of_config(Config(optim={"lr": 0.1}), "1f0c8a42")[1]
    assert has_succeeded(tmp_path / "run") == (status == "finished")


@pytest.mark.parametrize("name", ["1f0c8a42-2e44c3f8-9b1d0c55", "an id of another length"])
def test_a_run_that_has_finished_moves_to_the_row_of_its_seeds(name: str, tmp_path: Path):
    values, group = of_config(Config(optim={"lr": 0.1}, amp=True, max_epochs=3), "1f0c8a42")
    with EventWriter(tmp_path) as writer:
        writer.add([session_start(values, name, 1.0)], step=4)
        writer.add_scalars({"val/accuracy": 0.5}, step=10)
    before = list(read_events(writer.path))

    join_group(tmp_path, group)

    after = list(read_events(writer.path))
    assert group_of(tmp_path) == group
    [expected] = [session_start(values, group, 1.0)]
    for event in before:
        if event.summary.value and event.summary.value[0].tag == START_TAG:
            event.summary.value[0].CopyFrom(expected)
    assert after == before


def test_a_directory_without_a_session_has_no_row(tmp_path: Path):
    with EventWriter(tmp_path) as writer:
        writer.add_scalars({"train/loss": 1}, step=1)

    assert group_of(tmp_path) is None
    assert not has_succeeded(tmp_path)
    assert group_of(tmp_path / "nowhere") is None


def test_values_that_a_table_cannot_show_become_text_or_are_left_out():
    values = {"a": float("nan"), "b": None, "c": {}, "d": [1, {"e": 2}], "f": {"g": {"h": False}}}

    assert table_values(values) == {"a": "nan", "d": '[1, {"e": 2}]', "f.g.h": False}


def test_paths_names_and_what_was_not_set_are_no_columns():
    config = Config(project_root="/scratch", run_name="a", seed=3, log_interval=5, max_epochs=2)

    values, _ = of_config(config, "")

    assert values == {"~max_epochs": 2}


def test_own_hyperparameters_come_before_the_settings_of_the_library():
    config = Config(weight=2.0, dataloader={"batch_size": 8}, max_epochs=2, optim={"lr": 0.1})

    values, _ = of_config(config, "")

    assert sorted(values) == ["optim.lr", "weight", "~dataloader.batch_size", "~max_epochs"]


def test_secrets_are_masked_and_tell_rows_apart_all_the_same():
    configs = [Config(hub={"api_key": key}, lr=0.1) for key in ("abcd1234", "efgh5678")]

    (values, group), (_, other) = (of_config(config, "") for config in configs)

    assert values == {"hub.api_key": "***", "lr": 0.1}
    assert group != other


def test_other_code_and_another_value_are_another_row():
    rows = [
        of_config(config, code)[1]
        for config, code in [
            (Config(lr=0.1), "a"),
            (Config(lr=0.1, seed=7), "a"),
            (Config(lr=0.2), "a"),
            (Config(lr=0.1), "b"),
        ]
    ]

    assert [rows.index(row) for row in rows] == [0, 0, 2, 3]
