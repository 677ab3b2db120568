"""Records are those of TensorFlow, and a broken end is no record."""

from __future__ import annotations

import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from danling.tensorboard.tfrecord import data_of, frame, frames


def test_tensorboard_s_reader_gets_the_data_and_finds_the_checksums_right(tmp_path):
    path = tmp_path / "records"
    path.write_bytes(frame(b"one") + frame(b"") + frame(b"\xff" * 1000))

    reader = PyRecordReader_New(str(path))  # raises at a wrong checksum
    found = []
    for _ in range(3):
        reader.GetNext()
        found.append(reader.record())

    assert found == [b"one", b"", b"\xff" * 1000]


@pytest.mark.parametrize("lost", [1, 5, 12, 18])
def test_a_record_that_is_cut_off_is_none(lost: int):
    content = frame(b"one") + frame(b"two")[:-lost]

    assert [data_of(record) for record in frames(content)] == [b"one"]


def test_a_length_beyond_the_end_is_no_record():
    assert list(frames(b"\xff" * 12)) == []
