"""What the directory has is read from its files, whatever else lies there."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from danling.checkpoint.catalog import Catalog, is_name, is_numbered
from danling.checkpoint.store import CheckpointStore
from tests.support.sharded_saves import FILES, save_sharded, write_shards


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def save(store: CheckpointStore, step: int, *names: str, loss: float = 0.0) -> Path:
    names = names or ("latest",)
    return store.commit(
        {"model": {}}, names, global_step=step, epoch=step // 10, metrics={"loss": loss}
    )


@pytest.mark.parametrize(
    ("name", "valid", "numbered"),
    [
        ("latest", True, False),
        ("previous", True, False),
        ("best", True, False),
        ("best-loss", True, False),
        ("best-val_acc.1", True, False),
        ("epoch-0", True, True),
        ("step-1200", True, True),
        ("auc-epoch-0", True, True),
        ("val.auc-step-1200", True, True),
        ("best-epoch-3", True, False),
        ("latest-epoch-3", False, False),
        ("previous-step-3", False, False),
        ("-epoch-3", False, False),
        ("a/b-epoch-3", False, False),
        ("epoch-x", False, False),
        ("epoch-010", False, False),
        ("epoch--1", False, False),
        ("epoch-1 ", False, False),
        ("epoch-1\n", False, False),
        ("epoch-٣", False, False),
        ("best-", False, False),
        ("best-a/b", False, False),
        ("best-..", False, False),
        ("../latest", False, False),
        ("", False, False),
    ],
)
def test_names_are_few_and_flat(name: str, valid: bool, numbered: bool):
    assert is_name(name) is valid
    assert is_numbered(name) is numbered


def test_the_newest_comes_first_with_what_its_file_says(store: CheckpointStore):
    save(store, 10, "latest", "epoch-1", loss=0.5)
    save(store, 20, "latest", "epoch-2", "best", loss=0.25)

    found = store.candidates()

    assert [(entry.name, entry.global_step, entry.epoch) for entry in found] == [
        ("latest", 20, 2),
        ("best", 20, 2),
        ("epoch-2", 20, 2),
        ("epoch-1", 10, 1),
        ("previous", 10, 1),
    ]
    assert [entry.metrics["loss"] for entry in found] == [0.25, 0.25, 0.25, 0.5, 0.5]
    assert len({entry.digest for entry in found}) == 2


def test_times_and_numbers_in_names_decide_nothing(store: CheckpointStore):
    for step in (9, 10, 100):
        save(store, step, f"step-{step}")
    for age, path in enumerate(sorted(store.directory.glob("step-*"))):
        os.utime(path, (time.time() + age, time.time() - 1e6 * age))

    assert [entry.name for entry in store.candidates()] == ["step-100", "step-10", "step-9"]


def test_a_copy_of_the_directory_is_the_same(store: CheckpointStore, tmp_path: Path):
    save(store, 10, "latest", "best")
    save(store, 20, "latest")
    for path in list(store.directory.iterdir()):
        (tmp_path / "moved").mkdir(exist_ok=True)
        shutil.copyfile(path, tmp_path / "moved" / path.name)  # no links, new times

    moved = CheckpointStore(tmp_path / "moved")

    def plain(s: CheckpointStore) -> list[tuple[str, str]]:
        return [(entry.name, entry.digest) for entry in s.candidates()]

    assert plain(moved) == plain(store)
    assert moved.load("best")[0]["format"] == 1


def test_strays_are_no_checkpoints(store: CheckpointStore):
    path = save(store, 10)
    strays = [".nfs0001", "latest.pth~", "epoch-x.pth", "#latest.pth#", "latest (1).pth", "a.pth"]
    for name in strays:
        shutil.copyfile(path, store.directory / name)
    (store.directory / "epoch-3.pth").mkdir()
    (store.directory / "epoch-4.pth").symlink_to(path)
    (store.directory / "epoch-5.pth").write_bytes(b"torn")

    assert [entry.name for entry in store.candidates()] == ["latest"]
    assert set(strays) <= {found.name for found in store.directory.iterdir()}


def test_a_missing_directory_has_none(tmp_path: Path):
    catalog = Catalog(tmp_path / "nowhere")

    assert catalog.files() == {}
    assert catalog.entries() == []


def test_a_file_is_read_again_only_when_it_changed(store: CheckpointStore, monkeypatch):
    save(store, 10)
    catalog = Catalog(store.directory)
    catalog.entries()
    opened: list[object] = []
    real_open = os.open

    def noting_open(path: Path, flags: int) -> int:
        opened.append(path)
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", noting_open)

    catalog.entries()
    unchanged = len(opened)
    monkeypatch.undo()
    save(store, 20)

    assert unchanged == 0
    assert catalog.entries()[0].global_step == 20


def test_two_hundred_files_are_listed_in_a_blink(store: CheckpointStore):
    path = save(store, 10, "epoch-1")
    for number in range(2, 202):
        shutil.copyfile(path, store.directory / f"epoch-{number}.pth")
    start = time.perf_counter()

    found = Catalog(store.directory).entries()

    assert len(found) == 201
    assert time.perf_counter() - start < 0.5


def test_damage_in_place_is_noticed_although_the_file_was_trusted(store: CheckpointStore):
    path = save(store, 10)
    catalog = Catalog(store.directory)
    catalog.trust(path)
    entry = catalog.entries()[0]
    assert catalog.intact(entry)

    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    os.utime(path, ns=(0, 0))

    assert not catalog.intact(entry)


# ---- shards


def test_an_entry_names_its_shards_and_counts_their_bytes(store: CheckpointStore):
    plain = save(store, 10, "epoch-1")
    directory = save_sharded(store, 20, "latest", "best")

    entries = {entry.name: entry for entry in Catalog(store.directory).entries()}

    head = (store.directory / "latest.pth").stat().st_size
    assert entries["epoch-1"].trailer.shards is None
    assert entries["epoch-1"].size == plain.stat().st_size
    for name in ("latest", "best"):
        assert entries[name].trailer.shards == entries[name].row()["shards"] == directory.name
        assert entries[name].size == entries[name].row()["size"]
        assert entries[name].size == head + sum(map(len, FILES.values()))


def test_a_checkpoint_is_intact_only_with_its_shards(store: CheckpointStore):
    directory = save_sharded(store, 10)
    catalog = Catalog(store.directory)
    (entry,) = catalog.entries()
    assert catalog.intact(entry)

    directory.rename(store.directory / "elsewhere")

    assert not catalog.intact(entry)


def test_shards_are_released_when_no_name_leads_to_them(store: CheckpointStore):
    first = save_sharded(store, 10, "epoch-1", "best").name
    second = save_sharded(store, 20, "latest").name
    catalog = Catalog(store.directory)
    before = catalog.shards()
    assert before == {"epoch-1": first, "best": first, "latest": second}

    assert catalog.released(before, None) == set()
    (store.directory / "epoch-1.pth").unlink()
    assert catalog.released(before, None) == set()
    (store.directory / "best.pth").unlink()
    assert catalog.released(before, None) == {first}
    (store.directory / "latest.pth").unlink()
    assert catalog.released(before, None) == {first, second}


def test_shards_of_a_commit_are_released_unless_a_name_leads_to_them(store: CheckpointStore):
    own = save_sharded(store, 10).name
    abandoned = write_shards(store, 20)[0].name
    catalog = Catalog(store.directory)

    assert catalog.released(catalog.shards(), own) == set()
    assert catalog.released(catalog.shards(), abandoned) == {abandoned}


def no_end(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(b"x" * 40)


def no_file(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [no_end, no_file])
def test_a_head_that_cannot_be_read_now_keeps_its_shards(store: CheckpointStore, change):
    first = save_sharded(store, 10, "best").name
    second = save_sharded(store, 20, "latest").name
    catalog = Catalog(store.directory)
    before = catalog.shards()
    change(store.directory / "best.pth")
    (store.directory / "latest.pth").unlink()

    assert first not in catalog.released(before, second)


@pytest.mark.parametrize("change", [no_end, no_file])
def test_a_new_head_that_cannot_be_read_keeps_the_shards_that_it_may_name(
    store: CheckpointStore, change
):
    catalog = Catalog(store.directory)
    before = catalog.shards()
    own = save_sharded(store, 10, "latest").name
    change(store.directory / "latest.pth")

    assert catalog.released(before, own) == set()


def test_orphans_are_directories_of_shards_to_which_nothing_leads(store: CheckpointStore):
    save_sharded(store, 10, "latest", "best")
    orphan = write_shards(store, 20)[0].name
    save(store, 30, "epoch-3")
    for name in ("shards-old", "notes"):
        (store.directory / name).mkdir()

    assert Catalog(store.directory).orphans() == {orphan}


def test_what_a_head_that_was_set_aside_names_is_no_orphan(store: CheckpointStore):
    save_sharded(store, 10, "latest")
    path = store.directory / "latest.pth"
    path.rename(path.with_name("latest.pth.corrupt-1"))
    catalog = Catalog(store.directory)

    assert catalog.orphans() == set()
    path.with_name("latest.pth.corrupt-1").unlink()
    assert len(catalog.orphans()) == 1


@pytest.mark.parametrize("name", ["latest.pth", "latest.pth.corrupt-3"])
@pytest.mark.parametrize("content", [b"", b"torn"])
def test_there_are_no_orphans_while_a_file_that_lost_its_end_may_name_them(
    store: CheckpointStore, name: str, content: bytes
):
    orphan = write_shards(store, 10)[0].name
    catalog = Catalog(store.directory)
    assert catalog.orphans() == {orphan}

    (store.directory / name).write_bytes(content)

    assert catalog.orphans() == set()


def test_a_head_that_was_saved_again_by_hand_goes_on_naming_its_shards(store: CheckpointStore):
    save_sharded(store, 10, "latest")
    path = store.directory / "latest.pth"
    torch.save(torch.load(path, weights_only=True), path)
    catalog = Catalog(store.directory)

    assert catalog.orphans() == set()
    orphan = write_shards(store, 20)[0].name
    assert catalog.orphans() <= {orphan}


@pytest.mark.parametrize("form", ["../victim", "{parent}/victim", "victim"])
def test_what_a_forged_head_names_is_never_released(
    store: CheckpointStore, tmp_path: Path, form: str
):
    save(store, 10)
    for victim in (tmp_path / "victim", store.directory / "victim"):
        victim.mkdir()
    catalog = Catalog(store.directory)
    named = form.format(parent=tmp_path)

    assert catalog.released({"epoch-3": named}, named) == set()
