"""Only a whole and safe checkpoint is read; everything else is named with its cause."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import danling as dl
from danling.checkpoint import reading
from danling.checkpoint.encoding import Placeholder
from danling.checkpoint.reading import (
    FORMAT,
    DamagedCheckpointError,
    ForeignCheckpointError,
    is_intact,
    read_checkpoint,
    trailer_of,
)
from danling.checkpoint.sharded import dcp
from danling.checkpoint.sharded.shards import finish, seal
from danling.checkpoint.store import CheckpointStore
from danling.distributed.world import World
from danling.errors import CheckpointError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store = CheckpointStore(tmp_path / "checkpoints", run="our-run")
    return store.commit(
        {"model": {"weight": torch.arange(4.0)}, "where": Path("x")},
        ["latest"],
        global_step=3,
        epoch=1,
    )


def test_a_whole_checkpoint_is_read(path: Path):
    checkpoint = read_checkpoint(path, run="our-run")

    assert checkpoint["format"] == FORMAT
    assert checkpoint["run"] == {"uuid": "our-run"}
    assert checkpoint["model"]["weight"].tolist() == [0, 1, 2, 3]
    assert checkpoint["where"] == Path("x")


def test_the_weights_are_read_where_danling_is_not_installed(path: Path):
    program = (
        "import sys, torch; sys.modules['danling'] = None; "  # importing it fails, installed or not
        "model = torch.load(sys.argv[1], weights_only=True)['model']; "
        "print(model['weight'].tolist())"
    )

    result = subprocess.run(
        [sys.executable, "-I", "-c", program, str(path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=path.parent,
    )

    assert result.stdout == "[0.0, 1.0, 2.0, 3.0]\n"


def damage(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert not is_intact(path)
    with pytest.raises(DamagedCheckpointError, match=r"latest\.pth"):
        read_checkpoint(path)


def test_a_file_that_was_cut_anywhere_is_damaged(path: Path):
    content = path.read_bytes()

    for length in range(len(content)):
        damage(path, content[:length])


def test_a_large_file_that_was_cut_somewhere_is_damaged(tmp_path: Path):
    store = CheckpointStore(tmp_path / "checkpoints")
    path = store.commit({"model": torch.ones(1 << 20)}, ["latest"], global_step=1, epoch=0)
    size = path.stat().st_size
    lengths = sorted(random.Random(0).sample(range(size), 64), reverse=True)

    for length in lengths:
        os.truncate(path, length)
        assert not is_intact(path)
        with pytest.raises(DamagedCheckpointError, match=r"latest\.pth"):
            read_checkpoint(path)


def check_bit_flips(path: Path, bits_of: Callable[[int], Iterable[int]]) -> None:
    content = path.read_bytes()
    for offset in range(len(content)):
        for bit in bits_of(offset):
            changed = bytearray(content)
            changed[offset] ^= 1 << bit
            damage(path, bytes(changed))


def test_a_file_with_one_bit_flipped_in_any_byte_is_damaged(path: Path):
    check_bit_flips(path, lambda offset: [offset % 8])


@pytest.mark.exhaustive
def test_a_file_with_any_one_bit_flipped_is_damaged(path: Path):
    check_bit_flips(path, lambda offset: range(8))


@pytest.mark.parametrize("content", [bytes(4000), os.urandom(4000), b"PK\x03\x04" + bytes(4000)])
def test_other_bytes_are_damage(path: Path, content: bytes):
    damage(path, content)


def test_an_empty_file_is_named_as_such(path: Path):
    path.write_bytes(b"")

    with pytest.raises(DamagedCheckpointError, match=r"latest\.pth is empty"):
        read_checkpoint(path)


def test_a_directory_and_a_pipe_are_refused_and_do_not_hang(tmp_path: Path):
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(DamagedCheckpointError, match=r"is a directory|not a regular file"):
        read_checkpoint(tmp_path / "directory")
    with pytest.raises(DamagedCheckpointError, match="not a regular file"):
        read_checkpoint(tmp_path / "pipe")


def test_a_missing_file_has_its_errno_and_path(tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "nowhere.pth")

    assert caught.value.errno == 2
    assert caught.value.filename == str(tmp_path / "nowhere.pth")
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_a_path_may_be_a_symbolic_link(path: Path, tmp_path: Path):
    (tmp_path / "link.pth").symlink_to(path)

    assert read_checkpoint(tmp_path / "link.pth")["format"] == FORMAT


def test_another_run_s_checkpoint_is_foreign_only_when_the_run_matters(path: Path):
    assert read_checkpoint(path)["run"] == {"uuid": "our-run"}
    with pytest.raises(ForeignCheckpointError, match="belongs to the run our-run, not to another"):
        read_checkpoint(path, run="another")


def test_a_newer_format_asks_for_an_upgrade_and_is_not_damage(path: Path):
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "format": 99, "callbacks": {"x": {"__danling__": "future"}}}, path)

    with pytest.raises(CheckpointError, match="format 99, written by a newer DanLing") as caught:
        read_checkpoint(path)

    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pytorch-lightning_version": "2.5", "state_dict": {}}, "a checkpoint of Lightning"),
        (torch.nn.Linear(2, 2).state_dict(), "the weights of a model alone"),
        ({"epoch": 3}, "no checkpoint of DanLing"),
        ([1, 2], "no checkpoint of DanLing"),
        ({"format": 0}, "a format that never existed"),
        ({"format": "1"}, "no checkpoint of DanLing"),
    ],
)
def test_the_files_of_others_are_named(tmp_path: Path, content: Any, message: str):
    torch.save(content, tmp_path / "a.pth")

    with pytest.raises(CheckpointError, match=rf"a\.pth (is|has) {message}"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_checkpoint_that_was_saved_again_by_hand_is_read(path: Path):
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["model"]["weight"] += 1
    torch.save(checkpoint, path)

    assert trailer_of(path) is None
    assert read_checkpoint(path)["model"]["weight"].tolist() == [1, 2, 3, 4]


def test_a_flipped_bit_in_data_that_was_saved_again_is_found_by_its_checksum(path: Path):
    torch.save({"format": 1, "model": torch.full((500,), 7.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((4,), 7.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)

    with pytest.raises(DamagedCheckpointError, match=r"record '.*data/0' has another CRC-32"):
        read_checkpoint(path)


def test_a_file_without_any_checksum_is_read_with_a_warning(path: Path, caplog):
    checkpoint = torch.load(path, weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(checkpoint, path)
    finally:
        torch.serialization.set_crc32_options(True)

    assert read_checkpoint(path)["model"]["weight"].tolist() == [0, 1, 2, 3]
    assert "latest.pth is unverified" in caplog.text


def test_our_own_digest_does_not_need_the_checksums_of_torch(tmp_path: Path):
    torch.serialization.set_crc32_options(False)
    try:
        path = CheckpointStore(tmp_path / "checkpoints").commit(
            {"model": torch.full((500,), 7.0)}, ["latest"], global_step=1, epoch=0
        )
    finally:
        torch.serialization.set_crc32_options(True)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((4,), 7.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)

    with pytest.raises(DamagedCheckpointError, match="another SHA-256"):
        read_checkpoint(path)


class Attack:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.victim}",)


class Evaluated(Attack):
    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.victim)!r}, 'w')",)


@pytest.mark.parametrize("attack", [Attack, Evaluated])
def test_code_in_a_file_is_not_run(tmp_path: Path, attack: type[Attack]):
    victim, path = tmp_path / "victim", tmp_path / "a.pth"
    payload = {"format": 1, "callbacks": attack(victim)}
    with tarfile.open(tmp_path / "tar.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    torch.save(payload, path)
    torch.save(payload, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(payload))

    with pytest.raises(DamagedCheckpointError, match="weights_only=True"):
        read_checkpoint(path)
    for name in ("legacy.pth", "pickle.pth", "tar.pth"):
        with pytest.raises(DamagedCheckpointError, match="no zip archive"):
            read_checkpoint(tmp_path / name)

    assert not victim.exists()


def test_an_archive_with_a_path_in_it_writes_nowhere(tmp_path: Path, path: Path):
    folder = tmp_path / "inner"
    folder.mkdir()
    forged = folder / "a.pth"
    with zipfile.ZipFile(path) as real, zipfile.ZipFile(forged, "w") as archive:
        for member in real.infolist():
            archive.writestr(member.filename, real.read(member))
        archive.writestr("../../evil", "evil")

    with contextlib.suppress(DamagedCheckpointError):
        read_checkpoint(forged)

    assert list(tmp_path.rglob("evil")) == []
    assert not (tmp_path.parent / "evil").exists()


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps({"format": 1}))
        archive.writestr("bomb/data/0", bytes(50_000_000))

    with pytest.raises(DamagedCheckpointError, match="its records are compressed"):
        read_checkpoint(path)


def test_a_tensor_that_claims_more_than_its_record_is_refused(tmp_path: Path):
    path = tmp_path / "a.pth"
    torch.save({"format": 1, "model": torch.zeros(64)}, tmp_path / "real.pth")
    with zipfile.ZipFile(tmp_path / "real.pth") as real, zipfile.ZipFile(path, "w") as forged:
        for member in real.infolist():
            data = real.read(member)
            if member.filename.endswith("data.pkl"):
                data = data.replace(b"K@", b"J\xff\xff\xff\x7f")  # 64 elements become 2^31
            forged.writestr(member.filename, data)

    with pytest.raises(DamagedCheckpointError, match="cannot be loaded"):
        read_checkpoint(path)


def test_what_is_missing_is_not_intact(tmp_path: Path, path: Path):
    assert is_intact(path)
    assert not is_intact(tmp_path / "nowhere.pth")


# ---- shards


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A head whose weight is in shards."""
    store = CheckpointStore(tmp_path / "checkpoints", run="our-run")
    directory = store.new_shards(3)
    weight = torch.arange(4.0)
    dcp.Tensors({("model", "weight"): weight}).write(directory, World())
    names = [found.name for found in directory.iterdir()]
    return store.commit(
        {"model": {"weight": Placeholder(weight.shape, weight.dtype), "bias": torch.ones(1)}},
        ["latest"],
        global_step=3,
        epoch=1,
        shards=finish(directory, [seal(directory, names)]),
    )


def shards_of(head: Path) -> Path:
    trailer = trailer_of(head)
    assert trailer is not None
    assert trailer.shards is not None
    return head.parent / trailer.shards


def test_a_whole_checkpoint_has_the_tensors_of_its_shards(sharded: Path):
    model = read_checkpoint(sharded, run="our-run")["model"]

    assert model["weight"].tolist() == [0, 1, 2, 3]
    assert model["bias"].tolist() == [1]


def test_a_head_alone_has_the_shapes_of_the_tensors_that_are_elsewhere(sharded: Path):
    model = read_checkpoint(sharded, whole=False)["model"]

    assert model["weight"].is_meta
    assert (model["weight"].shape, model["weight"].dtype) == ((4,), torch.float32)
    assert model["bias"].tolist() == [1]


@pytest.mark.parametrize("whole", [True, False])
def test_every_shard_is_checked_also_where_only_the_head_is_wanted(sharded: Path, whole: bool):
    for shard in shards_of(sharded).iterdir():
        content = shard.read_bytes()
        for offset in range(0, len(content), 97):
            changed = bytearray(content)
            changed[offset] ^= 1 << offset % 8
            shard.write_bytes(changed)
            with pytest.raises(DamagedCheckpointError, match=rf"latest\.pth .*{shard.name} has"):
                read_checkpoint(sharded, whole=whole)
        shard.write_bytes(content)

    assert read_checkpoint(sharded, whole=whole)["format"] == FORMAT


def test_a_head_without_its_shards_is_damaged(sharded: Path):
    directory = shards_of(sharded)
    shutil.rmtree(directory)

    with pytest.raises(DamagedCheckpointError, match=rf"there is no {directory.name} beside it"):
        read_checkpoint(sharded)
    assert is_intact(sharded)  # the file itself


def test_a_head_that_was_moved_with_its_shards_is_read(sharded: Path, tmp_path: Path):
    directory = shards_of(sharded)
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(sharded, moved / "mine.pth")
    shutil.move(directory, moved)
    (tmp_path / "link.pth").symlink_to(moved / "mine.pth")

    for path in (moved / "mine.pth", tmp_path / "link.pth"):
        assert read_checkpoint(path)["model"]["weight"].tolist() == [0, 1, 2, 3]


def test_a_head_that_was_saved_again_by_hand_is_read(sharded: Path):
    head = torch.load(sharded, weights_only=True)
    torch.save({**head, "model": {**head["model"], "bias": torch.zeros(1)}}, sharded)

    model = read_checkpoint(sharded)["model"]

    assert (model["weight"].tolist(), model["bias"].tolist()) == ([0, 1, 2, 3], [0])


def test_a_head_that_was_replaced_while_its_shards_went_is_no_damage(sharded: Path, monkeypatch):
    directory = shards_of(sharded)

    def gone_on(*_: object) -> str:
        store = CheckpointStore(sharded.parent, run="our-run", keep_previous=False)
        store.commit({"model": {}}, ["latest"], global_step=4, epoch=1)
        assert not directory.exists()
        return "gone"

    monkeypatch.setattr("danling.checkpoint.reading.damage", gone_on)

    with pytest.raises(CheckpointError, match="the checkpoint was replaced") as caught:
        read_checkpoint(sharded)
    assert caught.value.errno == 2
    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.parametrize(
    "record",
    [
        3,
        None,
        {},
        {"directory": "../x", "files": {}},
        {"directory": "shards-3-00000000"},
        {"directory": "shards-3-00000000", "files": ["a"]},
        {"directory": "shards-3-00000000", "files": {"a": 3}},
        {"directory": "shards-3-00000000", "files": {3: [1, "x"]}},
    ],
)
def test_a_head_that_says_of_its_shards_what_no_head_does_is_damaged(tmp_path: Path, record: Any):
    (tmp_path / "shards-3-00000000").mkdir()
    (tmp_path / "shards-3-00000000" / "a").write_bytes(b"a")
    torch.save({"format": 1, "model": {}, "shards": record}, tmp_path / "a.pth")

    with pytest.raises(DamagedCheckpointError, match=r"a\.pth"):
        read_checkpoint(tmp_path / "a.pth")


# ---- weights that stay in the file


@pytest.fixture
def everything_is_large(monkeypatch) -> None:
    monkeypatch.setattr(reading, "SENT", 0)


def large_checkpoint(tmp_path: Path) -> Path:
    weight = torch.full((1000,), 7.0)
    return CheckpointStore(tmp_path / "checkpoints").commit(
        {
            "model": {"w": weight, "row": weight[3:5], "norm._extra_state": torch.full((9,), 7.0)},
            "optimizer": {"state": {0: {"momentum": torch.full((1000,), 7.0)}}},
            "callbacks": {"ema": {"average": weight, "history": np.full(5, 7.0)}},
        },
        ["latest"],
        global_step=3,
        epoch=1,
    )


@pytest.mark.usefixtures("everything_is_large")
def test_the_weights_of_a_large_file_stay_in_it_and_all_else_is_in_memory(tmp_path: Path):
    path = large_checkpoint(tmp_path)

    read = read_checkpoint(path, whole=False)
    with path.open("r+b") as file:  # in place, which nobody may do: here it tells what is mapped
        file.write(bytes(path.stat().st_size))

    assert read["model"]["w"].sum() == 0
    assert read["model"]["row"].sum() == 0
    assert read["model"]["norm._extra_state"].tolist() == [7] * 9
    assert read["optimizer"]["state"][0]["momentum"].sum() == 7000
    assert read["callbacks"]["ema"]["average"].sum() == 7000
    assert read["callbacks"]["ema"]["history"].sum() == 35


@pytest.mark.usefixtures("everything_is_large")
def test_of_a_whole_checkpoint_nothing_stays_in_the_file(tmp_path: Path):
    path = large_checkpoint(tmp_path)

    read = read_checkpoint(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))

    assert read["model"]["w"].sum() == 7000


@pytest.mark.usefixtures("everything_is_large")
def test_what_was_checked_is_read_also_where_the_file_is_replaced_meanwhile(
    tmp_path: Path, monkeypatch
):
    path, other = large_checkpoint(tmp_path), tmp_path / "other.pth"
    torch.save({"format": 1, "model": {"w": torch.zeros(1)}}, other)
    check = reading._check_digest

    def check_and_replace(*arguments: Any) -> None:
        check(*arguments)
        os.replace(other, path)

    monkeypatch.setattr(reading, "_check_digest", check_and_replace)

    assert read_checkpoint(path, whole=False)["model"]["w"].sum() == 7000


@pytest.mark.usefixtures("everything_is_large")
def test_a_large_file_with_one_bit_flipped_is_damaged(tmp_path: Path):
    path = large_checkpoint(tmp_path)
    content = path.read_bytes()

    for offset in range(0, len(content), 997):
        changed = bytearray(content)
        changed[offset] ^= 1 << offset % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(path, whole=False)


@pytest.mark.usefixtures("everything_is_large")
def test_a_training_goes_on_in_memory_of_its_own(tmp_path: Path):
    """The file is overwritten once it was loaded: weights and momentum must not notice."""

    def make(**more: Any) -> dl.AccelerateRunner:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        data = [(torch.ones(2, 4) * k, torch.ones(2, 1)) for k in range(6)]
        config = {"project_root": str(tmp_path), "seed": 0, "max_epochs": 1} | more
        return dl.AccelerateRunner(
            config | {"accelerate": {"cpu": True}},
            model=model,
            criterion=torch.nn.MSELoss(),
            optimizer=torch.optim.Adam(model.parameters()),
            dataloaders={"train": data},
        )

    expected = make()
    expected.train()
    stopped = make(max_steps=3)
    stopped.train()
    copy = tmp_path / "copy.pth"
    shutil.copy(stopped.checkpoint_dir / "latest.pth", copy)

    resumed = make()
    resumed.load_checkpoint(copy)
    copy.write_bytes(bytes(copy.stat().st_size))
    resumed.train()

    assert resumed.global_step == 6
    assert torch.equal(resumed.unwrapped_model.weight, expected.unwrapped_model.weight)
