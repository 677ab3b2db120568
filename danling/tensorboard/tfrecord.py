"""TFRecord, the framing of TensorBoard's event files: length, checksum, data, checksum.

The length has 8 bytes, little-endian, and each of the masked CRC-32Cs 4
(`tensorflow/core/lib/io/record_writer.h`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["data_of", "frame", "frames", "masked_crc32c"]


_LENGTH: Final = struct.Struct("<Q")
_CHECKSUM: Final = struct.Struct("<I")
_HEAD: Final = 12  # the length and its checksum
_FOOT: Final = 4

_POLYNOMIAL: Final = np.uint32(0x82F63B78)  # of CRC-32C, with its bits reversed
_CHUNK: Final = 512  # bytes that are looked up at once
_ONES: Final = 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """The data as a record.

    Example:
        >>> len(frame(b"event"))
        21
    """
    length = _LENGTH.pack(len(data))
    head, foot = masked_crc32c(length), masked_crc32c(data)
    return b"".join((length, _CHECKSUM.pack(head), data, _CHECKSUM.pack(foot)))


def frames(content: bytes) -> Iterator[bytes]:
    """The whole records of a file, up to the first that is cut off; checksums are not compared.

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
    """The data of a record."""
    return record[_HEAD:-_FOOT]


def masked_crc32c(data: bytes) -> int:
    """The CRC-32C checksum of some bytes, rotated and shifted as in TFRecord files.

    Example:
        >>> hex(masked_crc32c(b"123456789"))
        '0xc78ab0e5'
    """
    crc = _crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ONES


def _crc32c(data: bytes) -> int:
    state = _ONES
    for start in range(0, len(data), _CHUNK):
        chunk = bytearray(data[start : start + _CHUNK])
        size = len(chunk)
        head = min(size, 4)  # what came before continues in the first four bytes
        mixed = int.from_bytes(chunk[:head], "little") ^ state
        chunk[:head] = (mixed & ((1 << 8 * head) - 1)).to_bytes(head, "little")
        places = np.frombuffer(chunk, np.uint8) + _OFFSETS[_CHUNK - size :]
        state = int(np.bitwise_xor.reduce(_TABLES[places])) ^ (mixed >> 8 * head)
    return state ^ _ONES


def _tables() -> NDArray[np.uint32]:
    """The tables of a byte's share of the checksum: a row for each number of bytes after it."""
    first: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = np.where(first & 1, (first >> 1) ^ _POLYNOMIAL, first >> 1).astype(np.uint32)
    tables = np.empty((_CHUNK, 256), np.uint32)
    tables[-1] = first
    for row in range(_CHUNK - 2, -1, -1):
        tables[row] = (tables[row + 1] >> 8) ^ first[tables[row + 1] & 0xFF]
    return tables.reshape(-1)


_TABLES: Final = _tables()
_OFFSETS: Final = np.arange(_CHUNK, dtype=np.int32) * 256
