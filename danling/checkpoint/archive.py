"""The check of a file before `torch.load` reads it: a small safe archive of a bounded value.

`torch.load(weights_only=True)` runs no code of a file, and trusts it otherwise: lists that are
shared often enough are 10^40 items for whoever walks them, a tuple that is nested a million times
ends the process when it is hashed, and a few bytes ask for any amount of memory. So the zip archive
is looked at first, and the pickle in it is followed with the sizes of its values alone.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

from danling.files.json import MAX_DEPTH

__all__ = ["has_checksums", "problem", "wrong_record"]


_LOCAL_HEADER = 30  # bytes, before a name and an extra field
_MAX_LEVELS = 5 * MAX_DEPTH  # a level of a value is up to four of what is written for it
_MAX_ITEMS = 4_000_000  # that a walk meets where values are shared, over one for each byte
_MAX_EMPTY = 200_000  # containers that are begun before the first of them has anything in it
_BROKEN = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, UnicodeError)
_SIZED = "bytearray", "Tensor"  # names of what makes memory out of a number


def problem(file: BinaryIO) -> str | None:
    """The fault of a file as an archive of torch; None if it can be loaded.

    Raises:
        OSError: The file cannot be read.
    """
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        return "is not a checkpoint: it is no zip archive of torch"
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        found = _wrong_members(file, members)
        if found is None:
            found = _wrong_pickle(_content(file, _pickles(members)[0]))
    except _BROKEN as error:
        return f"is damaged: {error}"
    return None if found is None else f"is not a checkpoint: {found}"


def has_checksums(file: BinaryIO) -> bool:
    """Whether the records of an archive were written with their CRC-32."""
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        return any(member.CRC for member in archive.infolist())


def wrong_record(file: BinaryIO) -> str | None:
    """The fault of a record of an archive by its CRC-32; None if it has none."""
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            name = archive.testzip()
    except _BROKEN as error:
        return str(error)
    return None if name is None else f"record {name!r} has another CRC-32"


def _wrong_members(file: BinaryIO, members: list[zipfile.ZipInfo]) -> str | None:
    size = os.fstat(file.fileno()).st_size
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        return "its records are compressed"
    if sum(member.file_size for member in members) > size:
        return "its records are larger than the file"
    if len({member.filename for member in members}) < len(members):
        return "two of its records have one name"
    if len({member.filename.partition("/")[0] for member in members}) > 1:
        return "its records are in several folders"
    if len(_pickles(members)) != 1:
        return "it has no data.pkl"
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            return "its records overlap"
        end = _start(file, member) + member.file_size
    return "its records overlap" if end > size else None


def _start(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """The offset of the content of a record: after its header, its name and its padding."""
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER)
    lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return member.header_offset + _LOCAL_HEADER + sum(lengths)


def _content(file: BinaryIO, member: zipfile.ZipInfo) -> bytes:
    """The content of a record, with or without a checksum."""
    file.seek(_start(file, member))
    return file.read(member.file_size)


def _pickles(members: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    return [member for member in members if member.filename.partition("/")[2] == "data.pkl"]


class _Value:
    """The size of a value, in items that a walk meets, and its levels; not the value itself."""

    __slots__ = ("is_held", "items", "levels", "name", "number")

    def __init__(self, name: str = "", number: int | None = None) -> None:
        self.items = self.levels = 1
        self.is_held = False
        self.name = name
        self.number = number

    def hold(self, inner: list[_Value]) -> None:
        if self.is_held or self in inner:  # what grows later would make what was counted wrong
            raise _RefusedError("a value in it contains itself")
        for value in inner:
            value.is_held = True
            self.items += value.items
            self.levels = max(self.levels, value.levels + 1)


class _RefusedError(Exception):
    """Says why a pickle is not read."""


def _wrong_pickle(data: bytes) -> str | None:
    try:
        _Follower(len(data)).follow(data)
    except _RefusedError as error:
        return str(error)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return f"its pickle is broken ({type(error).__name__}: {error})"
    return None


class _Follower:
    """Follows the opcodes of a pickle, with a `_Value` for each value."""

    def __init__(self, size: int) -> None:
        self._max_items = _MAX_ITEMS + size
        self._empty = 0
        self._stack: list[_Value] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Value] = {}
        self._actions: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda _: None,
            "MARK": lambda _: self._marks.append(len(self._stack)),
            "GLOBAL": lambda name: self._stack.append(_Value(name=name)),
            "BINPERSID": lambda _: self._make(self._pop(1)),
            "BINPUT": self._remember,
            "LONG_BINPUT": self._remember,
            "BINGET": lambda number: self._stack.append(self._memo[number]),
            "LONG_BINGET": lambda number: self._stack.append(self._memo[number]),
            "TUPLE": lambda _: self._make(self._to_mark()),
            "TUPLE1": lambda _: self._make(self._pop(1)),
            "TUPLE2": lambda _: self._make(self._pop(2)),
            "TUPLE3": lambda _: self._make(self._pop(3)),
            "APPEND": lambda _: self._grow(self._pop(1)),
            "APPENDS": lambda _: self._grow(self._to_mark()),
            "SETITEM": lambda _: self._grow(self._pop(2)),
            "SETITEMS": lambda _: self._grow(self._to_mark()),
            "BUILD": lambda _: self._grow(self._pop(1)),
            "REDUCE": lambda _: self._call(),
            "NEWOBJ": lambda _: self._call(),
        }

    def follow(self, data: bytes) -> None:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return
            action = self._actions.get(opcode.name)
            if action is not None:
                action(argument)
            elif opcode.stack_before:
                raise _RefusedError(f"its pickle has the instruction {opcode.name}")
            else:  # a number, a text or an empty container
                number = argument if type(argument) is int else None
                self._stack.append(_Value(number=number))
                self._empty += opcode.name.startswith("EMPTY_")
                if self._empty > _MAX_EMPTY:
                    raise _RefusedError(f"its values are nested deeper than {MAX_DEPTH} levels")

    def _remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _pop(self, count: int) -> list[_Value]:
        values = self._stack[-count:]
        if len(values) < count:
            raise _RefusedError("its pickle takes more than it has")
        del self._stack[-count:]
        return values

    def _to_mark(self) -> list[_Value]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _make(self, inner: list[_Value]) -> None:
        self._stack.append(_Value())
        self._grow(inner)

    def _grow(self, inner: list[_Value]) -> None:
        outer = self._stack[-1]
        self._empty -= outer.items == 1 and self._empty > 0
        outer.hold(inner)
        if outer.items > self._max_items:
            raise _RefusedError("its values are shared so often that they cannot be walked")
        if outer.levels > _MAX_LEVELS:
            raise _RefusedError(f"its values are nested deeper than {MAX_DEPTH} levels")
        if len(inner) == 1:
            outer.number = inner[0].number  # of a tuple of one number, which may be a size

    def _call(self) -> None:
        arguments, function = self._pop(1)[0], self._pop(1)[0]
        if not function.name:
            raise _RefusedError("its pickle calls what is not a name")
        if function.name.endswith(_SIZED) and arguments.number is not None:
            raise _RefusedError(f"its pickle asks for memory with {function.name!r}")
        self._make([arguments])
