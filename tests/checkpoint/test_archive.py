"""Files that were made to hang, to fill the memory or to end the process are refused at once."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import pickle
import random
import resource
import shutil
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danling.checkpoint.encoding import encode
from danling.checkpoint.reading import read_checkpoint, trailer_of
from danling.checkpoint.store import CheckpointStore
from danling.checkpoint.trailer import Trailer
from danling.errors import CheckpointError, DanLingError
from danling.files.failpoints import set_failpoints
from tests.support.crash_model import exit_status

Make = Callable[[Path], None]


def commit(directory: Path, step: int = 1, *names: str) -> Path:
    store = CheckpointStore(directory, run="a-run")
    contents = {"model": {"weight": torch.arange(8.0) + step}, "optimizer": {"name": "sgd"}}
    return store.commit(contents, names or ("latest",), global_step=step, epoch=step)


# Pickles, written by hand: PROTO 2, then what is given, then STOP


def archive(pickled: bytes, records: dict[str, bytes] | None = None) -> Make:
    """A zip archive of torch around a pickle."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", b"\x80\x02" + pickled + b".")
            file.writestr("a/byteorder", b"little")
            file.writestr("a/version", b"3\n")
            for name, content in (records or {}).items():
                file.writestr(name, content)

    return make


def with_format(value: bytes) -> bytes:
    """`{"format": 1, "callbacks": value}`."""
    return b"}(X\x06\x00\x00\x00formatK\x01X\x09\x00\x00\x00callbacks" + value + b"u"


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def doubled(empty: bytes, fill: bytes, levels: int) -> bytes:
    """A container of two of a container of two ...: 2^levels items."""
    value = empty
    for level in range(levels):
        remember = b"r" + struct.pack("<I", level)
        value += remember + b"0" + empty + b"(" + (b"j" + struct.pack("<I", level)) * 2 + fill
    return value


def doubled_tuples(levels: int) -> bytes:
    value = b")"
    for level in range(levels):
        value += b"r" + struct.pack("<I", level) + b"j" + struct.pack("<I", level) + b"\x86"
    return value


def doubled_late(levels: int) -> bytes:
    """The same, but each list is filled after it was put into the one before."""
    value = b"]r\x00\x00\x00\x00"
    for level in range(1, levels):
        number = struct.pack("<I", level)
        value += b"]r" + number + b"0j" + struct.pack("<I", level - 1)
        value += b"(" + (b"j" + number) * 2 + b"e0"
    return value + b"j\x00\x00\x00\x00"


LISTS = doubled(b"]", b"e", 133)
NUMBER = b"\x8a\x05" + (10**11).to_bytes(5, "little")

PICKLES: dict[str, bytes] = {
    "lists that are 10^40 items": with_format(LISTS),
    "lists that are 10^9 items": with_format(doubled(b"]", b"e", 30)),
    "tuples that are 10^40 items": with_format(doubled_tuples(133)),
    "lists that are filled late": with_format(doubled_late(133)),
    "sets": with_format(b"\x8f(" + doubled_tuples(133) + b"\x90"),
    "a list in itself": with_format(b"]q\x00h\x00a"),
    "a dict in itself": with_format(b"}q\x00K\x01h\x00s"),
    "lists in lists": with_format(b"]" * 1_000_000 + b"a" * 999_999),
    "tuples in tuples": with_format(b")" + b"\x85" * 1_000_000),
    "dicts in dicts": with_format(b"}K\x01" * 100_000 + b"K\x01" + b"s" * 100_000),
    "a deep tuple as a key": with_format(b"})" + b"\x85" * 1_000_000 + b"K\x01s"),
    "a deep tuple in a set": with_format(b"\x8f()" + b"\x85" * 1_000_000 + b"\x90"),
    "a little too deep": with_format(b"]" * 104 + b"a" * 103),
    "shared lists as a function": with_format(LISTS + b")R"),
    "shared lists as a class": with_format(LISTS + b")\x81"),
    "shared lists as a storage": with_format(
        b"(X\x07\x00\x00\x00storage"
        + name("torch", "FloatStorage")
        + LISTS
        + b"X\x03\x00\x00\x00cpuK\x01tQ"
    ),
    "a byte array of 10^11": with_format(name("__builtin__", "bytearray") + NUMBER + b"\x85R"),
    "a byte array of 10^9": with_format(
        name("__builtin__", "bytearray") + b"J\x00\xca\x9a\x3b\x85R"
    ),
    "a tensor of 10^11": with_format(name("torch", "FloatTensor") + NUMBER + b"\x85R"),
    "a new tensor of 10^11": with_format(name("torch", "FloatTensor") + NUMBER + b"\x85\x81"),
    "a function": with_format(name("os", "system") + b"X\x04\x00\x00\x00true\x85R"),
    "a class": with_format(name("subprocess", "Popen") + b"X\x04\x00\x00\x00true\x85R"),
    "an instruction that torch has not": with_format(b"\x94"),
    "a frame": b"\x95" + bytes(8) + with_format(b"N"),
    "no STOP": with_format(b"N") + b"("[:0] + b"N" * 3 + b"0" * 9,
    "a mark too many": with_format(b"((N"),
    "no mark": b"}u",
    "memory that was not remembered": with_format(b"h\x09"),
    "nothing": b"",
    "a text that is longer than the file": with_format(b"X\xff\xff\xff\x7fabc"),
    "a number for a file": b"K\x01",
    "a list for a file": b"]",
    "no format": b"}",
    "a format of True": b"}X\x06\x00\x00\x00format\x88s",
    "a format of 600 digits": b"}X\x06\x00\x00\x00format\x8a\xff" + b"\x7f" * 255 + b"s",
    "a format below all": b"}X\x06\x00\x00\x00formatJ\xff\xff\xff\xffs",
    "a format of shared lists": b"}X\x06\x00\x00\x00format" + LISTS + b"s",
}


def saved(value: Any) -> Make:
    return lambda path: torch.save({"format": 1, **value}, path)


def tagged(**value: Any) -> Make:
    return saved({"callbacks": {"__danling__": "numpy.generic", **value}})


SHARDS = {"directory": "shards-1-00000000", "files": {}}
VALUES: dict[str, Make] = {
    "a meta tensor of 10^13": saved({"model": {"w": torch.empty(10**13, device="meta")}}),
    "a meta tensor of 10^13 of shards": saved(
        {"model": {"w": torch.empty(10**13, device="meta")}, "shards": SHARDS}
    ),
    "one that the shards promise": saved(
        {
            "model": {"w": torch.empty(10**13, device="meta")},
            "shards": {**SHARDS, "files": {"a": [10**15, "0" * 64]}},
        }
    ),
    "a small meta tensor": saved({"model": {"w": torch.empty(3, device="meta")}}),
    "a view of 10^13 of one element": saved({"model": {"w": torch.zeros(1).expand(10**13)}}),
    "a manifest that is a list": saved({"shards": [1]}),
    "a manifest with shared names": saved({"shards": {"directory": ["x"], "files": {}}}),
    "a numpy text of 10^9": tagged(dtype="<U1000000000", value="a"),
    "a numpy array in an item": tagged(dtype="(100000000,)f8", value=1.0),
    "a numpy dtype that is none": tagged(dtype="nonsense", value=1.0),
    "a run that is a number": saved({"run": {"uuid": 10**600}}),
    "a run that is a list": saved({"run": {"uuid": [1]}}),
    "a date that is none": saved({"config": {"__danling__": "date", "value": "x"}}),
    "a time span of 10^600": saved({"config": {"__danling__": "timedelta", "value": (10**600,)}}),
    "an unknown tag": saved({"config": {"__danling__": ["x"]}}),
}


def resealed(change: Callable[[dict[str, Any]], Any]) -> Make:
    """A whole checkpoint whose trailer says something else, with the right digest of it."""

    def make(path: Path) -> None:
        trailer = trailer_of(path)
        assert trailer is not None
        changed = change(json.loads(json.dumps(asdict(trailer))))
        line = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        comment = line + hashlib.sha256(line).hexdigest().encode()
        content = path.read_bytes()
        start = content.rfind(b"PK\x05\x06")
        sealed = content[: start + 20] + len(comment).to_bytes(2, "little") + comment
        path.write_bytes(sealed)

    return make


TRAILERS: dict[str, Make] = {
    "another key": resealed(lambda values: values | {"colour": "red"}),
    "no names": resealed(lambda values: {k: v for k, v in values.items() if k != "names"}),
    "no serial": resealed(lambda values: {k: v for k, v in values.items() if k != "serial"}),
    "names that are a number": resealed(lambda values: values | {"names": 3}),
    "names of numbers": resealed(lambda values: values | {"names": [3]}),
    "a serial that is a text": resealed(lambda values: values | {"serial": "7"}),
    "a serial that is true": resealed(lambda values: values | {"serial": True}),
    "a serial below 0": resealed(lambda values: values | {"serial": -1}),
    "a serial of 10^30": resealed(lambda values: values | {"serial": 10**30}),
    "a serial of 5000 digits": resealed(lambda values: b'{"serial": ' + b"9" * 5000 + b"}"),
    "a step that is a list": resealed(lambda values: values | {"global_step": [1]}),
    "metrics that are a list": resealed(lambda values: values | {"metrics": [1]}),
    "a metric that is a word": resealed(lambda values: values | {"metrics": {"a": "word"}}),
    "a metric of 10^400": resealed(lambda values: values | {"metrics": {"a": 10**400}}),
    "a metric that is a list": resealed(lambda values: values | {"metrics": {"a": [1]}}),
    "a deeper schema": resealed(lambda values: b'{"a":' * 9000 + b"1" + b"}" * 9000),
    "deep lists": resealed(lambda values: b"[" * 50_000),
    "a list": resealed(lambda values: [1, 2]),
    "no JSON": resealed(lambda values: b"what?"),
    "no UTF-8": resealed(lambda values: b'"\xff"'),
    "a run that is a number": resealed(lambda values: values | {"run": 3}),
    "shards that are a number": resealed(lambda values: values | {"shards": 3}),
}


def overlapping(path: Path) -> None:
    """Two entries of the directory of an archive lead to one record."""
    archive(with_format(b"N"), {"a/data/0": bytes(8), "a/data/1": bytes(8)})(path)
    content = bytearray(path.read_bytes())
    first = content.rfind(b"a/data/0") - 4  # where the entry has the place of its record
    second = content.rfind(b"a/data/1") - 4
    content[second : second + 4] = content[first : first + 4]
    path.write_bytes(content)


def twice(path: Path) -> None:
    archive(with_format(b"N"), {"a/data/0": bytes(8), "a/data/1": bytes(8)})(path)
    path.write_bytes(path.read_bytes().replace(b"a/data/1", b"a/data/0"))


ARCHIVES: dict[str, Any] = {
    "records that overlap": overlapping,
    "two records of one name": twice,
    "two folders": archive(with_format(b"N"), {"b/data.pkl": b"\x80\x02N."}),
    "no pickle": lambda path: zipfile.ZipFile(path, "w").writestr("a/version", b"3\n"),
    "an empty archive": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)) and None,
}
CASES: dict[str, Make] = {
    **{f"pickle: {key}": archive(pickled) for key, pickled in PICKLES.items()},
    **{f"value: {key}": make for key, make in VALUES.items()},
    **{f"trailer: {key}": make for key, make in TRAILERS.items()},
    **{f"archive: {key}": make for key, make in ARCHIVES.items()},
}


def test_there_are_many_of_them():
    assert len(CASES) >= 50


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_a_hostile_checkpoint_is_refused_and_the_one_before_is_loaded(tmp_path: Path, make: Make):
    path = commit(tmp_path / "checkpoints", 1)
    commit(tmp_path / "checkpoints", 2)
    make(path)

    def child() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the parent, where forked
        start = time.process_time()
        with pytest.raises(CheckpointError, match=r"latest\.pth"):
            read_checkpoint(path)
        loaded, found = CheckpointStore(path.parent, run="a-run").load("latest")
        assert (found.name, loaded["model"]["weight"][0].item()) == ("previous.pth", 2.0 - 1)
        # of the processor, for three readings, on any machine: none may be as long as its file says
        assert time.process_time() - start < 4
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert used < 500 << 10

    assert exit_status(child) == 0


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("records that overlap", "its records overlap"),
        ("two records of one name", "two of its records have one name"),
        ("two folders", "its records are in several folders"),
        ("no pickle", r"it has no data\.pkl"),
    ],
)
def test_what_is_wrong_with_the_records_of_an_archive_is_told(
    tmp_path: Path, case: str, reason: str
):
    """Without the check, something else may refuse this file, and not the next one of its kind."""
    path = commit(tmp_path / "checkpoints", 1)
    ARCHIVES[case](path)

    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(path)


def test_a_record_that_goes_past_the_end_of_its_archive_overlaps_what_follows(tmp_path: Path):
    path = commit(tmp_path / "checkpoints", 1)
    archive(b"\x80\x02N.", {"a/data/0": bytes(8)})(path)
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"a/data/0") - 46  # the sizes are at 20 and 24 of the entry
    assert content[entry : entry + 4] == b"PK\x01\x02"
    for field in (20, 24):
        content[entry + field : entry + field + 4] = (len(content) - 60).to_bytes(4, "little")
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match="its records overlap"):
        read_checkpoint(path)


# ---- a disk that cannot read


def reads_of(path: Path) -> int:
    """The number of reads that a checkpoint takes."""
    number = 1
    while True:
        set_failpoints(f"file.before_read=raise:{errno.EIO}@{number}")
        try:
            with contextlib.suppress(CheckpointError):
                read_checkpoint(path)
                return number - 1
        finally:
            set_failpoints("")
        number += 1


def test_a_bad_sector_anywhere_in_the_newest_falls_back_to_the_one_before(tmp_path: Path):
    path = commit(tmp_path / "whole", 1)
    commit(tmp_path / "whole", 2)
    reads = reads_of(path)
    assert reads > 1
    for number in range(1, reads + 1):
        directory = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", directory)
        store = CheckpointStore(directory, run="a-run")
        assert [entry.name for entry in store.candidates()] == ["latest", "previous"]
        set_failpoints(f"file.before_read=raise:{errno.EIO}@{number}")
        try:
            checkpoint, found = store.load("latest")
        finally:
            set_failpoints("")
        assert found.name == "previous.pth"
        assert checkpoint["model"]["weight"][0] == 1
        assert (directory / "latest.pth.corrupt-1").exists()


# ---- what can be saved can be read


def test_shared_values_are_saved_and_read_up_to_what_can_be_walked(tmp_path: Path):
    inner: list[Any] = [1.5] * 1000
    shared = {"groups": [inner] * 1000}
    store = CheckpointStore(tmp_path / "checkpoints")

    path = store.commit(shared, ["latest"], global_step=1, epoch=1)

    assert read_checkpoint(path)["groups"] == shared["groups"]


def test_what_could_not_be_walked_is_not_saved():
    value: Any = []
    for _ in range(133):
        value = [value, value]

    with pytest.raises(CheckpointError, match="shared so often"):
        encode({"callbacks": value})


def test_a_text_in_the_state_of_an_optimizer_is_the_same_text(tmp_path: Path):
    state = {"state": {0: {"mode": "fast", "when": "NaN", "tags": ["a", ("b", None)]}}}
    store = CheckpointStore(tmp_path / "checkpoints")

    path = store.commit({"optimizer": state}, ["latest"], global_step=1, epoch=1)

    assert read_checkpoint(path)["optimizer"] == state


# ---- any bytes


@given(st.binary(max_size=400), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_any_pickle_is_a_value_or_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, pickled: bytes, seed: int
):
    path = tmp_path_factory.mktemp("fuzz") / "a.pth"
    opcodes = b"()]}\x8f.N\x88K\x01q\x00h\x00tabesu\x85\x86\x87RbQ"
    chosen = random.Random(seed).choices(opcodes, k=60)

    for content in (pickled, bytes(chosen), with_format(bytes(chosen))):
        archive(content)(path)
        with contextlib.suppress(DanLingError):
            read_checkpoint(path)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_sealed_line_is_a_trailer_or_none(line: bytes):
    digest = hashlib.sha256(line).hexdigest().encode()

    assert Trailer.decoded(line + digest) is None


def test_any_byte_of_a_foreign_file_may_be_wrong(tmp_path: Path):
    """Such a file has no digest: torch meets the damage."""
    path = tmp_path / "a.pth"
    value = OrderedDict(a=torch.ones(3), b=[1, {"c": (2, None)}])
    torch.save({"format": 1, "model": value}, path)
    content, chosen = path.read_bytes(), random.Random(0)

    for _ in range(300):
        changed = bytearray(content)
        for _ in range(chosen.choice([1, 1, 5])):
            changed[chosen.randrange(len(changed))] = chosen.randrange(256)
        path.write_bytes(bytes(changed[: chosen.choice([len(changed), len(changed) // 2])]))
        with contextlib.suppress(DanLingError):
            read_checkpoint(path)


def test_the_pickles_of_python_are_refused(tmp_path: Path):
    for protocol in (3, 4, 5):
        path = tmp_path / f"{protocol}.pth"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", pickle.dumps({"format": 1, "x": {1, 2}}, protocol))
        with contextlib.suppress(DanLingError):
            read_checkpoint(path)
