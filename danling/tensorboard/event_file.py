"""TensorBoard's event files: they are written through a buffer, read, and cut back on resume.

A file is a sequence of `Event`s (protocol buffers) in frames of TFRecord. TensorBoard reads the
files of a directory in the order of their names, as one run
(`tensorboard/backend/event_processing`).
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, SupportsFloat, TypeVar

from danling.files.atomic import write_bytes
from danling.tensorboard.tfrecord import data_of, frame, frames

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

__all__ = [
    "EventWriter",
    "cut_events",
    "event_files",
    "find_values",
    "next_event_file",
    "read_events",
    "read_scalars",
    "replace_value",
]


T = TypeVar("T")

_PREFIX: Final = "events.out.tfevents."
_BUFFER: Final = 1 << 16


class EventWriter:
    """Writes one event file: one event per call, buffered, without a thread.

    TensorBoard's own writer opens and closes the file for every event, and torch's writes one
    event per value. Two rules keep the history of a run whole on every reader: a session starts
    with the step from which older points are void, and the steps of a tag only grow. One point that
    goes back makes TensorBoard drop all after it, so it is left out and counted in `dropped`.

    Args:
        directory: The folder of the file, whose name sorts after those of all event files there.
        start_step: The first step of this session: older points from it on are void.
        last_steps: The step of the last point of each tag in the sessions before.
        flush_seconds: The longest time in seconds that a point waits in the buffer while there are
            further calls.

    Attributes:
        path: The file.
        last_steps: The step of the last point of each tag.
        dropped: The number of points of each tag that were left out, as their step was not after
            the last one.
        nonfinite: The number of NaN and infinite points of each tag; they are written all the same.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> with EventWriter(getfixture("tmp_path")) as writer:
        ...     writer.add_scalars({"train/loss": 0.5, "val/loss": float("nan")}, step=10)
        >>> read_scalars(writer.path.parent)
        {'train/loss': [(10, 0.5)], 'val/loss': [(10, nan)]}
        >>> writer.nonfinite
        {'val/loss': 1}
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        start_step: int = 0,
        last_steps: Mapping[str, int] | None = None,
        flush_seconds: float = 10.0,
    ) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.path = next_event_file(directory)
        self.last_steps = dict(last_steps or {})
        self.dropped: dict[str, int] = {}
        self.nonfinite: dict[str, int] = {}
        self._flush_seconds = flush_seconds
        self._flushed = time.monotonic()
        self._pending = False
        self._event, self._summary = Event, Summary
        self._file = open(self.path, "ab", buffering=_BUFFER)  # noqa: SIM115  # until close()
        self._write(Event(wall_time=time.time(), step=start_step, file_version="brain.Event:2"))
        session = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=start_step, session_log=session))
        self.flush()

    def add_scalars(
        self, values: Mapping[str, SupportsFloat], step: int, wall_time: float | None = None
    ) -> None:
        """Write numbers of one step, as one event: Python's, numpy's, or tensors of one element.

        Raises:
            OSError: The file cannot be written.
            TypeError: A value is no number.
        """
        value_of = self._summary.Value
        points = []
        for tag, value in values.items():
            number = float(value)
            if not math.isfinite(number):
                self.nonfinite[tag] = self.nonfinite.get(tag, 0) + 1
            points.append(value_of(tag=tag, simple_value=number))
        self.add(points, step, wall_time)

    def add(
        self, values: Iterable[Summary.Value], step: int, wall_time: float | None = None
    ) -> None:
        """Write values of any kind, of one step, as one event.

        Raises:
            OSError: The file cannot be written.
        """
        kept = [value for value in values if self._is_next(value.tag, step)]
        if kept:
            wall_time = time.time() if wall_time is None else wall_time
            summary = self._summary(value=kept)
            self._write(self._event(wall_time=wall_time, step=step, summary=summary))

    def add_graph(self, graph: bytes) -> None:
        """Write the graph of the model, a serialised `GraphDef`.

        Raises:
            OSError: The file cannot be written.
        """
        self._write(self._event(wall_time=time.time(), graph_def=graph))

    def newer(self, values: Mapping[str, T], step: int) -> dict[str, T]:
        """The values whose tag has no point at this step or a later one yet."""
        return {tag: value for tag, value in values.items() if self.last_steps.get(tag, -1) < step}

    def flush(self) -> None:
        """Hand what was written to the operating system, where it survives this process.

        Raises:
            OSError: The file cannot be written.
        """
        self._flushed = time.monotonic()
        self._pending = False
        self._file.flush()

    @property
    def is_flush_due(self) -> bool:
        """Whether something has been waiting, and the last flush is `flush_seconds` ago."""
        return self._pending and time.monotonic() - self._flushed >= self._flush_seconds

    def close(self) -> None:
        """Flush and close the file; closing it twice does nothing.

        Raises:
            OSError: The file cannot be written.
        """
        self._file.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_next(self, tag: str, step: int) -> bool:
        if step <= self.last_steps.get(tag, -1):
            self.dropped[tag] = self.dropped.get(tag, 0) + 1
            return False
        self.last_steps[tag] = step
        return True

    def _write(self, event: Event) -> None:
        self._file.write(frame(event.SerializeToString()))
        self._pending = True
        if self.is_flush_due:
            self.flush()


def event_files(directory: str | os.PathLike[str]) -> list[Path]:
    """The event files of a run, in the order in which TensorBoard reads them."""
    return sorted(Path(directory).glob(f"{_PREFIX}*"))


def next_event_file(directory: str | os.PathLike[str]) -> Path:
    """A path for a new event file that sorts after all that are there, whatever the clock says."""
    moment = time.time_ns()
    for path in event_files(directory):
        digits = path.name.removeprefix(_PREFIX).partition(".")[0]
        if digits.isdecimal():
            moment = max(moment, int(digits.ljust(19, "0")[:19]) + 1)
    host = socket.gethostname().replace("/", "_")
    return Path(directory) / f"{_PREFIX}{moment:019d}.{host}.{os.getpid()}"


def read_events(path: str | os.PathLike[str]) -> Iterator[Event]:
    """The events of a file, up to the first that is cut off or broken: a killed run may end in one.

    Raises:
        OSError: The file cannot be read.
    """
    for _, event in _records(Path(path).read_bytes()):
        yield event


def read_scalars(
    directory: str | os.PathLike[str], steps: Container[int] | None = None
) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of every tag of a run, in the order of its files.

    Args:
        directory: The directory of the run.
        steps: The steps whose points are wanted; None for all.

    Raises:
        OSError: A file cannot be read.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for event in chain.from_iterable(map(read_events, event_files(directory))):
        for value in event.summary.value if steps is None or event.step in steps else ():
            if value.HasField("simple_value"):
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points


def find_values(
    path: str | os.PathLike[str], prefix: str, head: int | None = None
) -> dict[str, Summary.Value]:
    """The last value of each tag that starts with a prefix; other events are not decoded.

    Args:
        path: An event file.
        prefix: The start of the tags.
        head: The number of bytes to look at; None for the whole file.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read() if head is None else file.read(head)
    records = (record for record in frames(data) if prefix.encode() in record)
    values = chain.from_iterable(event.summary.value for _, event in _decoded(records))
    return {value.tag: value for value in values if value.tag.startswith(prefix)}


def replace_value(path: str | os.PathLike[str], value: Summary.Value) -> bool:
    """Put a value in the place of the first one of its tag, which keeps its step and its time.

    Where the event has the same size as before, its bytes are overwritten; else the file is
    replaced. Either way a reader meets the old value or the new one.

    Returns:
        Whether the file has a value of this tag.

    Raises:
        OSError: The file cannot be read or written.
    """
    data = Path(path).read_bytes()
    start = 0
    for record, event in _records(data):
        places = [index for index, old in enumerate(event.summary.value) if old.tag == value.tag]
        if places:
            event.summary.value[places[0]].CopyFrom(value)
            _overwrite(path, data, start, len(record), frame(event.SerializeToString()))
            return True
        start += len(record)
    return False


def _overwrite(
    path: str | os.PathLike[str], data: bytes, start: int, size: int, record: bytes
) -> None:
    """Put a record in the place of another one, in a file with this data."""
    if len(record) != size:
        write_bytes(path, data[:start] + record + data[start + size :])
        return
    with open(path, "rb+") as file:
        file.seek(start)
        file.write(record)


def cut_events(
    directory: str | os.PathLike[str], keep: Callable[[str, int], bool]
) -> dict[str, int]:
    """Remove points from the files of a run.

    TensorBoard's two backends and its `EventAccumulator` each have their own rule for the points
    that a resumed run has abandoned, and none drops those of a tag that gets no new ones. Without
    them in the files there is nothing to disagree about. A file changes in one step or not at all.

    Args:
        directory: The directory of the run; nobody may be writing in it.
        keep: Tells whether to keep the point of a tag at a step.

    Returns:
        The step of the last point of each tag that stays.

    Raises:
        OSError: A file cannot be read or written.
    """
    last_steps: dict[str, int] = {}
    for path in event_files(directory):
        data = path.read_bytes()
        kept = bytearray()
        for record, event in _records(data):
            values = [value for value in event.summary.value if keep(value.tag, event.step)]
            last_steps |= {value.tag: event.step for value in values}
            is_whole = len(values) == len(event.summary.value)
            kept += record if is_whole else _without_lost(event, values)
        if kept != data:
            write_bytes(path, bytes(kept))
    return last_steps


def _without_lost(event: Event, values: list[Summary.Value]) -> bytes:
    if not values:
        return b""
    del event.summary.value[:]
    event.summary.value.extend(values)
    return frame(event.SerializeToString())


def _records(data: bytes) -> Iterator[tuple[bytes, Event]]:
    return _decoded(frames(data))


def _decoded(records: Iterable[bytes]) -> Iterator[tuple[bytes, Event]]:
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    for record in records:
        try:
            event = Event.FromString(data_of(record))
        except DecodeError:
            return
        yield record, event
