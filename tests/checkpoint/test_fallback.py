"""The newest valid checkpoint is loaded, and what is damaged is reported and kept aside."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from danling.checkpoint.encoding import Placeholder
from danling.checkpoint.sharded import dcp, shards
from danling.checkpoint.store import CheckpointStore
from danling.distributed.world import World
from danling.errors import CheckpointError
from danling.files import filesystem
from tests.support.sharded_saves import save_sharded, there


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", run="our-run")


def save(store: CheckpointStore, step: int, *names: str) -> Path:
    payload = {"model": {"step": torch.tensor(step)}}
    return store.commit(payload, names or ("latest",), global_step=step, epoch=step // 10)


def loaded_step(store: CheckpointStore, which: str | Path = "latest") -> int:
    return int(store.load(which)[0]["model"]["step"])


def damage_in_place(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(300)
        file.write(b"damage")


def test_damage_to_the_latest_file_and_all_its_names_is_survived(store, caplog):
    save(store, 10, "latest", "epoch-1", "best")
    save(store, 20, "latest", "epoch-2", "best")
    damage_in_place(store.directory / "latest.pth")

    checkpoint, path = store.load("latest")

    assert checkpoint["model"]["step"] == 10
    assert path.name in ("epoch-1.pth", "previous.pth")
    assert sorted(p.name for p in store.directory.iterdir()) == [
        "best.pth.corrupt-1",
        "epoch-1.pth",
        "epoch-2.pth.corrupt-1",
        "index.json",
        "latest.pth.corrupt-1",
        "previous.pth",
    ]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(store.directory / "latest.pth") in record.getMessage()
    assert "SHA-256" in record.getMessage()
    assert "epoch-2.pth renamed to epoch-2.pth.corrupt-1" in record.getMessage()


def test_previous_is_enough(store):
    for step in (10, 20, 30):
        save(store, step)
    damage_in_place(store.directory / "latest.pth")

    assert loaded_step(store) == 20


def test_without_previous_nothing_is_left(tmp_path: Path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_previous=False)
    save(store, 10)
    save(store, 20)
    damage_in_place(store.directory / "latest.pth")

    with pytest.raises(CheckpointError, match=r"(?s)no valid checkpoint is left.*latest\.pth"):
        store.load()


def replace_by(path: Path, what: str) -> None:
    path.unlink()
    if what == "directory":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link to nowhere":
        path.symlink_to(path.parent / "nowhere")
    elif what == "link":
        path.symlink_to(path.parent / "previous.pth")
    else:
        content = {"nothing": b"", "zeros": bytes(3000), "noise": os.urandom(3000)}
        path.write_bytes(content[what])


@pytest.mark.parametrize(
    "what", ["nothing", "zeros", "noise", "directory", "pipe", "link to nowhere", "link"]
)
def test_what_took_the_place_of_the_latest_is_set_aside(store, what: str, caplog):
    for step in (10, 20, 30):
        save(store, step)
    replace_by(store.directory / "latest.pth", what)

    assert loaded_step(store) == 20
    assert os.path.lexists(store.directory / "latest.pth.corrupt-1")
    assert len(caplog.records) == 1
    save(store, 40)
    assert loaded_step(store) == 40


def test_another_run_s_checkpoint_is_skipped_and_left_alone(store, tmp_path: Path, caplog):
    save(store, 10, "epoch-1")
    other = CheckpointStore(tmp_path / "other", run="another-run")
    shutil.copyfile(save(other, 99), store.directory / "latest.pth")

    assert loaded_step(store) == 10
    assert "belongs to the run another-run" in caplog.text
    assert (store.directory / "latest.pth").exists()
    assert [entry.name for entry in store.candidates()] == ["epoch-1"]


def test_nothing_valid_is_an_error_that_lists_each_and_deletes_none(store):
    save(store, 10, "latest", "epoch-1")
    save(store, 20)
    damage_in_place(store.directory / "latest.pth")
    (store.directory / "previous.pth").write_bytes(b"torn")  # and epoch-1.pth with it

    with pytest.raises(CheckpointError) as first:
        store.load()
    with pytest.raises(CheckpointError) as second:
        store.load()

    assert "latest.pth is damaged" in str(first.value)
    assert "previous.pth" in str(first.value)
    assert "move the directory away to start from the beginning" in str(first.value)
    assert "latest.pth.corrupt-1 was found damaged before" in str(second.value)
    assert first.value.errno is None
    assert second.value.errno is None
    assert sorted(path.name for path in store.directory.glob("*.corrupt-*")) == [
        "epoch-1.pth.corrupt-1",
        "latest.pth.corrupt-1",
        "previous.pth.corrupt-1",
    ]
    assert not store.is_empty()


def test_where_nothing_was_ever_saved_the_error_says_so(store):
    assert store.is_empty()
    with pytest.raises(CheckpointError, match="there is no checkpoint") as caught:
        store.load()
    assert caught.value.errno == 2


def test_an_explicit_file_is_never_replaced_by_another(store):
    save(store, 10, "latest", "best")
    path = save(store, 20, "latest", "epoch-2")
    damage_in_place(path)

    for which in (path, str(path), "epoch-2"):
        with pytest.raises(CheckpointError, match="damaged"):
            store.load(which)

    assert path.exists()
    assert loaded_step(store, "best") == 10


def test_a_name_that_is_not_there_lists_those_that_are(store):
    save(store, 10, "latest", "epoch-1")

    with pytest.raises(CheckpointError, match=r"no checkpoint 'best'.* are: epoch-1, latest"):
        store.load("best")


def test_a_file_that_cannot_be_opened_is_an_error_and_no_reason_to_fall_back(store, monkeypatch):
    save(store, 10)
    save(store, 20)
    real_open = os.open

    def no_more_files(path: Any, *arguments: Any) -> int:
        if str(path).endswith("latest.pth"):
            raise OSError(24, "Too many open files")
        return real_open(path, *arguments)

    monkeypatch.setattr(os, "open", no_more_files)

    with pytest.raises(CheckpointError, match="Too many open files") as caught:
        store.load()
    assert caught.value.errno == 24
    assert (store.directory / "latest.pth").exists()


def test_a_newer_format_is_an_error_and_no_reason_to_fall_back(store):
    save(store, 10)
    path = save(store, 20)
    torch.save({**torch.load(path, weights_only=True), "format": 99}, path)

    with pytest.raises(CheckpointError, match="newer DanLing"):
        store.load()
    assert path.exists()


def test_a_latest_that_was_saved_again_by_hand_is_the_newest(store):
    save(store, 10)
    path = save(store, 20)
    torch.save({"format": 1, "model": {"step": torch.tensor(21)}}, path)

    assert loaded_step(store) == 21


def test_another_that_was_saved_again_by_hand_is_the_last_resort(store):
    save(store, 10, "latest")
    torch.save({"format": 1, "model": {"step": torch.tensor(5)}}, store.directory / "epoch-7.pth")

    assert loaded_step(store) == 10
    (store.directory / "latest.pth").unlink()
    assert loaded_step(store) == 5


def test_a_run_that_went_back_to_best_goes_on_from_there(store):
    """After a step back the newest has the lower step: times and steps both mislead."""
    save(store, 10, "latest", "best")
    save(store, 20, "latest", "epoch-2")
    save(store, 30, "latest", "epoch-3")
    assert loaded_step(store, "best") == 10

    save(store, 15, "latest")

    assert loaded_step(store) == 15
    damage_in_place(store.directory / "latest.pth")
    assert loaded_step(store) == 30


def test_a_directory_that_cannot_be_changed_is_read(store, monkeypatch, caplog):
    save(store, 10)
    save(store, 20)
    damage_in_place(store.directory / "latest.pth")

    def read_only(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", read_only)

    assert loaded_step(store) == 10
    assert "latest.pth cannot be renamed (Read-only file system)" in caplog.text


def test_what_was_set_aside_before_is_not_overwritten(store):
    save(store, 5, "epoch-1")
    for step in (10, 20, 30):
        save(store, step)
        (store.directory / "latest.pth").write_bytes(b"torn %d" % step)

        assert loaded_step(store) == 5

    aside = sorted(store.directory.glob("latest.pth.corrupt-*"))
    assert [path.read_bytes() for path in aside] == [b"torn 10", b"torn 20", b"torn 30"]


# ---- shards


def loaded_head(store: CheckpointStore) -> int:
    return int(store.load(whole=False)[0]["model"]["step"])


def flip_a_bit(shards: Path) -> None:
    content = bytearray((shards / "__1_0.distcp").read_bytes())
    content[3] ^= 1
    (shards / "__1_0.distcp").write_bytes(content)


def lose_one(shards: Path) -> None:
    (shards / "__1_0.distcp").unlink()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (shutil.rmtree, "its shards are gone: there is no {shards} beside it"),
        (lose_one, "its shard {shards}/__1_0.distcp cannot be read: No such file or directory"),
        (flip_a_bit, "its shard {shards}/__1_0.distcp has another content than was written"),
    ],
)
def test_damage_to_shards_sets_their_head_aside_with_all_its_names(
    store, change: Callable[[Path], None], cause: str, caplog
):
    first = save_sharded(store, 10).name
    second = save_sharded(store, 20, "latest", "epoch-2", "best")
    change(second)

    checkpoint, path = store.load(whole=False)

    assert checkpoint["model"]["step"] == 10
    assert path.name == "previous.pth"
    assert {p.name for p in store.directory.glob("*.pth*")} == {
        "previous.pth",
        "latest.pth.corrupt-1",
        "epoch-2.pth.corrupt-1",
        "best.pth.corrupt-1",
    }
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "latest.pth is damaged: " + cause.format(shards=second.name) in record.getMessage()
    assert "latest.pth renamed to latest.pth.corrupt-1" in record.getMessage()
    assert first in there(store)
    save_sharded(store, 30)
    assert loaded_head(store) == 30


def test_what_is_left_of_damaged_shards_stays_for_who_wants_to_look(store):
    save_sharded(store, 10)
    second = save_sharded(store, 20)
    lose_one(second)
    assert loaded_head(store) == 10

    for step in (30, 40, 50):
        save_sharded(store, step)
    store.clean()

    assert second.name in there(store)
    assert len(there(store)) == 3


def test_damage_to_shards_of_every_head_is_an_error_that_lists_each(store):
    for step in (10, 20):
        shutil.rmtree(save_sharded(store, step))

    with pytest.raises(CheckpointError, match="no valid checkpoint is left") as caught:
        store.load(whole=False)

    assert str(caught.value).count("its shards are gone") == 2
    assert len(list(store.directory.glob("*.corrupt-1"))) == 2


def test_a_head_that_names_no_directory_of_shards_is_set_aside(store):
    save(store, 10)
    path = save(store, 20)
    head = torch.load(path, weights_only=True)
    torch.save({**head, "shards": {"directory": "../x", "files": {}}}, path)

    assert loaded_head(store) == 10
    assert (store.directory / "latest.pth.corrupt-1").exists()


def on_the_first_digest(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Does something when the head has been read, and the first shard is opened."""
    real = shards.damage

    def damage(*arguments: Any) -> str | None:
        monkeypatch.setattr("danling.checkpoint.reading.damage", real)
        action()
        return real(*arguments)

    monkeypatch.setattr("danling.checkpoint.reading.damage", damage)


def test_a_head_that_was_replaced_while_its_shards_went_is_not_set_aside(
    store, monkeypatch, caplog
):
    save_sharded(store, 10, "latest")

    def go_on() -> None:
        writer = CheckpointStore(store.directory, run="our-run", keep_previous=False)
        save_sharded(writer, 20, "latest")

    on_the_first_digest(monkeypatch, go_on)

    assert loaded_head(store) == 20
    assert list(store.directory.glob("*.corrupt-*")) == []
    assert caplog.text == ""


def test_a_head_that_was_rotated_away_with_its_shards_is_not_set_aside(store, monkeypatch):
    save_sharded(store, 10, "step-10")

    def go_on() -> None:
        save_sharded(store, 20, "step-20")
        store.rotate(["step-20"])

    on_the_first_digest(monkeypatch, go_on)

    assert loaded_head(CheckpointStore(store.directory, run="our-run")) == 20
    assert list(store.directory.glob("*.corrupt-*")) == []


def save_tensors(store: CheckpointStore, step: int) -> Path:
    """Commits a checkpoint of which a tensor is in shards; returns their directory."""
    directory = store.new_shards(step)
    weight = torch.full((3,), float(step))
    dcp.Tensors({("model", "weight"): weight}).write(directory, World())
    names = [path.name for path in directory.iterdir()]
    store.commit(
        {"model": {"weight": Placeholder(weight.shape, weight.dtype), "step": torch.tensor(step)}},
        ["latest"],
        global_step=step,
        epoch=0,
        shards=shards.finish(directory, [shards.seal(directory, names)]),
    )
    return directory


def test_the_newest_is_loaded_with_what_is_in_its_shards(store):
    for step in (10, 20, 30):
        save_tensors(store, step)
    lose_one_of = next(path for path in there(store) if path.startswith("shards-30-"))
    next((store.directory / lose_one_of).glob("*.distcp")).unlink()

    checkpoint, path = store.load()

    assert path.name == "previous.pth"
    assert checkpoint["model"]["weight"].tolist() == [20, 20, 20]


@pytest.mark.parametrize("pattern", ["*", ".metadata", "*.distcp"])
def test_shards_that_go_after_they_were_checked_are_no_damage(store, pattern: str, monkeypatch):
    """A run that goes on may remove them at any time while they are read, one by one."""
    save_tensors(store, 10)
    real = dcp.read

    def remove_some(directory: Path) -> None:
        for path in directory.glob(pattern):
            path.unlink()

    def read(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(dcp, "read", real)
        writer = CheckpointStore(store.directory, run="our-run", keep_previous=False)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", remove_some)
            save_tensors(writer, 20)
        return real(*arguments, **options)

    monkeypatch.setattr(dcp, "read", read)

    assert store.load()[0]["model"]["weight"].tolist() == [20, 20, 20]
    assert list(store.directory.glob("*.corrupt-*")) == []


def test_without_hard_links_every_head_of_damaged_shards_is_set_aside(store, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(filesystem, "link", no_links)
    save_sharded(store, 10, "latest")
    shutil.rmtree(save_sharded(store, 20, "latest", "epoch-2"))

    assert loaded_head(store) == 10
    assert len(list(store.directory.glob("*.corrupt-1"))) == 2
