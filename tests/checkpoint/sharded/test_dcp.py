"""Tensors go to shards and come back as they were; an index runs no code, wherever it is from."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import pickletools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from danling.checkpoint.encoding import Placeholder
from danling.checkpoint.sharded import dcp, shards
from danling.checkpoint.sharded.shards import finish, seal
from danling.checkpoint.store import CheckpointStore
from danling.distributed.world import World
from danling.errors import CheckpointError
from danling.files import filesystem


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A group of this process alone."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "shards-3-5f0c9a2e"
    made.mkdir()
    return made


def meta(value: Any) -> Any:
    """A head as it is read: tensors that are elsewhere have no data."""
    if isinstance(value, Placeholder):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, Mapping):
        return {key: meta(item) for key, item in value.items()}
    return value


def example(mesh: DeviceMesh) -> dict[str, Any]:
    """What a sharded model and its optimizer give."""

    def sharded(value: Tensor) -> DTensor:
        return distribute_tensor(value, mesh, [Shard(0)])

    weight = torch.randn(6, 4)
    return {
        "model": {
            "0.weight": sharded(weight),
            "half": sharded(weight.bfloat16()),
            "many": sharded(torch.arange(4)),
            "scalar": distribute_tensor(torch.tensor(3.0), mesh, [Replicate()]),
            "none": sharded(torch.zeros(0, 4)),
            "plain": torch.ones(2),
        },
        "optimizer": {
            "state": {
                0: {"exp_avg": sharded(weight + 1), "step": torch.tensor(7.0)},
                11: {"exp_avg": sharded(weight + 2), "step": torch.tensor(7.0)},
            },
            "param_groups": [{"lr": 0.1, "params": [0, 11]}],
        },
        "config": {"seed": 1},
    }


def whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.full_tensor()
    return {key: whole(item) for key, item in value.items()} if isinstance(value, dict) else value


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(whole(found), whole(expected), rtol=0, atol=0)


# ---- there and back


def test_what_is_split_is_the_head_and_what_is_distributed(mesh: DeviceMesh):
    checkpoint = example(mesh)

    head, tensors = dcp.split(checkpoint)

    assert set(tensors) == {
        *(("model", name) for name in ("0.weight", "half", "many", "scalar", "none")),
        ("optimizer", "state", 0, "exp_avg"),
        ("optimizer", "state", 11, "exp_avg"),
    }
    assert head["model"]["half"] == Placeholder(torch.Size([6, 4]), torch.bfloat16)
    assert head["model"]["plain"] is checkpoint["model"]["plain"]
    assert head["optimizer"]["state"][11]["step"] is checkpoint["optimizer"]["state"][11]["step"]
    assert head["optimizer"]["param_groups"] == checkpoint["optimizer"]["param_groups"]
    assert head["config"] is checkpoint["config"]
    assert isinstance(checkpoint["model"]["half"], DTensor)  # nothing is changed in place
    assert isinstance(checkpoint["optimizer"]["state"][0]["exp_avg"], DTensor)


def test_a_checkpoint_without_distributed_tensors_is_all_head():
    checkpoint = {"model": {"weight": torch.ones(2)}, "optimizer": None, "results": {}}

    assert dcp.split(checkpoint) == (checkpoint, {})


class Grouped(World):
    """One process, in a group."""

    @property
    def group(self) -> Any:
        return dist.group.WORLD


@pytest.mark.parametrize("world", [Grouped(), World()])
def test_tensors_come_back_as_they_were(mesh: DeviceMesh, directory: Path, world: World):
    checkpoint = example(mesh)
    head, tensors = dcp.split(checkpoint)

    tensors.write(directory, world)
    found = dcp.read(meta(head), directory, world=world)

    assert_same(found, checkpoint)
    assert type(found["model"]["0.weight"]) is Tensor
    assert list(found["optimizer"]["state"]) == [0, 11]
    assert {path.name for path in directory.iterdir()} == {".metadata", "__0_0.distcp"}


def test_only_what_is_distributed_is_in_the_shards(mesh: DeviceMesh, directory: Path):
    checkpoint = example(mesh)
    checkpoint["model"]["plain"] = torch.zeros(100_000)

    dcp.split(checkpoint)[1].write(directory, World())

    assert sum(path.stat().st_size for path in directory.iterdir()) < 100_000


def test_a_tensor_that_is_for_a_part_is_read_as_that_part(mesh: DeviceMesh, directory: Path):
    checkpoint = example(mesh)
    head, tensors = dcp.split(checkpoint)
    tensors.write(directory, World())
    likes = {
        ("model", "0.weight"): distribute_tensor(torch.ones(6, 4), mesh, [Replicate()]),
        ("model", "half"): distribute_tensor(torch.ones(6, 4), mesh, [Shard(1)]).requires_grad_(),
        ("model", "many"): distribute_tensor(torch.ones(5), mesh, [Shard(0)]),  # another model
    }

    found = dcp.read(meta(head), directory, likes.get)

    assert_same(found, checkpoint)
    assert found["model"]["0.weight"].placements == (Replicate(),)
    assert found["model"]["half"].placements == (Shard(1),)
    assert found["model"]["half"].dtype == torch.bfloat16
    assert not found["model"]["half"].requires_grad
    assert type(found["model"]["many"]) is Tensor
    assert type(found["optimizer"]["state"][0]["exp_avg"]) is Tensor
    assert whole(likes["model", "0.weight"]).eq(1).all()  # what is trained is not written to


def test_a_copy_is_what_the_tensors_were(mesh: DeviceMesh):
    _, tensors = dcp.split(example(mesh))
    before = {place: whole(tensor).clone() for place, tensor in tensors.items()}

    copied = tensors.copied()
    for tensor in tensors.values():
        tensor.zero_()

    assert_same(copied, before)
    assert all(isinstance(tensor, DTensor) for tensor in copied.values())


@pytest.mark.parametrize(
    "places",
    [
        [("model", "a/b"), ("model", "a.b"), ("model", "a"), ("model", "b")],
        [("model", "a/b"), ("model", "a", "b")],
        [("model", "a\\/b"), ("model", "a/b"), ("model", "a", "b"), ("model", "a\\", "b")],
        [("optimizer", "state", 0, "x"), ("optimizer", "state", "0", "x")],
        [("optimizer", "by_name", "d", "state", 0), ("optimizer", "by_name", "d/state", 0)],
        [("model", "a/"), ("model", "a", "")],
    ],
)
def test_names_do_not_collide(directory: Path, places: list[dcp.Place]):
    tensors = dcp.Tensors({place: torch.full((2,), float(n)) for n, place in enumerate(places)})
    head: dict[str, Any] = {}
    for place in places:
        inner = head
        for key in place[:-1]:
            inner = inner.setdefault(key, {})
        inner[place[-1]] = torch.empty(2, device="meta")

    tensors.write(directory, World())
    found = dcp.read(head, directory)

    for place, tensor in tensors.items():
        value: Any = found
        for key in place:
            value = value[key]
        assert torch.equal(value, tensor), place


# ---- read by others


def test_a_head_is_read_by_hand_and_has_the_shapes(mesh: DeviceMesh, tmp_path: Path):
    store = CheckpointStore(tmp_path / "checkpoints")
    checkpoint = example(mesh)
    head, tensors = dcp.split(checkpoint)
    directory = store.new_shards(3)
    tensors.write(directory, World())
    names = [path.name for path in directory.iterdir()]
    record = finish(directory, [seal(directory, names)])

    path = store.commit(head, ["latest"], global_step=3, epoch=1, shards=record)

    by_hand = torch.load(path, weights_only=True)
    assert by_hand["model"]["half"].is_meta
    assert (by_hand["model"]["half"].shape, by_hand["model"]["half"].dtype) == (
        torch.Size([6, 4]),
        torch.bfloat16,
    )
    assert by_hand["model"]["plain"].tolist() == [1, 1]
    assert by_hand["optimizer"]["state"][11]["exp_avg"].is_meta
    found = store.load()[0]
    assert_same({key: found[key] for key in checkpoint}, checkpoint)


def test_torch_s_own_tool_reads_the_directory(mesh: DeviceMesh, directory: Path, tmp_path: Path):
    checkpoint = example(mesh)
    dcp.split(checkpoint)[1].write(directory, World())

    dcp_to_torch_save(directory, tmp_path / "whole.pt")

    found = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert len(found) == 7
    assert_same(found["model/0.weight"], checkpoint["model"]["0.weight"])
    assert_same(
        found["optimizer/state/11/exp_avg"], checkpoint["optimizer"]["state"][11]["exp_avg"]
    )


def test_the_index_names_no_place_on_this_machine(directory: Path, tmp_path: Path):
    dcp.Tensors({("model", "weight"): torch.ones(2)}).write(directory, World())
    index = (directory / ".metadata").read_bytes()

    strings = [value for _, value, _ in pickletools.genops(index) if isinstance(value, str)]
    assert "__0_0.distcp" in strings
    assert [text for text in strings if text.startswith("/") or str(tmp_path) in text] == []
    shutil.move(directory, tmp_path / "moved")
    head = {"model": {"weight": torch.empty(2, device="meta")}}
    assert dcp.read(head, tmp_path / "moved")["model"]["weight"].tolist() == [1, 1]


# ---- an index that was made to do harm


def calling(module: str, name: str, *arguments: Any) -> bytes:
    """A pickle that calls a function; its name may have dots."""
    found = b"\x8c" + bytes([len(module)]) + module.encode()
    found += b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"
    return b"\x80\x04" + found + pickle.dumps(arguments, 4)[2:-1] + b"R."


FILESYSTEM = "torch.distributed.checkpoint.filesystem"
METADATA = "torch.distributed.checkpoint.metadata"


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("os", "system", ["rm {victim}"]),
        ("posix", "system", ["rm {victim}"]),
        ("os", "unlink", ["{victim}"]),
        ("builtins", "eval", ["__import__('os').unlink('{victim}')"]),
        ("builtins", "exec", ["__import__('os').unlink('{victim}')"]),
        ("torch.hub", "load", ["{victim}", "model", "local"]),
        ("torch", "hub.load", ["{victim}", "model", "local"]),
        ("torch", "load", ["{victim}"]),
        ("shutil", "rmtree", ["{victim}"]),
        ("pathlib", "Path.unlink", ["{victim}"]),
        (METADATA, "os.unlink", ["{victim}"]),
        (FILESYSTEM, "os.unlink", ["{victim}"]),
        (FILESYSTEM, "pickle.loads", [b""]),
        (FILESYSTEM, "FileSystem.rm_file", [None, "{victim}"]),
        (FILESYSTEM, "FileSystem.rename", [None, "{victim}", "{victim}.moved"]),
        (FILESYSTEM, "FileSystem.mkdir", [None, "{victim}.made"]),
        (FILESYSTEM, "FileSystemWriter", ["{victim}"]),
        (METADATA, "Metadata.__init__.__globals__.get", ["os"]),
    ],
)
def test_an_index_that_would_run_code_is_refused_and_runs_nothing(
    directory: Path, tmp_path: Path, module: str, name: str, arguments: list[Any]
):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    given = [text.format(victim=victim) if isinstance(text, str) else text for text in arguments]
    dcp.Tensors({("model", "weight"): torch.ones(2)}).write(directory, World())
    (directory / ".metadata").write_bytes(calling(module, name, *given))

    with pytest.raises(CheckpointError, match=rf"{module}\.{name}") as caught:
        dcp.read({"model": {"weight": torch.empty(2, device="meta")}}, directory)

    assert "cannot be read" in str(caught.value)
    assert victim.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"victim", directory.name}


def test_other_values_than_tensors_are_refused_since_torch_unpickles_them(directory: Path):
    dcp.Tensors({("model", "weight"): torch.ones(2)}).write(directory, World())
    index = pickle.loads((directory / ".metadata").read_bytes())
    index.state_dict_metadata["model/weight"] = BytesStorageMetadata()
    (directory / ".metadata").write_bytes(pickle.dumps(index))

    with pytest.raises(CheckpointError, match="BytesStorageMetadata"):
        dcp.read({"model": {"weight": torch.empty(2, device="meta")}}, directory)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_shards_are_written_stays_one(
    directory: Path, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*args: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr(FileSystemWriter, "write_data", interrupted)

    with pytest.raises(raised):
        dcp.Tensors({("model", "weight"): torch.ones(2)}).write(directory, World())


def test_an_error_of_torch_does_not_keep_its_traceback_and_with_it_the_group(directory: Path):
    with pytest.raises(CheckpointError) as caught:
        dcp.read({"model": {"weight": torch.empty(2, device="meta")}}, directory)

    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_the_pickle_that_is_refused_would_have_run(tmp_path: Path):
    """Else the test above would pass for another reason."""
    victim = tmp_path / "victim"
    for index in (
        calling("os", "unlink", str(victim)),
        calling(FILESYSTEM, "FileSystem.rm_file", None, str(victim)),
    ):
        victim.write_text("precious")
        pickle.loads(index)
        assert not victim.exists()


# ---- what cannot be read or written


def test_a_tensor_that_is_not_in_the_shards_is_an_error_that_names_them(directory: Path):
    dcp.Tensors({("model", "weight"): torch.ones(2)}).write(directory, World())

    with pytest.raises(CheckpointError, match=r"cannot be read.*bias") as caught:
        dcp.read({"model": {"bias": torch.empty(2, device="meta")}}, directory)
    assert str(directory) in str(caught.value)


def test_another_shape_than_that_of_the_head_is_an_error_that_names_the_shards(directory: Path):
    dcp.Tensors({("model", "weight"): torch.ones(2)}).write(directory, World())

    with pytest.raises(CheckpointError, match=r"cannot be read.*[Ss]ize") as caught:
        dcp.read({"model": {"weight": torch.empty(3, device="meta")}}, directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_file_that_is_missing_is_an_error_that_names_the_shards(directory: Path, name: str):
    dcp.Tensors({("model", "weight"): torch.ones(2)}).write(directory, World())
    (directory / name).unlink()

    with pytest.raises(CheckpointError, match=r"cannot be read.*No such file") as caught:
        dcp.read({"model": {"weight": torch.empty(2, device="meta")}}, directory)
    assert caught.value.errno == 2
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps({"state_dict_metadata": {}})])
def test_an_index_that_is_none_is_an_error_that_names_the_shards(directory: Path, content: bytes):
    dcp.Tensors({("model", "weight"): torch.ones(2)}).write(directory, World())
    (directory / ".metadata").write_bytes(content)

    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        dcp.read({"model": {"weight": torch.empty(2, device="meta")}}, directory)
    assert str(directory) in str(caught.value)


def test_a_disk_that_refuses_is_an_error_with_its_number(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("")

    with pytest.raises(CheckpointError, match="were not written") as caught:
        dcp.Tensors({("model", "weight"): torch.ones(2)}).write(path, World())
    assert caught.value.errno is not None
    assert os.strerror(caught.value.errno) in str(caught.value)
    assert str(path) in str(caught.value)


# ---- hashed while they are written


def test_shards_are_not_read_back_to_be_hashed(mesh: DeviceMesh, directory: Path, monkeypatch):
    large = distribute_tensor(torch.randn(3 << 18), mesh, [Shard(0)])
    tensors = dcp.split(example(mesh) | {"model": {"large": large, "tail": large[5:]}})[1]
    written = tensors.write(directory, World())
    names = {path.name for path in directory.iterdir()}
    content = {name: (directory / name).read_bytes() for name in names}
    read = []
    monkeypatch.setattr(shards, "_digest", lambda file: read.append(file.name))

    sealed = seal(directory, written)

    assert read == []
    assert names == {".metadata", "__0_0.distcp"}
    assert sealed == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in content.items()
    }


def test_a_full_disk_keeps_its_number_through_the_writer_of_torch(
    mesh: DeviceMesh, directory: Path, monkeypatch
):
    tensors = dcp.split({"model": {"w": distribute_tensor(torch.ones(1 << 19), mesh, [Shard(0)])}})[
        1
    ]

    def full(descriptor: int, data: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(filesystem, "write", full)

    with pytest.raises(CheckpointError, match="No space left") as caught:
        tensors.write(directory, World())

    assert caught.value.errno == errno.ENOSPC
