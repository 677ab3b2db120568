"""A file is the old one or the new one, and nothing is left beside it."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from danling.errors import ConfigError
from danling.files.atomic import write_bytes, write_json, write_text


def test_text_replaces_the_old_file_with_its_line_ends(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "a much longer old text")

    write_text(path, "new\r\nü\n")

    assert path.read_bytes() == "new\r\nü\n".encode()


def test_json_is_valid_whatever_the_numbers(tmp_path):
    write_json(tmp_path / "file.json", {"loss": float("nan"), "best": [float("inf")]})

    content = (tmp_path / "file.json").read_text()

    assert json.loads(content, parse_constant=pytest.fail) == {"loss": "NaN", "best": ["Infinity"]}


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o000, 0o666)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file.txt", "text")
    finally:
        os.umask(before)

    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == mode


def test_a_directory_in_the_way_is_an_error_that_names_it_and_leaves_nothing(tmp_path):
    (tmp_path / "target" / "inner").mkdir(parents=True)

    with pytest.raises(IsADirectoryError) as caught:
        write_text(tmp_path / "target", "text")

    assert caught.value.filename == str(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space left on device") as caught:
        write_text(path, "new", fsync=True)

    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file.txt", "old")]


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "missing" / "file.txt", "text")

    assert caught.value.filename == str(tmp_path / "missing" / "file.txt")


def test_a_value_that_is_no_json_changes_nothing(tmp_path):
    write_json(tmp_path / "file.json", {"a": 1})

    with pytest.raises(ConfigError):
        write_json(tmp_path / "file.json", {"a": object()})

    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_is_replaced_and_its_target_untouched(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "file.txt").symlink_to(victim)

    write_text(tmp_path / "file.txt", "text")

    assert victim.read_text() == "precious"
    assert not (tmp_path / "file.txt").is_symlink()


def test_a_name_of_the_longest_length_can_be_written(tmp_path):
    write_bytes(tmp_path / ("n" * 255), b"text", fsync=True)

    assert (tmp_path / ("n" * 255)).read_bytes() == b"text"


def test_readers_never_see_a_half_written_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, list(range(1000)))
    stop = threading.Event()

    def write():
        while not stop.is_set():
            write_json(path, list(range(1000)))

    writer = threading.Thread(target=write)
    writer.start()
    lengths = {len(json.loads(path.read_text())) for _ in range(200)}
    stop.set()
    writer.join()

    assert lengths == {1000}


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device"])
def test_what_is_no_file_is_written_to_and_stays(tmp_path, kind):
    path = place = tmp_path / "target"
    if kind == "pipe":
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    else:
        ours, theirs = os.openpty()
        place = Path(os.ttyname(theirs))  # a device of this test alone
        path.symlink_to(place)
        path = path if kind.startswith("link") else place
        reader = ours
    before = place.stat()

    write_text(path, "hello")

    assert os.read(reader, 100) == b"hello"
    after = place.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert list(tmp_path.iterdir()) == [tmp_path / "target"]
