"""Whatever fails or dies, and wherever: a save that returned is there, and no half one ever is."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from danling.checkpoint.store import CheckpointStore
from danling.errors import CheckpointError
from danling.files import filesystem
from danling.files.failpoints import set_failpoints
from tests.support.crash_model import (
    AFTER_A_NAME,
    BEFORE_A_NAME,
    PRIMITIVES,
    Operation,
    Recording,
    State,
    crash_states,
    exit_status,
    materialise,
    recording,
)

FAILPOINTS = [
    *BEFORE_A_NAME,
    *AFTER_A_NAME,
    "checkpoint.after_index_write",
    "checkpoint.after_index",
    "checkpoint.before_unlink",
]


@pytest.fixture(autouse=True)
def no_failpoints() -> Iterator[None]:
    yield
    set_failpoints("")


def payload(number: int) -> dict[str, Any]:
    return {"model": {"number": torch.full((3,), float(number))}}


def names_of(number: int) -> list[str]:
    return ["latest", f"epoch-{number}", *(["best"] if number % 3 else [])]


def save(store: CheckpointStore, number: int) -> None:
    store.commit(payload(number), names_of(number), global_step=10 * number, epoch=number)
    store.rotate([f"epoch-{number}"])


def loaded(store: CheckpointStore) -> int:
    """The number of the save that is loaded; 0 if there is none and nothing is damaged."""
    if store.is_empty():
        return 0
    checkpoint, _ = store.load()
    number = int(checkpoint["model"]["number"][0])
    assert torch.equal(checkpoint["model"]["number"], payload(number)["model"]["number"])
    return number


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


# ---- a process that is killed


def check_kill(directory: Path, failpoint: str, number: int, nth: int = 1) -> None:
    """Kills save `number` there, and looks at what a new process finds."""
    store = CheckpointStore(directory)

    def child() -> None:
        for k in range(1, number + 1):
            if k == number:
                set_failpoints(f"{failpoint}=kill@{nth}")
            save(store, k)

    status = exit_status(child)

    assert status in (0, -signal.SIGKILL)
    if status == -signal.SIGKILL:
        found = loaded(CheckpointStore(directory))
        assert found in (number - 1, number)
        assert list(directory.glob("*.corrupt-*")) == []
        check_restart(CheckpointStore(directory), found)


def check_restart(store: CheckpointStore, found: int) -> None:
    """Tidying up loses nothing, leaves no stray, gives the names back; the next save works."""
    store.clean()

    assert loaded(store) == found
    assert [name for name in files(store.directory) if name.startswith(".")] == []
    steps = {entry.name: entry.global_step // 10 for entry in store.candidates()}
    if found:
        assert steps["latest"] == steps[f"epoch-{found}"] == found
        assert steps["best"] == max(k for k in range(1, found + 1) if k % 3)
    assert store.clean() == []
    save(store, found + 1)
    assert loaded(store) == found + 1


def test_every_fail_point_is_on_the_way_of_a_save(tmp_path: Path):
    reached = []
    for number, failpoint in enumerate(FAILPOINTS):

        def child(number: int = number, failpoint: str = failpoint) -> None:
            store = CheckpointStore(tmp_path / str(number))
            save(store, 1)
            set_failpoints(f"{failpoint}=kill")
            save(store, 2)

        if exit_status(child) == -signal.SIGKILL:
            reached.append(failpoint)

    assert reached == FAILPOINTS


@pytest.mark.parametrize("failpoint", FAILPOINTS)
@pytest.mark.parametrize("number", [1, 2, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_a_kill_at_any_point_of_a_save_loses_nothing(tmp_path: Path, failpoint: str, number: int):
    for nth in (1, 2):
        check_kill(tmp_path / str(nth), failpoint, number, nth)


@pytest.mark.parametrize("failpoint", FAILPOINTS[5:8])
def test_a_kill_in_the_tenth_save_loses_nothing(tmp_path: Path, failpoint: str):
    check_kill(tmp_path / "checkpoints", failpoint, 10)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_kill_in_the_middle_of_the_file_loses_nothing(tmp_path: Path, share: float):
    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, 1)
    big = {"model": {"number": torch.full((3,), 2.0), "rest": torch.ones(1 << 20)}}
    real_write = filesystem.write

    def child() -> None:
        def write_part(descriptor: int, data: Any) -> None:
            if len(data) > 1 << 20:
                real_write(descriptor, data[: int(share * len(data))])
                os.kill(os.getpid(), signal.SIGKILL)
            real_write(descriptor, data)

        filesystem.write = write_part
        store.commit(big, ["latest"], global_step=20, epoch=2)

    assert exit_status(child) == -signal.SIGKILL

    assert any(name.startswith(".tmp.") for name in files(store.directory))
    assert loaded(CheckpointStore(store.directory)) == 1
    check_restart(CheckpointStore(store.directory), 1)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_kill_in_the_middle_of_a_rotation_leaves_more_files_and_loses_none(
    tmp_path: Path, nth: int
):
    directory = tmp_path / "checkpoints"

    def child() -> None:
        store = CheckpointStore(directory)
        for number in range(1, 6):
            store.commit(payload(number), names_of(number), global_step=10 * number, epoch=number)
        set_failpoints(f"checkpoint.before_unlink=kill@{nth}")
        store.rotate(["epoch-4", "epoch-5"])

    assert exit_status(child) == -signal.SIGKILL

    store = CheckpointStore(directory)
    left = {entry.name for entry in store.candidates() if entry.name.startswith("epoch")}
    assert len(left) == 5 - (nth - 1)
    assert left >= {"epoch-4", "epoch-5"}
    assert loaded(store) == 5
    assert store.clean() == []
    assert len(store.rotate(["epoch-4", "epoch-5"])) == 3 - (nth - 1)
    assert loaded(store) == 5


@pytest.mark.exhaustive
def test_a_kill_at_a_random_moment_loses_nothing(tmp_path: Path):
    source = random.Random(0)
    for case in range(200):
        directory = tmp_path / str(case)

        def child(directory: Path = directory) -> None:
            store = CheckpointStore(directory)
            for number in range(1, 1000):
                save(store, number)
                (directory / "returned").write_text(str(number))

        delay = source.uniform(0.01, 0.1)
        process = os.fork()
        if process == 0:
            signal.setitimer(signal.ITIMER_REAL, delay)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            child()
        os.waitpid(process, 0)
        marker = directory / "returned"
        returned = int(marker.read_text() or 0) if marker.exists() else 0

        assert loaded(CheckpointStore(directory)) >= returned


# ---- a machine that loses power, by the model


@dataclass(frozen=True)
class Scenario:
    """Saves of one kind, and whether `latest` and `previous` are two files all the time."""

    names: Callable[[int], list[str]] = names_of
    two_files: bool = True
    links: bool = True


SCENARIOS = {
    "all names": Scenario(),
    "latest": Scenario(lambda number: ["latest"]),
    "numbered": Scenario(lambda number: [f"epoch-{number}"], two_files=False),
    "no hard links": Scenario(two_files=False, links=False),
}


def recorded(directory: Path, scenario: Scenario = SCENARIOS["all names"]) -> Recording:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    with pytest.MonkeyPatch.context() as patch:
        if not scenario.links:
            patch.setattr(filesystem, "link", no_links)
        with recording(directory) as record:
            store = CheckpointStore(directory)
            for number in (1, 2, 3):
                names = scenario.names(number)
                store.commit(payload(number), names, global_step=10 * number, epoch=number)
                record.saves = number
                store.rotate([f"epoch-{number}"])
    return record


def visible(state: State) -> State:
    return tuple((name, data) for name, data in state if not name.startswith("."))


def problems(record: Recording, mode: str, scratch: Path, two_files: bool = True) -> Iterator[str]:
    """What the real loader finds wrong in the directories that a crash may leave."""
    judged: dict[State, tuple[int, str]] = {}
    for returned, whole in crash_states(record, mode):
        state = visible(whole)
        if state not in judged:
            judged[state] = judge(state, mode, scratch / f"{mode}-{len(judged)}")
        number, problem = judged[state]
        if problem:
            yield problem
        elif number < returned:
            yield f"save {returned} had returned, and {number} is loaded"
        if two_files and returned >= 2 and mode != "weak" and contents(state) < 2:
            yield "damage to one file would leave none"


def contents(state: State) -> int:
    return len({data for name, data in state if name.endswith(".pth")})


def judge(state: State, mode: str, directory: Path) -> tuple[int, str]:
    materialise(state, directory)
    try:
        number = loaded(CheckpointStore(directory))
    except CheckpointError as error:
        return 0, str(error)
    if list(directory.glob("*.corrupt-*")):
        return number, "a name led to a damaged file"
    index = directory / "index.json"
    if index.exists():
        try:
            json.loads(index.read_text())
        except ValueError:
            return number, "index.json is no JSON"
    return number, ""


@pytest.mark.parametrize("mode", ["kill", "ordered", "weak"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_crash_loses_a_save_that_returned(tmp_path: Path, name: str, mode: str):
    scenario = SCENARIOS[name]
    record = recorded(tmp_path / "checkpoints", scenario)

    assert list(problems(record, mode, tmp_path, scenario.two_files)) == []


def test_every_directory_that_a_crash_may_leave_is_tidied_up(tmp_path: Path):
    record = recorded(tmp_path / "checkpoints")

    for case, (returned, state) in enumerate(sorted(set(crash_states(record, "ordered")))):
        materialise(state, tmp_path / str(case))
        store = CheckpointStore(tmp_path / str(case))
        found = loaded(store)
        store.clean()

        assert found >= returned
        assert loaded(store) == found
        assert [name for name in files(store.directory) if name.startswith(".")] == []


def position(record: Recording, kind: str, added: str = "", nth: int = -1) -> int:
    matching = [
        index
        for index, operation in enumerate(record.operations)
        if operation.kind == kind and (operation.added or "").startswith(added)
    ]
    return matching[nth]


def fsync_after_rename(record: Recording) -> Recording:
    renamed = position(record, "replace", "epoch-3")
    return record.moved(record.indices("fsync_file")[-3], renamed)


def rotation_before_the_directory_is_durable(record: Recording) -> Recording:
    return record.moved(position(record, "unlink"), record.indices("fsync_directory")[-1])


def previous_before_latest(record: Recording) -> Recording:
    return record.moved(
        position(record, "replace", "previous"), position(record, "replace", "epoch-3")
    )


def returned_before_the_directory_is_durable(record: Recording) -> Recording:
    return record.moved(record.indices("fsync_directory")[-1], len(record.operations) - 1)


def without(kind: str, added: str = "", nth: int = -1) -> Callable[[Recording], Recording]:
    return lambda record: record.without(position(record, kind, added, nth))


MUTATIONS: dict[str, Callable[[Recording], Recording]] = {
    "no fsync of the first checkpoint": without("fsync_file", nth=0),
    "no fsync of the last checkpoint": without("fsync_file", nth=-3),
    "no fsync of index.json": without("fsync_file", nth=-1),
    "no fsync of the parent of a new directory": without("fsync_parent"),
    "no fsync of the directory after the first": without("fsync_directory", nth=0),
    "no fsync of the directory after the last": without("fsync_directory", nth=-1),
    "no rename of the checkpoint, nor of latest": lambda record: without("replace", "latest")(
        without("replace", "epoch-3")(record)
    ),
    "no previous": lambda record: without("replace", "previous")(
        without("replace", "previous")(record)
    ),
    "fsync after the rename": fsync_after_rename,
    "previous before latest": previous_before_latest,
    "returned before the directory is durable": returned_before_the_directory_is_durable,
}


def test_the_model_notices_a_rotation_before_the_directory_is_durable(tmp_path: Path):
    record = recorded(tmp_path / "checkpoints", SCENARIOS["numbered"])

    mutated = rotation_before_the_directory_is_durable(record)

    assert list(problems(mutated, "ordered", tmp_path, two_files=False)) == []
    assert any(problems(mutated, "weak", tmp_path, two_files=False))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_model_notices_what_is_missing_or_out_of_order(tmp_path: Path, mutation: str):
    mutated = MUTATIONS[mutation](recorded(tmp_path / "checkpoints"))

    assert any(p for mode in ("ordered", "weak") for p in problems(mutated, mode, tmp_path))


def test_the_model_tells_a_write_in_place_from_a_commit(tmp_path: Path):
    record = Recording()
    for number in (1, 2):
        record.add(Operation("create", number, added="latest.pth"))
        record.add(Operation("write", number, b"x" * number))
        record.saves = number

    assert any(problems(record, "kill", tmp_path))


# ---- a disk that refuses


def failing(primitive: str, nth: int, number: int, sticky: bool, calls: list[str]) -> Any:
    original = getattr(filesystem, primitive)
    hits = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal hits
        hits += 1
        if hits == nth or (sticky and hits > nth):
            calls.append(primitive)
            if primitive == "close":
                original(*arguments)
            raise OSError(number, os.strerror(number), str(arguments[0]))
        return original(*arguments, **options)

    return call


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_an_error_of_any_primitive_keeps_what_was_there(
    tmp_path: Path, primitive: str, number: int, sticky: bool, monkeypatch: pytest.MonkeyPatch
):
    for nth in range(1, 20):
        store = CheckpointStore(tmp_path / str(nth))
        if primitive != "make_directory":
            save(store, 1)
            save(store, 2)
        before, calls, errors = loaded(store), list[str](), []
        with monkeypatch.context() as patch:
            patch.setattr(filesystem, primitive, failing(primitive, nth, number, sticky, calls))
            try:
                save(store, 3)
            except CheckpointError as error:
                errors.append((error.errno, error.filename))

        assert errors in ([], [(number, str(store.directory / "latest.pth"))])
        # the first call of each is one that the save cannot do without
        assert errors or nth > 1 or primitive == "unlink"
        assert loaded(CheckpointStore(store.directory)) in (before, 3)
        if not calls:
            break
        store.clean()
        save(store, 4)
        assert loaded(store) == 4
        assert [name for name in files(store.directory) if name.startswith(".")] == []
    else:
        pytest.fail("the save never ended without an error")


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_full_disk_leaves_no_temporary_file(tmp_path: Path, size: int):
    """Both when it is found inside of torch.save, which hides the error, and after it."""
    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, 1)
    before = files(store.directory)
    set_failpoints("checkpoint.before_write=raise:28")

    with pytest.raises(CheckpointError, match="step 20 was not saved: No space left") as caught:
        store.commit({"model": torch.ones(size)}, ["latest"], global_step=20, epoch=2)

    assert caught.value.errno == errno.ENOSPC
    assert files(store.directory) == before


def test_a_limit_on_the_size_of_files_is_reported_as_such(tmp_path: Path):
    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, 1)
    size = (store.directory / "latest.pth").stat().st_size

    def child() -> None:
        for limit in range(0, size, 97):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            with pytest.raises(CheckpointError) as caught:
                save(store, 2)
            assert caught.value.errno == errno.EFBIG
            assert loaded(store) == 1

    assert exit_status(child) == 0
    assert not any(name.startswith(".tmp") for name in files(store.directory))


def in_a_namespace(script: str, directory: Path) -> str:
    """Runs Python as root of a private mount namespace, where it may mount."""
    try:
        subprocess.run(["unshare", "-rm", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no private mount namespaces here")
    result = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", textwrap.dedent(script), str(directory)],
        capture_output=True,
        text=True,
    )
    if "mount failed" in result.stderr:
        pytest.skip("nothing may be mounted here")
    assert result.returncode == 0, result.stderr
    return result.stdout


PROLOGUE = """
    import os, subprocess, sys
    from pathlib import Path
    import torch
    from danling.checkpoint import CheckpointStore
    from danling.errors import CheckpointError

    root = Path(sys.argv[1])
    def mount(*arguments):
        if subprocess.run(["mount", *arguments]).returncode:
            sys.exit("mount failed")
    def save(step, size=4):
        payload = {"model": torch.full((size,), float(step))}
        store.commit(payload, ["latest"], global_step=step, epoch=0)
"""


def test_a_disk_that_is_really_full_keeps_the_old_checkpoint(tmp_path: Path):
    script = """
    mount("-t", "tmpfs", "-o", "size=256k", "none", str(root))
    store = CheckpointStore(root / "checkpoints")
    save(1)
    for size in range(40_000, 90_000, 10_000):
        try:
            save(2, size)
        except CheckpointError as error:
            print("errno", error.errno, sorted(os.listdir(store.directory)))
        else:
            os.unlink(store.directory / "previous.pth")
    print(store.load()[0]["model"][0].item(), store.preflight(10**6))
    save(3)
    print(store.load()[0]["model"][0].item())
    """

    output = in_a_namespace(PROLOGUE + script, tmp_path)

    assert "errno 28" in output
    assert ".tmp" not in output
    assert output.endswith("3.0\n")


def test_a_read_only_disk_is_found_before_the_first_step_and_still_read(tmp_path: Path):
    script = """
    mount("-t", "tmpfs", "none", str(root))
    store = CheckpointStore(root / "checkpoints")
    save(1)
    mount("-o", "remount,ro", str(root))
    for action in (store.preflight, lambda: save(2)):
        try:
            action()
        except CheckpointError as error:
            print(error.errno, error.strerror)
    print(store.load()[0]["model"][0].item())
    """

    assert in_a_namespace(PROLOGUE + script, tmp_path).splitlines() == [
        "30 checkpoints cannot be saved: Read-only file system",
        "30 the checkpoint of step 2 was not saved: Read-only file system",
        "1.0",
    ]


# ---- a file system that lacks something


@pytest.mark.parametrize("number", [errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOTSUP])
def test_without_hard_links_there_are_copies_and_one_warning(tmp_path, monkeypatch, caplog, number):
    def no_links(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filesystem, "link", no_links)
    store = CheckpointStore(tmp_path / "checkpoints")
    for k in (1, 2, 4):
        save(store, k)

    steps = {entry.name: entry.global_step for entry in store.candidates()}
    assert steps == {"latest": 40, "best": 40, "epoch-4": 40, "previous": 20}
    assert {path.stat().st_nlink for path in store.directory.glob("*.pth")} == {1}
    assert len([r for r in caplog.records if "has no hard links" in r.getMessage()]) == 1
    assert not any(name.startswith(".") for name in files(store.directory))


@pytest.mark.parametrize("primitive", ["fsync_file", "fsync_directory"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_without_fsync_saves_go_on_with_one_warning(
    tmp_path, monkeypatch, caplog, primitive, number
):
    def unsupported(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filesystem, primitive, unsupported)
    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, 1)
    save(store, 2)

    assert loaded(store) == 2
    assert len([r for r in caplog.records if "has no fsync" in r.getMessage()]) == 1


def test_the_directory_for_temporary_files_has_no_part_in_it(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")

    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, 1)

    assert loaded(store) == 1


# ---- names that lead elsewhere


@pytest.mark.parametrize("name", ["latest.pth", "previous.pth", "best.pth", "index.json"])
def test_a_symbolic_link_in_the_place_of_a_file_never_reaches_its_target(tmp_path: Path, name: str):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, 1)
    (store.directory / name).unlink(missing_ok=True)
    (store.directory / name).symlink_to(victim)

    save(store, 2)
    save(store, 4)

    assert victim.read_text() == "precious"
    assert victim.stat().st_nlink == 1
    assert loaded(store) == 4


def test_a_directory_that_is_a_symbolic_link_is_refused(tmp_path: Path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "victim")
    store = CheckpointStore(tmp_path / "checkpoints")

    for action in (store.preflight, lambda: save(store, 1)):
        with pytest.raises(CheckpointError, match=r"Not a directory|symbolic link") as caught:
            action()
        assert caught.value.errno == errno.ENOTDIR
    assert files(tmp_path / "victim") == []


def test_a_directory_that_vanished_is_made_again_only_in_a_run_that_is_there(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    store = CheckpointStore(run / "checkpoints")
    save(store, 1)
    for path in store.directory.iterdir():
        path.unlink()
    store.directory.rmdir()

    save(store, 2)
    assert loaded(store) == 2

    run.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="No such file") as caught:
        save(store, 3)
    assert caught.value.errno == errno.ENOENT
    assert not run.exists()


@pytest.mark.parametrize(("mask", "expected"), [(0o077, 0o600), (0o022, 0o644), (0o000, 0o666)])
def test_a_checkpoint_is_its_owner_s_alone_and_the_index_follows_the_umask(
    tmp_path: Path, mask: int, expected: int
):
    before = os.umask(mask)
    try:
        save(CheckpointStore(tmp_path / "checkpoints"), 1)
    finally:
        os.umask(before)

    modes = {
        path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "checkpoints").iterdir()
    }
    assert modes.pop("index.json") == expected
    assert set(modes.values()) == {0o600}


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch):
    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, 1)
    before = files(store.directory)

    for primitive in ("write", "fsync_file", "link", "replace"):
        for error in (KeyboardInterrupt, MemoryError):

            def interrupted(*_: object, error: type[BaseException] = error) -> None:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(filesystem, primitive, interrupted)
                with pytest.raises(error):
                    save(store, 2)
            assert [name for name in files(store.directory) if name.startswith(".")] == []
    assert set(before) <= set(files(store.directory))
    assert loaded(store) in (1, 2)
