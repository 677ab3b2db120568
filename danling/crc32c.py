"""CRC-32C, the checksum of TensorBoard's event files, with numpy instead of a loop over bytes.

TensorBoard without TensorFlow loops over bytes in Python, which is most of the time that a scalar
takes. A CRC is linear over bits: each byte gives, by its value and its distance from the end, 32
bits to be XORed, and numpy looks all of them up at once (RFC 3720, appendix B.4, has the
polynomial).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["masked_crc32c"]

_POLYNOMIAL: Final = np.uint32(0x82F63B78)
_CHUNK: Final = 512  # bytes that are looked up at once
_ONES: Final = 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes, rotated and shifted as in TFRecord files.

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
    """What a byte adds to the checksum, by its value and by how many bytes follow it in a chunk."""
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
