"""The band over the seeds: what is in it, when it is written, and that servers show the newest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from danling.config.config import Config
from danling.errors import RunError
from danling.tensorboard import bands
from danling.tensorboard.bands import refresh_band, write_band
from danling.tensorboard.event_file import EventWriter, read_scalars
from danling.tensorboard.hparams import of_config, session_end, session_start
from danling.tensorboard.pages import layout
from tests.support.tensorboard_server import Server

BACKENDS = pytest.mark.parametrize("fast", [True, False], ids=["rust", "python"])


def write_seeds(root: Path, values: list[dict[int, float]], tag: str = "val/loss") -> list[Path]:
    runs = []
    for seed, points in enumerate(values):
        run = root / f"seed-{seed}"
        run.mkdir(parents=True)
        with EventWriter(run) as writer:
            for step, value in points.items():
                writer.add_scalars({tag: value, "~best/val/loss": value}, step)
        runs.append(run)
    return runs


def test_a_band_has_the_mean_the_least_and_the_greatest(tmp_path: Path):
    runs = write_seeds(tmp_path, [{10: 1.0, 20: 4.0}, {10: 2.0, 20: 5.0}, {10: 6.0, 20: 6.0}])

    tags = write_band(tmp_path / "seeds", runs)

    assert tags == ["val/loss"]
    assert read_scalars(tmp_path / "seeds") == {
        "~seeds/val/loss/mean": [(10, 3.0), (20, 5.0)],
        "~seeds/val/loss/min": [(10, 1.0), (20, 4.0)],
        "~seeds/val/loss/max": [(10, 6.0), (20, 6.0)],
    }


def test_a_band_is_drawn_where_all_seeds_have_a_finite_value(tmp_path: Path):
    runs = write_seeds(
        tmp_path, [{10: 1.0, 20: float("nan"), 30: 1.0, 40: 2.0}, {10: 1.0, 20: 1.0, 30: 1.0}]
    )

    write_band(tmp_path / "seeds", runs)

    assert [step for step, _ in read_scalars(tmp_path / "seeds")["~seeds/val/loss/mean"]] == [
        10,
        30,
    ]


def test_of_many_steps_a_band_has_no_more_than_are_shown_and_the_last(tmp_path: Path):
    runs = write_seeds(tmp_path, [dict.fromkeys(range(1, 2501), 1.0)])

    write_band(tmp_path / "seeds", runs)

    steps = [step for step, _ in read_scalars(tmp_path / "seeds")["~seeds/val/loss/mean"]]
    assert steps == list(range(1, 2501, 3))
    assert steps[-1] == 2500


def test_a_run_that_was_stopped_early_bounds_the_band(tmp_path: Path):
    runs = write_seeds(
        tmp_path, [dict.fromkeys(range(1, 3001), 1.0), dict.fromkeys(range(1, 501), 3.0)]
    )

    write_band(tmp_path / "seeds", runs)

    expected = [(step, 2.0) for step in range(1, 501)]
    assert read_scalars(tmp_path / "seeds")["~seeds/val/loss/mean"] == expected


def test_a_band_is_under_no_tag_of_the_runs(tmp_path: Path):
    runs = write_seeds(tmp_path, [{10: 1.0}, {10: 2.0}])

    write_band(tmp_path / "seeds", runs)

    # TensorBoard has a section for what is before the first slash
    assert {tag.partition("/")[0] for tag in read_scalars(tmp_path / "seeds")} == {"~seeds"}


def test_a_band_replaces_the_one_before(tmp_path: Path):
    first, second = write_seeds(tmp_path, [{10: 1.0, 20: 1.0}, {10: 3.0}])

    write_band(tmp_path / "seeds", [first])
    write_band(tmp_path / "seeds", [first, second])

    assert read_scalars(tmp_path / "seeds")["~seeds/val/loss/mean"] == [(10, 2.0)]
    assert write_band(tmp_path / "seeds", []) == []
    assert read_scalars(tmp_path / "seeds") == {}


@pytest.mark.parametrize("runs", [[], ["seed-0", "empty"]])
def test_runs_that_have_nothing_in_common_have_no_band(runs: list[str], tmp_path: Path):
    write_seeds(tmp_path, [{10: 1.0}])
    (tmp_path / "empty").mkdir()

    assert write_band(tmp_path / "seeds", [tmp_path / run for run in runs]) == []


def test_only_the_tags_that_are_asked_for_have_a_band(tmp_path: Path):
    runs = write_seeds(tmp_path, [{10: 1.0}, {10: 2.0}])

    assert write_band(tmp_path / "seeds", runs, ["~best/val/loss"]) == ["~best/val/loss"]


# The band of a run and its siblings


def write_run(
    root: Path, seed: int | None, loss: float, *, uuid: int, status: str = "finished", lr: float = 1
) -> Path:
    """A run as TensorBoard() leaves it, in a directory of the name that runs have."""
    run = root / f"digits-a-0000000f-{seed or 0:08x}-{uuid:08x}"
    run.mkdir(parents=True)
    config = Config(lr=lr, seed=seed)
    config.save(run / "runner.yaml")
    with EventWriter(run) as writer:
        writer.add([session_start(*of_config(config, "0000000f"), 1.0)], step=0)
        writer.add_scalars({"val/loss": loss}, step=10)
        writer.add(session_end(status, 2.0), step=10)
    return run


def means(band: Path | None) -> list[tuple[int, float]]:
    assert band is not None
    return read_scalars(band)["~seeds/val/loss/mean"]


def test_the_band_is_of_all_seeds_that_have_ended_well(tmp_path: Path):
    write_run(tmp_path, 0, 1.0, uuid=0)
    write_run(tmp_path, 1, 90.0, uuid=1, status="failed")
    write_run(tmp_path, 2, 90.0, uuid=2, status="running")
    write_run(tmp_path, 3, 90.0, uuid=3, lr=2)
    last = write_run(tmp_path, 4, 3.0, uuid=4, status="stopped")

    band = refresh_band(last, "digits")

    assert means(band) == [(10, 2.0)]
    assert band is not None
    assert band.parent == tmp_path
    assert band.name.startswith("digits-seeds-")


def test_the_band_of_runs_that_are_named_after_their_flags_is_named_so_too(tmp_path: Path):
    for seed in range(3):
        last = write_run(tmp_path, seed, 1.0, uuid=seed)
        config = Config.load(last / "runner.yaml")
        # whoever ends later goes on with the band that is there
        config.run_name = f"seed={seed} lr=1" if seed < 2 else "lr=1.0"
        config.save(last / "runner.yaml")
        band = refresh_band(last, "digits")

    assert band is not None
    assert band.name.startswith("digits-lr=1-seeds-")
    assert [path.name for path in tmp_path.glob("*-seeds-*")] == [band.name]


def test_of_runs_with_one_seed_the_newest_counts(tmp_path: Path):
    write_run(tmp_path, 0, 90.0, uuid=9)
    write_run(tmp_path, 0, 1.0, uuid=1)
    last = write_run(tmp_path, 1, 3.0, uuid=2)

    assert means(refresh_band(last, "digits")) == [(10, 2.0)]


def test_runs_without_a_known_seed_all_count(tmp_path: Path):
    for uuid, loss in enumerate([1.0, 2.0, 6.0]):
        last = write_run(tmp_path, None, loss, uuid=uuid)

    assert means(refresh_band(last, "digits")) == [(10, 3.0)]


@pytest.mark.parametrize("status", ["failed", "preempted", "interrupted"])
def test_a_run_that_has_not_ended_well_leaves_the_band_as_it_is(status: str, tmp_path: Path):
    write_run(tmp_path, 0, 1.0, uuid=0)
    write_run(tmp_path, 1, 1.0, uuid=1)
    last = write_run(tmp_path, 2, 1.0, uuid=2, status=status)

    assert refresh_band(last, "digits") is None
    assert len(list(tmp_path.iterdir())) == 3


def test_one_seed_has_no_band_however_often_it_is_trained(tmp_path: Path):
    write_run(tmp_path, 0, 1.0, uuid=0)
    last = write_run(tmp_path, 0, 1.0, uuid=1)

    assert refresh_band(last, "digits") is None
    assert len(list(tmp_path.iterdir())) == 2


def test_what_takes_long_to_read_is_left_to_the_user(tmp_path: Path, monkeypatch):
    write_run(tmp_path, 0, 1.0, uuid=0)
    last = write_run(tmp_path, 1, 1.0, uuid=1)
    monkeypatch.setattr(bands, "_MOST_BYTES", 100)

    with pytest.raises(RunError, match=r"2 runs have 0 MiB of events.*write_band"):
        refresh_band(last, "digits")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_sibling_that_cannot_be_understood_is_no_sibling(tmp_path: Path):
    write_run(tmp_path, 0, 1.0, uuid=0)
    for uuid, content in enumerate([b"", b"no record", b"\xff" * 100], start=50):
        run = tmp_path / f"digits-a-0000000f-00000000-{uuid:08x}"
        run.mkdir()
        (run / "events.out.tfevents.1").write_bytes(content)
    (tmp_path / "digits-a-0000000f-00000000-00000099").touch()
    last = write_run(tmp_path, 1, 3.0, uuid=1)

    assert means(refresh_band(last, "digits")) == [(10, 2.0)]


def test_seeds_that_end_at_the_same_moment_are_all_in_the_band(tmp_path: Path):
    runs = [write_run(tmp_path, seed, float(seed), uuid=seed) for seed in range(4)]

    with ThreadPoolExecutor(len(runs)) as threads:
        written = list(threads.map(lambda run: refresh_band(run, "digits"), runs))

    assert len(set(written)) == 1
    assert set(means(written[0])) == {(10, 1.5)}


# On the servers


@BACKENDS
def test_the_server_has_a_chart_of_the_band_and_its_three_tags(fast: bool, tmp_path: Path):
    runs = write_seeds(tmp_path / "logs", [{10: 1.0, 20: 2.0}, {10: 3.0, 20: 4.0}])
    write_band(tmp_path / "logs" / "seeds", runs)

    with Server(tmp_path / "logs", fast=fast, runs=3) as server:
        server.wait_until(lambda: len(server.scalars("seeds", "~seeds/val/loss/mean")) == 2)
        [chart] = server.charts()["mean, least and greatest over the seeds: val/loss"].values()
        [series] = chart["margin"]["series"]
        shown = {part: server.scalars("seeds", tag) for part, tag in series.items()}

    assert shown == {
        "value": [(10, 2.0), (20, 3.0)],
        "lower": [(10, 1.0), (20, 2.0)],
        "upper": [(10, 3.0), (20, 4.0)],
    }


@BACKENDS
def test_a_server_that_is_running_shows_the_band_with_each_new_seed(fast: bool, tmp_path: Path):
    root = tmp_path / "logs"
    write_run(root, 0, 1.0, uuid=0)
    band = refresh_band(write_run(root, 1, 3.0, uuid=1), "digits")
    assert band is not None

    with Server(root, fast=fast, runs=3) as server:
        server.wait_until(lambda: server.scalars(band.name, "~seeds/val/loss/max") == [(10, 3.0)])
        refresh_band(write_run(root, 2, 8.0, uuid=2), "digits")
        server.wait_until(lambda: server.scalars(band.name, "~seeds/val/loss/max")[-1] == (10, 8.0))
        shown = server.scalars(band.name, "~seeds/val/loss/mean")

    assert shown == [(10, 4.0)]


@BACKENDS
def test_no_chart_is_lost_where_runs_have_other_metrics(fast: bool, tmp_path: Path):
    root = tmp_path / "logs"
    for name, metrics in {"a": ["loss"], "b": ["loss", "f1"], "c": ["bleu"]}.items():
        runs = [root / f"{name}-{seed}" for seed in range(2)]
        for run in runs:
            run.mkdir(parents=True)
            with EventWriter(run) as writer:
                writer.add([layout(metrics)], step=1)
                writer.add_scalars({f"val/{metric}": 1.0 for metric in metrics}, step=1)
        write_band(root / f"{name}-seeds", runs)
        write_band(root / f"+{name}", runs)  # the first of all in the order of names

    with Server(root, fast=fast, runs=12) as server:
        server.wait_until(lambda: server.scalars("c-seeds", "~seeds/val/bleu/mean"))
        server.wait_until(lambda: "bleu" in server.charts()["splits"])
        charts = server.charts()

    over_the_seeds = "mean, least and greatest over the seeds: "
    assert {title: set(category) for title, category in charts.items()} == {
        "splits": {"loss", "f1", "bleu"},
        f"{over_the_seeds}val/loss": {"val/loss"},
        f"{over_the_seeds}val/f1, val/loss": {"val/f1", "val/loss"},
        f"{over_the_seeds}val/bleu": {"val/bleu"},
    }
