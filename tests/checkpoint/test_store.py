"""The store: names, retention, tidying up, and what is found before the first step."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from danling.checkpoint.background import snapshot
from danling.checkpoint.reading import is_intact, read_checkpoint, trailer_of
from danling.checkpoint.sharded.shards import directories
from danling.checkpoint.store import CheckpointStore
from danling.errors import CheckpointError
from danling.files import filesystem
from danling.files.failpoints import set_failpoints
from tests.support.crash_model import AFTER_A_NAME, BEFORE_A_NAME, exit_status
from tests.support.sharded_saves import FILES, commit_sharded, save_sharded, there, write_shards

OF_SHARDS = [
    "shards.after_directory",
    "shards.after_write",
    "shards.after_seal",
    "shards.before_remove",
]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", run="our-run")


def save(store: CheckpointStore, step: int, *names: str, **metrics: float) -> Path:
    payload = {"model": {"step": torch.tensor(step)}}
    return store.commit(
        payload, names or ("latest",), global_step=step, epoch=step // 10, metrics=metrics
    )


def names(store: CheckpointStore) -> set[str]:
    return {path.stem for path in store.directory.glob("*.pth")}


def step_of(store: CheckpointStore, which: str) -> int:
    return int(store.load(which)[0]["model"]["step"])


def test_one_commit_is_one_file_under_all_its_names(store):
    path = save(store, 10, "latest", "best", "epoch-1")

    assert path == store.directory / "latest.pth"
    assert names(store) == {"latest", "best", "epoch-1"}
    assert {p.stat().st_ino for p in store.directory.glob("*.pth")} == {path.stat().st_ino}


def test_the_file_before_stays_as_previous(store):
    for step in (10, 20, 30):
        save(store, step)

    assert names(store) == {"latest", "previous"}
    assert (step_of(store, "latest"), step_of(store, "previous")) == (30, 20)


def test_previous_and_latest_may_have_become_one_file(store):
    """As after a repair: a rename between two names of one file does nothing."""
    save(store, 10)
    save(store, 20)
    (store.directory / "latest.pth").unlink()
    os.link(store.directory / "previous.pth", store.directory / "latest.pth")

    save(store, 30)

    assert (step_of(store, "latest"), step_of(store, "previous")) == (30, 10)
    assert not any(path.name.startswith(".tmp") for path in store.directory.iterdir())


def test_previous_can_be_turned_off(tmp_path: Path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_previous=False)

    for step in (10, 20):
        save(store, step)

    assert names(store) == {"latest"}


def test_best_stays_when_latest_goes_on(store):
    save(store, 10, "latest", "best")
    save(store, 20, "latest")
    save(store, 30, "best-loss")

    assert step_of(store, "best") == 10
    assert step_of(store, "latest") == 30  # the newest, whatever its name
    assert step_of(store, "best-loss") == 30


def test_the_same_step_saved_twice_is_the_later_one(store):
    store.commit({"model": {"step": torch.tensor(1)}}, ["step-10"], global_step=10, epoch=0)
    store.commit({"model": {"step": torch.tensor(2)}}, ["epoch-1"], global_step=10, epoch=1)

    assert step_of(store, "latest") == 2


@pytest.mark.parametrize("name", ["../x", "a/b", "/abs", "..", "", "previous", "index", "epoch-x"])
def test_other_names_are_refused_before_anything_is_written(store, name: str):
    with pytest.raises(CheckpointError, match="is no name of a checkpoint; valid are 'latest'"):
        save(store, 10, "latest", name)

    assert not store.directory.exists()


def test_a_checkpoint_needs_a_name(store):
    with pytest.raises(CheckpointError, match="needs a name"):
        store.commit({}, [], global_step=0, epoch=0)


def test_what_cannot_be_saved_is_refused_before_anything_is_written(store):
    save(store, 10)
    before = {path.name: path.read_bytes() for path in store.directory.iterdir()}

    with pytest.raises(CheckpointError, match=r"callbacks\['timer'\]\['clock'\] is _thread\.lock"):
        store.commit(
            {"callbacks": {"timer": {"clock": threading.Lock()}}},
            ["latest"],
            global_step=20,
            epoch=2,
        )

    assert {path.name: path.read_bytes() for path in store.directory.iterdir()} == before


def test_what_is_nested_as_deep_as_is_accepted_is_read_back(store):
    def nested(depth: int) -> list[object]:
        deep: list[object] = []
        for _ in range(depth):
            deep = [deep]
        return deep

    with pytest.raises(CheckpointError, match="nested deeper than 100 levels"):
        store.commit({"callbacks": nested(101)}, ["latest"], global_step=1, epoch=0)
    store.commit({"callbacks": nested(98)}, ["latest"], global_step=1, epoch=0)

    assert store.load()[0]["callbacks"] == nested(98)


def test_a_snapshot_is_committed_as_it_was_taken(store):
    weight = torch.zeros(2)
    taken = snapshot({"model": {"step": weight}})
    weight.fill_(9)

    path = store.commit(taken, ["latest"], global_step=1, epoch=0)

    checkpoint, _ = store.load(path)
    assert checkpoint["model"]["step"].tolist() == [0, 0]
    assert checkpoint["run"] == {"uuid": "our-run"}


def test_the_caller_s_entries_win_and_its_mapping_is_not_changed(store):
    payload = {"model": {}, "run": {"uuid": "our-run", "launch": 3}}

    path = store.commit(payload, ["latest"], global_step=1, epoch=0)

    assert store.load(path)[0]["run"] == {"uuid": "our-run", "launch": 3}
    assert list(payload) == ["model", "run"]


def test_the_index_is_json_for_people_and_never_read(store):
    save(store, 10, "latest", "epoch-1", loss=math.nan, accuracy=0.5)
    index = store.directory / "index.json"
    row = json.loads(index.read_text())["checkpoints"]["epoch-1"]

    assert row["metrics"] == {"loss": "NaN", "accuracy": 0.5}
    assert (row["global_step"], row["epoch"], row["serial"]) == (10, 1, 1)
    assert row["size"] == (store.directory / "latest.pth").stat().st_size
    for text in ("", "{", '{"checkpoints": {"epoch-99": {}}}'):
        index.write_text(text)
        fresh = CheckpointStore(store.directory, run="our-run")
        assert [entry.name for entry in fresh.candidates()] == ["latest", "epoch-1"]
        assert math.isnan(fresh.candidates()[0].metrics["loss"])


def test_an_index_that_cannot_be_written_is_a_warning(store, monkeypatch, caplog):
    (store.directory / "index.json").mkdir(parents=True)

    save(store, 10)

    assert step_of(store, "latest") == 10
    assert "index.json was not written" in caplog.text
    assert not any(path.name.startswith(".tmp") for path in store.directory.iterdir())


# ---- retention


def test_rotation_removes_numbered_names_only(store):
    save(store, 10, "latest", "best", "epoch-1")
    save(store, 20, "latest", "epoch-2", "best-loss")
    save(store, 30, "latest", "epoch-3", "step-30")

    removed = store.rotate(["epoch-3"])

    assert sorted(removed) == ["epoch-1", "epoch-2", "step-30"]
    assert names(store) == {"latest", "previous", "best", "best-loss", "epoch-3"}
    assert set(json.loads((store.directory / "index.json").read_text())["checkpoints"]) == names(
        store
    )


def test_rotation_with_nothing_to_keep_leaves_latest_and_best(store):
    save(store, 10, "latest", "best", "epoch-1")

    store.rotate([])

    assert names(store) == {"latest", "best"}
    assert step_of(store, "best") == 10


def test_rotation_never_removes_the_last_valid_file(store, caplog):
    save(store, 10, "epoch-1")
    save(store, 20, "latest")
    (store.directory / "latest.pth").write_bytes(b"torn")

    assert store.rotate([]) == []

    assert names(store) == {"latest", "epoch-1"}
    assert "nothing is removed" in caplog.text


def test_rotation_looks_into_what_was_damaged_in_place_since(store):
    save(store, 10, "epoch-1")
    path = save(store, 20, "latest")
    with open(path, "r+b") as file:
        file.seek(300)
        file.write(b"damage")
    os.utime(path, ns=(1, 1))

    assert store.rotate([]) == []
    assert step_of(store, "latest") == 10


def test_rotation_goes_by_the_directory_and_not_by_memory(store):
    for step in (10, 20, 30):
        save(store, step, "latest", f"epoch-{step // 10}")

    fresh = CheckpointStore(store.directory, run="our-run")

    assert sorted(fresh.rotate(["epoch-3"])) == ["epoch-1", "epoch-2"]


def test_a_name_that_cannot_be_removed_is_a_warning_and_tried_again(store, monkeypatch, caplog):
    save(store, 10, "epoch-1")
    save(store, 20, "latest")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "unlink", refuse)
        assert store.rotate([]) == []

    assert "epoch-1.pth cannot be removed (Permission denied): tried again" in caplog.text
    assert store.rotate([]) == ["epoch-1"]


def test_what_was_deleted_by_hand_is_no_error(store):
    save(store, 10, "latest", "epoch-1")
    save(store, 20, "latest", "epoch-2")
    for name in ("epoch-1", "latest", "previous"):
        (store.directory / f"{name}.pth").unlink()

    assert store.rotate([]) == []  # nothing else is left
    save(store, 30)
    assert store.rotate([]) == ["epoch-2"]
    assert step_of(store, "latest") == 30


def test_another_run_s_files_are_not_removed(store, tmp_path: Path):
    other = CheckpointStore(tmp_path / "other", run="another-run")
    save(other, 10, "epoch-7")
    save(store, 10)
    (store.directory / "epoch-7.pth").write_bytes((other.directory / "epoch-7.pth").read_bytes())

    assert store.rotate([]) == []
    assert "epoch-7" in names(store)


@pytest.mark.parametrize("seed", range(5))
def test_retention_holds_for_any_sequence_of_saves_and_restarts(tmp_path: Path, seed: int):
    """Kept are the last n and the best, `latest` is the newest, `best` the best: always."""
    source = random.Random(seed)
    keep, scores = source.randint(1, 3), []
    store = CheckpointStore(tmp_path / "checkpoints")
    for epoch in range(1, 13):
        scores.append(source.choice([0.1, 0.5, 0.5, 0.9]))
        is_best = scores[-1] > max(scores[:-1], default=0)
        save(store, 10 * epoch, "latest", f"epoch-{epoch}", *(["best"] if is_best else []))
        if source.random() < 0.3:
            store = CheckpointStore(tmp_path / "checkpoints")
            store.clean()
        kept = {f"epoch-{number}" for number in range(max(1, epoch - keep + 1), epoch + 1)}
        store.rotate(kept)

        assert names(store) - {"previous"} == {"latest", "best", *kept}
        assert step_of(store, "latest") == 10 * epoch
        assert step_of(store, "best") == 10 * (scores.index(max(scores)) + 1)
        assert all(is_intact(path) for path in store.directory.glob("*.pth"))


def test_a_reader_at_any_moment_finds_a_whole_checkpoint(store):
    save(store, 1)
    done = threading.Event()
    found: list[int] = []

    def read() -> None:
        reader = CheckpointStore(store.directory, run="our-run")
        while not done.is_set():
            found.append(step_of(reader, "latest"))

    thread = threading.Thread(target=read)
    thread.start()
    for step in range(2, 60):
        save(store, step, "latest", f"step-{step}")
        store.rotate([f"step-{step}"])
    done.set()
    thread.join()

    assert found == sorted(found)
    assert found[-1] > 1
    assert list(store.directory.glob("*.corrupt-*")) == []


def test_a_file_that_is_rotated_away_while_it_is_being_read_is_no_loss(store, monkeypatch):
    save(store, 1, "step-1")
    real_open, opened = os.open, []

    def open_late(path: Path, *arguments: int) -> int:
        opened.append(str(path))
        if opened.count(str(store.directory / "step-1.pth")) == 2:  # after that of its trailer
            monkeypatch.undo()
            save(store, 2, "step-2")
            store.rotate(["step-2"])
        return real_open(path, *arguments)

    reader = CheckpointStore(store.directory, run="our-run")
    monkeypatch.setattr(os, "open", open_late)

    assert step_of(reader, "latest") == 2


# ---- tidying up, and looking ahead


def test_orphans_are_removed_and_nothing_else_is(store):
    save(store, 10)
    kept = [".tmp.mine", ".nfs0001", ".tmp.latest.x.1", "notes.txt", "latest.pth.corrupt-1"]
    for name in [*kept, ".tmp.latest.99.0", ".tmp.index.json.7.12"]:
        (store.directory / name).write_text("x")

    done = store.clean()

    assert done == [
        "removed .tmp.index.json.7.12, which was never committed",
        "removed .tmp.latest.99.0, which was never committed",
    ]
    assert set(kept) <= {path.name for path in store.directory.iterdir()}


def test_names_that_a_crash_left_behind_are_given_to_the_newest(store):
    save(store, 10, "latest", "best")
    save(store, 20, "latest", "best", "epoch-2")
    for name in ("latest", "best"):
        (store.directory / f"{name}.pth").unlink()
    os.link(store.directory / "previous.pth", store.directory / "best.pth")

    done = store.clean()

    assert sorted(done) == [
        "best is step 20 again, as epoch-2",
        "latest is step 20 again, as epoch-2",
    ]
    assert step_of(store, "best") == step_of(store, "latest") == 20
    assert store.clean() == []


@pytest.mark.parametrize("left", [0, 200])
def test_a_file_that_lost_its_end_is_left_to_who_loads_it(store, left: int):
    save(store, 10)
    save(store, 20)
    os.truncate(store.directory / "latest.pth", left)

    assert store.clean() == []

    assert store.load()[1].name == "previous.pth"
    assert (store.directory / "latest.pth.corrupt-1").stat().st_size == left


def test_what_somebody_put_in_the_place_of_latest_is_loaded(store):
    save(store, 10)
    save(store, 20)
    torch.save({"format": 1, "model": {}, "mine": True}, store.directory / "latest.pth")

    assert store.clean() == []

    assert store.load()[0]["mine"]


def test_a_damaged_file_gets_no_name_back(store):
    save(store, 10, "latest", "best")
    save(store, 20, "latest", "epoch-2")
    (store.directory / "latest.pth").unlink()
    with open(store.directory / "epoch-2.pth", "r+b") as file:
        file.seek(300)
        file.write(b"damage")

    assert CheckpointStore(store.directory, run="our-run").clean() == []

    assert names(store) == {"best", "epoch-2", "previous"}
    assert step_of(store, "latest") == 10


def test_there_is_nothing_to_tidy_up_before_the_first_save(store):
    assert store.clean() == []
    assert store.candidates() == []
    assert store.is_empty()


def test_a_first_save_that_never_ended_leaves_an_empty_store(store):
    store.directory.mkdir()
    (store.directory / ".tmp.latest.99.0").write_text("x")

    assert store.is_empty()
    save(store, 10)
    assert not store.is_empty()


def test_a_directory_that_can_be_written_passes(store, caplog):
    store.preflight(expected_bytes=1000)

    assert list(store.directory.iterdir()) == []
    assert caplog.text == ""


def test_a_disk_too_small_is_a_warning_before_the_first_step(store, caplog):
    store.preflight(expected_bytes=10**18)

    assert "MB are free, and a checkpoint takes 1000000000000.0 MB" in caplog.text


def test_the_size_of_the_next_is_guessed_from_the_last(store, monkeypatch, caplog):
    save(store, 10)
    real = os.statvfs(store.directory)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result([*real[:4], 0, *real[5:]]))

    store.preflight()

    assert "0.0 MB are free" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_fails_before_the_first_step(store):
    store.directory.mkdir()
    store.directory.chmod(0o500)

    with pytest.raises(CheckpointError, match="Permission denied"):
        store.preflight()


def test_a_run_directory_that_is_not_there_fails_before_the_first_step(tmp_path: Path):
    with pytest.raises(CheckpointError, match="checkpoints cannot be saved: No such file"):
        CheckpointStore(tmp_path / "nowhere" / "checkpoints").preflight()


# ---- shards


@pytest.fixture
def no_failpoints() -> Iterator[None]:
    yield
    set_failpoints("")


def refuse_links(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_new_shards_are_in_a_directory_that_is_made_with_that_of_the_store(store):
    directory = store.new_shards(20)

    assert directory.parent == store.directory
    assert there(store) == {directory.name}
    assert store.is_empty()  # nothing was committed


def test_shards_in_a_run_that_is_not_there_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="step 20 was not saved: No such file") as caught:
        CheckpointStore(tmp_path / "nowhere" / "checkpoints").new_shards(20)
    assert caught.value.errno == errno.ENOENT


def test_head_trailer_and_index_name_the_shards(store):
    directory = save_sharded(store, 10, "latest", "epoch-1")
    path = store.directory / "latest.pth"

    head, _ = store.load("latest", whole=False)
    trailer = trailer_of(path)
    rows = json.loads((store.directory / "index.json").read_text())["checkpoints"]

    assert head["shards"]["directory"] == directory.name
    assert {name: size for name, (size, _) in head["shards"]["files"].items()} == {
        name: len(content) for name, content in FILES.items()
    }
    assert trailer is not None
    assert (trailer.shards, trailer.shards_size) == (directory.name, sum(map(len, FILES.values())))
    assert {row["shards"] for row in rows.values()} == {directory.name}
    assert {row["size"] for row in rows.values()} == {path.stat().st_size + trailer.shards_size}
    assert {entry.name: entry.size for entry in store.candidates()} == {
        name: row["size"] for name, row in rows.items()
    }


@pytest.mark.parametrize("links", [True, False])
def test_shards_go_with_the_last_name_that_leads_to_them(store, links: bool, monkeypatch):
    if not links:
        monkeypatch.setattr(filesystem, "link", refuse_links)
    first = save_sharded(store, 10, "latest").name
    assert there(store) == {first}
    second = save_sharded(store, 20, "latest").name
    assert there(store) == {first, second}  # the first is previous
    third = save_sharded(store, 30, "latest").name
    assert there(store) == {second, third}
    save(store, 40)  # a model that is sharded no more
    assert there(store) == {third}
    save(store, 50)
    assert there(store) == set()


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("name", ["best", "epoch-1", "step-10"])
def test_shards_stay_while_another_name_leads_to_them(store, name: str, links: bool, monkeypatch):
    if not links:
        monkeypatch.setattr(filesystem, "link", refuse_links)
    first = save_sharded(store, 10, "latest", name)
    for step in (20, 30, 40):
        newest = save_sharded(store, step).name

    assert len(there(store)) == 3
    assert there(store) > {first.name, newest}
    assert {path.name: path.read_bytes() for path in first.iterdir()} == FILES
    assert step_of_head(store, name) == 10


def step_of_head(store: CheckpointStore, which: str) -> int:
    return int(store.load(which, whole=False)[0]["model"]["step"])


def test_rotation_releases_the_shards_of_what_it_removes(store):
    first = save_sharded(store, 10, "epoch-1").name
    second = save_sharded(store, 20, "epoch-2", "best").name
    third = save_sharded(store, 30, "latest", "epoch-3").name

    assert sorted(store.rotate(["epoch-3"])) == ["epoch-1", "epoch-2"]

    assert first not in there(store)
    assert there(store) == {second, third}
    assert step_of_head(store, "best") == 20


def test_rotation_keeps_what_has_shards_when_nothing_else_has_all_of_its_own(store, caplog):
    first = save_sharded(store, 10, "epoch-1").name
    shutil.rmtree(save_sharded(store, 20, "latest"))

    assert store.rotate([]) == []
    assert there(store) == {first}
    assert "nothing is removed" in caplog.text


def test_a_name_that_is_not_removed_keeps_its_shards(store, monkeypatch):
    first = save_sharded(store, 10, "epoch-1").name
    save(store, 20)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "unlink", refuse)
        assert store.rotate([]) == []
    assert there(store) == {first}
    assert store.rotate([]) == ["epoch-1"]
    assert there(store) == set()


@pytest.mark.parametrize("failpoint", BEFORE_A_NAME)
def test_a_commit_that_fails_before_its_first_name_leaves_nothing_of_its_shards(
    store, failpoint: str, no_failpoints
):
    first = save_sharded(store, 10, "latest", "best").name
    directory, record = write_shards(store, 20)
    set_failpoints(f"{failpoint}=raise:{errno.ENOSPC}")

    with pytest.raises(CheckpointError) as caught:
        commit_sharded(store, 20, record, "latest", "best")

    assert caught.value.errno == errno.ENOSPC
    assert there(store) == {first} != {directory.name}
    assert step_of_head(store, "latest") == 10


@pytest.mark.parametrize("failpoint", AFTER_A_NAME)
def test_a_commit_that_fails_after_its_first_name_keeps_the_shards_that_it_leads_to(
    store, failpoint: str, no_failpoints
):
    first = save_sharded(store, 10, "latest", "best")
    directory, record = write_shards(store, 20)
    set_failpoints(f"{failpoint}=raise:{errno.EIO}")

    with pytest.raises(CheckpointError):
        commit_sharded(store, 20, record, "latest", "epoch-2")

    assert there(store) == {first.name, directory.name}
    assert step_of_head(store, "epoch-2") == 20
    assert step_of_head(store, "latest") == 20  # the newest
    assert step_of_head(store, "best") == 10


def test_contents_that_cannot_be_saved_leave_nothing_of_their_shards(store):
    first = save_sharded(store, 10).name
    _, record = write_shards(store, 20)

    with pytest.raises(CheckpointError, match=r"callbacks\['lock'\]"):
        store.commit(
            {"callbacks": {"lock": threading.Lock()}},
            ["latest"],
            global_step=20,
            epoch=2,
            shards=record,
        )

    assert there(store) == {first}


@pytest.mark.parametrize("kind", ["garbage", "directory"])
def test_what_cannot_be_read_during_a_commit_keeps_its_shards(store, kind: str, monkeypatch):
    first = save_sharded(store, 10, "best").name
    save_sharded(store, 20, "latest")
    path, replace = store.directory / "best.pth", filesystem.replace

    def replace_and_damage(source: Path, target: Path) -> None:
        replace(source, target)
        if target.name == "latest.pth" and kind == "garbage":
            content = path.read_bytes()
            path.write_bytes(content[:-40] + b"x" * 40)
        elif target.name == "latest.pth":
            path.unlink()
            path.mkdir()

    monkeypatch.setattr(filesystem, "replace", replace_and_damage)
    third = save_sharded(store, 30, "latest").name

    assert {first, third} <= there(store)


def test_a_commit_whose_head_cannot_be_opened_again_keeps_its_shards(store, monkeypatch):
    """As when the process has as many open files as it may have."""
    save_sharded(store, 10)
    real_open, replace = os.open, filesystem.replace

    def no_more_files(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("latest.pth"):
            raise OSError(errno.EMFILE, "Too many open files")
        return real_open(path, *arguments, **options)

    def replace_at_the_limit(source: Path, target: Path) -> None:
        replace(source, target)
        if target.name == "latest.pth":
            monkeypatch.setattr(os, "open", no_more_files)

    monkeypatch.setattr(filesystem, "replace", replace_at_the_limit)
    directory, record = write_shards(store, 20)
    with suppress(CheckpointError):
        commit_sharded(store, 20, record, "latest")
    monkeypatch.undo()

    assert directory.name in there(store)
    assert step_of_head(store, "latest") == 20


def test_a_forged_head_has_nothing_removed_but_itself(store, tmp_path: Path):
    for victim in ("victim", "checkpoints/victim"):
        (tmp_path / victim).mkdir(parents=True)
    for number, named in enumerate(["../victim", str(tmp_path / "victim"), "victim"]):
        commit_sharded(store, number, {"directory": named, "files": {}}, f"step-{number}")
    save(store, 10)

    store.rotate([])
    store.clean()

    assert (tmp_path / "victim").exists()
    assert (store.directory / "victim").exists()


def events(directory: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """What is done to names and content in a directory, in the order of it."""
    noted: list[str] = []

    def note(module: Any, name: str, described: Callable[..., Any]) -> None:
        original = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            path = os.path.relpath(described(*arguments), directory)
            result = original(*arguments, **options)
            noted.append(f"{name} {re.sub(r'shards-.*-[0-9a-f]{8}', 'S', path)}")
            return result

        patch.setattr(module, name, call)

    for name in ("make_directory", "fsync_directory", "unlink"):
        note(filesystem, name, lambda path: path)
    note(filesystem, "fsync_file", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    note(filesystem, "replace", lambda source, target: target)
    note(shutil, "rmtree", lambda path: path)
    return noted


def test_shards_are_durable_before_a_name_leads_to_them_and_go_after_the_names(store):
    save_sharded(store, 10)
    save_sharded(store, 20)
    with pytest.MonkeyPatch.context() as patch:
        noted = events(store.directory, patch)
        save_sharded(store, 30)

    temporary = re.compile(r"\.tmp\.[\w.-]+")
    assert [temporary.sub("TMP", event) for event in noted] == [
        "make_directory S",
        "fsync_directory .",
        "fsync_file S/.metadata",
        "fsync_file S/__0_0.distcp",
        "fsync_file S/__1_0.distcp",
        "fsync_directory S",
        "fsync_file TMP",
        "replace latest.pth",
        "replace previous.pth",
        "fsync_directory .",
        "fsync_file TMP",
        "replace index.json",
        "fsync_directory .",
        "rmtree S",
    ]


def test_a_rotation_removes_names_before_their_shards(store):
    save_sharded(store, 10, "epoch-1")
    save(store, 20)
    with pytest.MonkeyPatch.context() as patch:
        noted = events(store.directory, patch)
        store.rotate([])

    assert noted[:3] == ["unlink epoch-1.pth", "fsync_directory .", "rmtree S"]


def test_a_commit_that_may_not_be_durable_removes_no_older_shards(tmp_path: Path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_previous=False)
    for step in (10, 20):
        save_sharded(store, step)
    real, calls = filesystem.fsync_directory, []

    def fail_after_the_replace(path: Path) -> None:
        calls.append(path)
        if calls.count(store.directory) == 2:  # the first is of the new shards
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    before = directories(store.directory)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CheckpointError):
        patch.setattr(filesystem, "fsync_directory", fail_after_the_replace)
        save_sharded(store, 30)

    assert before < directories(store.directory)  # a power cut may bring the old head back
    assert step_of_head(store, "latest") == 30


@pytest.mark.parametrize("failpoint", [*OF_SHARDS, *BEFORE_A_NAME, *AFTER_A_NAME])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_kill_at_any_point_leaves_shards_that_are_tidied_up(store, failpoint: str, nth: int):
    def child() -> None:
        for number in (1, 2, 3):
            save_sharded(store, 10 * number, "latest", f"epoch-{number}")
        set_failpoints(f"{failpoint}=kill@{nth}")
        for number in (4, 5):
            save_sharded(store, 10 * number, "latest", f"epoch-{number}")
            store.rotate([f"epoch-{number}"])

    assert exit_status(child) == -signal.SIGKILL

    fresh = CheckpointStore(store.directory, run="our-run")
    assert step_of_head(fresh, "latest") in (30, 40, 50)
    fresh.clean()
    assert "latest" in [entry.name for entry in fresh.candidates()]
    for entry in fresh.candidates():
        assert read_checkpoint(entry.path, whole=False)["model"]["step"] == entry.global_step
    assert there(fresh) == {entry.trailer.shards for entry in fresh.candidates()}
    assert list(store.directory.glob("*.corrupt-*")) == []


def test_directories_of_shards_to_which_nothing_leads_are_tidied_up(store):
    kept = save_sharded(store, 10).name
    orphan, _ = write_shards(store, 20)
    (store.directory / "shards-of-mine").mkdir()

    assert store.clean() == [f"removed {orphan.name}, which no checkpoint names"]

    assert there(store) == {kept}
    assert (store.directory / "shards-of-mine").is_dir()
    assert store.clean() == []


@pytest.mark.parametrize("left", [0, 200])
def test_no_shards_are_tidied_up_while_a_file_that_lost_its_end_is_there(store, left: int):
    directory = save_sharded(store, 10).name
    os.truncate(store.directory / "latest.pth", left)
    fresh = CheckpointStore(store.directory, run="our-run")

    assert fresh.clean() == []
    assert there(store) == {directory}
    (store.directory / "latest.pth").unlink()
    assert fresh.clean() == [f"removed {directory}, which no checkpoint names"]


def test_shards_of_a_head_that_was_set_aside_stay_with_it(store):
    directory = save_sharded(store, 10)
    path = store.directory / "latest.pth"
    path.rename(path.with_name("latest.pth.corrupt-1"))

    assert store.clean() == []

    path.with_name("latest.pth.corrupt-1").rename(path)
    assert step_of_head(store, "latest") == 10
    assert there(store) == {directory.name}


def test_a_head_that_was_saved_again_by_hand_keeps_its_shards(store):
    save_sharded(store, 10)
    path = store.directory / "latest.pth"
    torch.save(torch.load(path, weights_only=True), path)
    fresh = CheckpointStore(store.directory, run="our-run")

    assert fresh.clean() == []
    assert step_of_head(fresh, "latest") == 10


def test_a_best_that_was_saved_again_by_hand_keeps_its_shards_while_the_run_goes_on(store):
    first = save_sharded(store, 10, "latest", "best").name
    path = store.directory / "best.pth"
    head = torch.load(path, weights_only=True)
    path.unlink()
    torch.save(head, path)

    for step in (20, 30, 40):
        save_sharded(store, step)

    assert first in there(store)
    assert step_of_head(store, "best") == 10


def test_another_run_s_shards_are_not_removed(store):
    other = CheckpointStore(store.directory, run="another-run")
    directory = save_sharded(other, 10, "epoch-7").name
    save(store, 20)

    assert store.clean() == []
    assert store.rotate([]) == []
    assert there(store) == {directory}


def test_space_for_shards_is_counted_before_the_first_step(store, monkeypatch, caplog):
    _, record = write_shards(store, 10, {"__0_0.distcp": bytes(3_000_000)})
    commit_sharded(store, 10, record)
    real = os.statvfs(store.directory)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result([*real[:4], 0, *real[5:]]))

    store.preflight()

    assert "0.0 MB are free, and a checkpoint takes 3.0 MB" in caplog.text


# ---- at length


@pytest.mark.exhaustive
def test_a_thousand_saves_leave_what_is_kept_and_the_last_is_found(store):
    for number in range(1, 1001):
        save(store, number, "latest", f"step-{number}")
        store.rotate([f"step-{number}", f"step-{number - 1}"])

    assert {entry.name for entry in store.candidates()} == {
        *("latest", "previous", "step-999", "step-1000")
    }
    assert len(os.listdir(store.directory)) == 5
    assert CheckpointStore(store.directory).load()[0]["model"]["step"] == 1000


@pytest.mark.benchmark
def test_a_commit_costs_little_more_than_the_write(tmp_path: Path):
    payload = {"model": {str(index): torch.randn(1 << 20) for index in range(64)}}
    store = CheckpointStore(tmp_path / "checkpoints")

    def seconds(action: object) -> float:
        start = time.perf_counter()
        action()  # type: ignore[operator]
        return time.perf_counter() - start

    def plain() -> None:
        with open(tmp_path / "plain.pth", "wb") as file:
            torch.save(payload, file)
            os.fsync(file.fileno())

    def commit() -> None:
        store.commit(payload, ["latest"], global_step=0, epoch=0)

    assert min(seconds(commit) for _ in range(5)) < 2 * min(seconds(plain) for _ in range(5)) + 0.3
