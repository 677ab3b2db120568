"""TFRecord, the framing of TensorBoard's event files: length, checksum, data, checksum.

The length has 8 bytes, little-endian, and each of the masked CRC-32Cs 4
(`tensorflow/core/lib/io/record_writer.h`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from danling.crc32c import masked_crc32c

__all__ = ["data_of", "frame", "frames"]

_LENGTH: Final = struct.Struct("<Q")
_CHECKSUM: Final = struct.Struct("<I")
_HEAD: Final = 12  # the length and its checksum
_FOOT: Final = 4


def frame(data: bytes) -> bytes:
    """A record of these data.

    Example:
        >>> len(frame(b"event"))
        21
    """
    length = _LENGTH.pack(len(data))
    head, foot = masked_crc32c(length), masked_crc32c(data)
    return b"".join((length, _CHECKSUM.pack(head), data, _CHECKSUM.pack(foot)))


def frames(content: bytes) -> Iterator[bytes]:
    """The whole records of a file, up to one that is cut off; checksums are not compared.

    Example:
        >>> [data_of(record) for record in frames(frame(b"one") + frame(b"two")[:-1])]
        [b'one']
    """
    start = 0
    while start + _HEAD <= len(content):
        (length,) = _LENGTH.unpack_from(content, start)
        end = start + _HEAD + length + _FOOT
        if end > len(content):
            return
        yield content[start:end]
        start = end


def data_of(record: bytes) -> bytes:
    """What is in a record."""
    return record[_HEAD:-_FOOT]
