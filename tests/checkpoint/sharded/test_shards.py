"""The files that processes have written are durable, hashed, found beside the head, and removed."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from danling.checkpoint.sharded import shards
from danling.errors import CheckpointError
from danling.files import filesystem
from danling.files.failpoints import set_failpoints
from tests.support.crash_model import exit_status

FILES = {".metadata": b"an index", "__0_0.distcp": b"one shard", "__1_0.distcp": bytes(3000)}


@pytest.fixture(autouse=True)
def no_failpoints() -> Iterator[None]:
    yield
    set_failpoints("")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = shards.new_directory(tmp_path, 12)
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    return made


@pytest.fixture
def manifest(directory: Path) -> shards.Manifest:
    return shards.finish(directory, [shards.seal(directory, FILES)])


# ---- written


def test_a_directory_has_the_step_in_its_name_and_is_another_one_each_time(tmp_path: Path):
    made = [shards.new_directory(tmp_path, step) for step in (7, 7, 1200)]

    steps = [re.fullmatch(r"shards-(\d+)-[0-9a-f]{8}", path.name) for path in made]
    assert [match and match[1] for match in steps] == ["7", "7", "1200"]
    assert len(set(made)) == 3
    assert shards.directories(tmp_path) == {path.name for path in made}


def test_a_head_says_of_each_shard_of_each_process_its_size_and_its_digest(directory: Path):
    parts = [shards.seal(directory, [".metadata", "__0_0.distcp"])]
    parts += [shards.seal(directory, ["__1_0.distcp"]), shards.seal(directory, [])]

    manifest = shards.finish(directory, parts)

    assert manifest["directory"] == directory.name
    assert manifest["files"] == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in FILES.items()
    }
    assert shards.total(manifest) == sum(map(len, FILES.values()))
    assert shards.total(None) == 0


def gone(path: Path) -> None:
    path.unlink()


def shorter(path: Path) -> None:
    os.truncate(path, 3)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [gone, shorter, a_directory])
def test_a_shard_that_the_main_process_does_not_see_is_a_matter_of_shared_storage(
    directory: Path, change: Callable[[Path], None]
):
    sealed = shards.seal(directory, FILES)
    change(directory / "__1_0.distcp")

    with pytest.raises(CheckpointError, match=r"__1_0\.distcp .*storage that all machines share"):
        shards.finish(directory, [sealed])


@pytest.mark.parametrize(
    ("failpoint", "number"),
    [("shards.after_write", errno.ENOSPC), ("shards.after_seal", errno.EIO)],
)
def test_an_error_of_the_disk_keeps_its_number_and_names_the_directory(
    directory: Path, failpoint: str, number: int
):
    set_failpoints(f"{failpoint}=raise:{number}")

    with pytest.raises(CheckpointError, match="shards of a checkpoint were not written") as caught:
        shards.finish(directory, [shards.seal(directory, FILES)])

    assert caught.value.errno == number
    assert caught.value.filename == str(directory)
    assert os.strerror(number) in str(caught.value)


@pytest.mark.parametrize("primitive", ["fsync_file", "fsync_directory"])
def test_a_synchronisation_that_fails_is_an_error(directory: Path, primitive: str, monkeypatch):
    def fail(_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(filesystem, primitive, fail)

    with pytest.raises(CheckpointError) as caught:
        shards.finish(directory, [shards.seal(directory, FILES)])
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("number", sorted(filesystem.UNSUPPORTED))
def test_where_nothing_can_be_synchronised_shards_are_written_all_the_same(
    tmp_path: Path, number: int, monkeypatch
):
    def unsupported(_: object) -> None:
        raise OSError(number, os.strerror(number))

    for primitive in ("fsync_file", "fsync_directory"):
        monkeypatch.setattr(filesystem, primitive, unsupported)

    made = shards.new_directory(tmp_path, 1)
    (made / "a").write_bytes(b"a")

    assert set(shards.finish(made, [shards.seal(made, ["a"])])["files"]) == {"a"}


def test_shards_are_durable_in_a_durable_directory(tmp_path: Path, monkeypatch):
    synced: list[str] = []

    def note(primitive: str, path_of: Callable[[Any], str]) -> None:
        original = getattr(filesystem, primitive)

        def call(argument: Any) -> None:
            synced.append(os.path.relpath(path_of(argument), tmp_path))
            original(argument)

        monkeypatch.setattr(filesystem, primitive, call)

    note("fsync_file", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    note("fsync_directory", str)

    made = shards.new_directory(tmp_path, 1)
    (made / "a").write_bytes(b"a")
    (made / "b").write_bytes(b"b")
    assert synced == ["."]
    sealed = [shards.seal(made, ["a"]), shards.seal(made, ["b"])]
    assert synced == [".", f"{made.name}/a", f"{made.name}/b"]
    shards.finish(made, sealed)

    assert synced[3:] == [made.name]


# ---- found


def test_whole_shards_have_no_damage(directory: Path, manifest: shards.Manifest):
    assert shards.damage(directory, manifest) is None
    assert shards.damage(directory, {"directory": directory.name, "files": {}}) is None


def test_shards_that_are_gone_are_damage(directory: Path, manifest: shards.Manifest):
    shutil.rmtree(directory)

    problem = shards.damage(directory, manifest)

    assert problem == f"its shards are gone: there is no {directory.name} beside it"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_took_the_place_of_the_directory_is_damage(
    tmp_path: Path, directory: Path, manifest: shards.Manifest, kind: str
):
    directory.rename(tmp_path / "elsewhere")
    if kind == "link":
        directory.symlink_to(tmp_path / "elsewhere")
    else:
        directory.write_text("")

    assert "its shards are gone" in str(shards.damage(directory, manifest))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (gone, "cannot be read: No such file or directory"),
        (a_directory, "cannot be read: Is a directory"),
        (shorter, "has another content than was written"),
        (longer, "has another content than was written"),
        (empty, "has another content than was written"),
        (flipped, "has another content than was written"),
    ],
)
def test_a_shard_that_is_not_what_was_written_is_damage(
    directory: Path,
    manifest: shards.Manifest,
    name: str,
    change: Callable[[Path], None],
    problem: str,
):
    change(directory / name)

    assert shards.damage(directory, manifest) == f"its shard {directory.name}/{name} {problem}"


def test_a_bit_flipped_in_any_byte_of_a_shard_is_damage(directory: Path, manifest: shards.Manifest):
    path = directory / "__0_0.distcp"
    content = path.read_bytes()

    for offset in range(len(content)):
        changed = bytearray(content)
        changed[offset] ^= 1 << offset % 8
        path.write_bytes(changed)
        assert shards.damage(directory, manifest) is not None


@pytest.mark.parametrize("form", ["../victim", "{parent}/victim", "a/../../victim"])
def test_a_name_that_leads_out_of_the_directory_is_damage(
    tmp_path: Path, directory: Path, manifest: shards.Manifest, form: str
):
    victim = tmp_path / "victim"
    victim.write_bytes(FILES["__0_0.distcp"])
    (directory / "a").mkdir()
    name = form.format(parent=tmp_path)
    forged = {**manifest, "files": {**manifest["files"], name: manifest["files"]["__0_0.distcp"]}}
    assert (directory / name).samefile(victim)

    problem = shards.damage(directory, forged)

    assert problem == f"it names the shard {name!r}, outside of {directory.name}"


def test_a_pipe_in_the_place_of_a_shard_is_damage_and_does_not_hang(
    directory: Path, manifest: shards.Manifest
):
    (directory / "__0_0.distcp").unlink()
    os.mkfifo(directory / "__0_0.distcp")

    def child() -> None:
        signal.alarm(1)
        assert "__0_0.distcp" in str(shards.damage(directory, manifest))

    assert exit_status(child) == 0


def test_shards_are_beside_their_head_also_through_a_link_to_it(
    tmp_path: Path, directory: Path, manifest: shards.Manifest
):
    head = directory.parent / "latest.pth"
    head.write_bytes(b"")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "mine.pth"
    link.symlink_to(head)

    assert shards.directory_of(head, manifest) == directory
    assert shards.directory_of(link, manifest) == directory


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "",
        ".",
        "/shards-1-5f0c9a2e",
        "../shards-1-5f0c9a2e",
        "shards-1-5f0c9a2e/..",
        "shards-1-5f0c9a2e\n",
        "shards-1-5F0C9A2E",
        "shards-\u0661-5f0c9a2e",
        "shards-1",
        None,
    ],
)
def test_a_head_that_names_something_else_is_refused(tmp_path: Path, name: str | None):
    with pytest.raises(ValueError, match="is no directory of shards"):
        shards.directory_of(tmp_path / "latest.pth", {"directory": name, "files": {}})


def test_only_directories_of_shards_are_taken_for_such(tmp_path: Path, directory: Path):
    for name in ("shards-1", "shards-x-5f0c9a2e", "old-shards-1-5f0c9a2e", "shards-1-5f0c9a2e.bak"):
        (tmp_path / name).mkdir()

    assert shards.directories(tmp_path) == {directory.name}
    assert shards.directories(tmp_path / "nowhere") == set()


# ---- removed


def test_shards_are_removed_once(directory: Path, caplog):
    assert shards.remove(directory)
    assert not directory.exists()
    assert not shards.remove(directory)
    assert caplog.text == ""


def test_shards_that_cannot_be_removed_are_a_warning(directory: Path, monkeypatch, caplog):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "rmdir", refuse)

    assert not shards.remove(directory)
    assert f"{directory} cannot be removed (Permission denied): remove it yourself" in caplog.text


def test_a_link_in_the_place_of_shards_does_not_lead_to_what_is_removed(
    tmp_path: Path, directory: Path, caplog
):
    link = tmp_path / "shards-3-00000000"
    link.symlink_to(directory)

    assert not shards.remove(link)
    assert {path.name for path in directory.iterdir()} == set(FILES)
    assert "cannot be removed" in caplog.text


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EMFILE])
def test_a_shard_that_cannot_be_opened_now_is_not_called_damaged(
    directory: Path, manifest: shards.Manifest, number: int, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(shards, "_at_once", refuse)

    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        shards.damage(directory, manifest)

    assert caught.value.errno == number
