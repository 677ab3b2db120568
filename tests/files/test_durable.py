"""A file system that lacks a call is no error, and one warning; any other failure is an error."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from danling.files import durable, filesystem


@pytest.fixture(autouse=True)
def first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_warned", set())


def lacking(number: int):
    def call(*_: object) -> None:
        raise OSError(number, "as the disk says")

    return call


def test_a_missing_fsync_is_one_warning_for_each_directory(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(filesystem, "fsync_directory", lacking(errno.EINVAL))

    durable.fsync_directory(tmp_path)
    durable.fsync_directory(tmp_path)

    assert len(caplog.records) == 1
    assert str(tmp_path) in caplog.text


def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(filesystem, "fsync_directory", lacking(errno.EIO))

    with pytest.raises(OSError, match="as the disk says"):
        durable.fsync_directory(tmp_path)


def test_a_file_has_a_second_name_where_there_are_links(tmp_path: Path, monkeypatch):
    (tmp_path / "one").write_text("content")

    assert durable.link(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two").read_text() == "content"

    monkeypatch.setattr(filesystem, "link", lacking(errno.EPERM))
    assert not durable.link(tmp_path / "one", tmp_path / "three")
    assert not (tmp_path / "three").exists()
