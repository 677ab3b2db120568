"""The records are those of TensorFlow, checksums included, and a broken end is no record."""

from __future__ import annotations

import random

import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as expected_crc

from danling.tensorboard.tfrecord import data_of, frame, frames, masked_crc32c

LENGTHS = [*range(12), 150, 508, *range(510, 520), 1023, 1024, 1025, 5000]


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


@pytest.mark.parametrize("length", LENGTHS)
def test_the_checksum_equals_tensorboard_s_for_every_length(length: int):
    data = random.Random(length).randbytes(length)

    assert masked_crc32c(data) == expected_crc(data)


def test_the_checksum_equals_the_check_value_of_the_standard():
    rotated = masked_crc32c(b"123456789") - 0xA282EAD8 & 0xFFFFFFFF

    assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == 0xE3069283
