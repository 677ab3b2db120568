"""The primitives do one thing each, and never through a link."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from danling.files import filesystem


def test_a_new_file_follows_the_umask(tmp_path: Path):
    for mask, expected in ((0o022, 0o644), (0o077, 0o600), (0o000, 0o666)):
        before = os.umask(mask)
        path = tmp_path / f"{mask:o}"

        filesystem.close(filesystem.open_new(path))

        os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == expected


def test_a_new_file_is_never_one_that_is_there_nor_a_link(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")

    for name in ("victim", "link", "dangling"):
        with pytest.raises(FileExistsError):
            filesystem.open_new(tmp_path / name)

    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:3]))
    descriptor = filesystem.open_new(tmp_path / "file")

    filesystem.write(descriptor, b"0123456789")

    filesystem.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_hard_link_to_a_symbolic_link_does_not_lead_to_its_target(tmp_path: Path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")

    filesystem.link(tmp_path / "link", tmp_path / "second")

    assert (tmp_path / "second").is_symlink()


def test_the_directory_that_is_synchronised_must_be_one(tmp_path: Path):
    filesystem.make_directory(tmp_path / "directory")
    filesystem.fsync_directory(tmp_path / "directory")
    (tmp_path / "file").touch()

    with pytest.raises(NotADirectoryError):
        filesystem.fsync_directory(tmp_path / "file")


def test_what_a_file_system_lacks_is_told_from_what_failed():
    assert errno.EINVAL in filesystem.UNSUPPORTED
    assert {errno.EIO, errno.ENOSPC, errno.EDQUOT} & filesystem.UNSUPPORTED == set()
