"""The checksum is the one that TensorBoard computes."""

from __future__ import annotations

import random

import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as expected_crc

from danling.tensorboard.tfrecord import masked_crc32c

LENGTHS = [*range(12), 150, 508, *range(510, 520), 1023, 1024, 1025, 5000]


@pytest.mark.parametrize("length", LENGTHS)
def test_it_equals_tensorboard_s_for_every_length(length: int):
    data = random.Random(length).randbytes(length)

    assert masked_crc32c(data) == expected_crc(data)


def test_it_equals_the_check_value_of_the_standard():
    rotated = masked_crc32c(b"123456789") - 0xA282EAD8 & 0xFFFFFFFF

    assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == 0xE3069283
