"""Runs are found by what they say, not by where they are or when they were copied."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from danling.identity.code import Code
from danling.identity.ids import run_identifier
from danling.run.directory import RunPaths, claim
from danling.run.lock import DirectoryLock
from danling.run.record import RunFile
from danling.run.search import FoundRun, damage, find_job, find_namesakes, find_runs

EXPERIMENT, RUN, OTHER = "0" * 32, "1" * 32, "2" * 32


def make_run(root: Path, *, run_id: str = RUN, status: str = "failed", name: str = "a-b") -> Path:
    path, uuid = claim(root, name, EXPERIMENT, run_id)
    identifier = run_identifier(EXPERIMENT, run_id, uuid.hex)
    names = {"name": name, "run_id": run_id, "uuid": str(uuid), "id": identifier}
    run = RunFile.create(RunPaths(path).run_json, names, code=Code(), hash_inputs={})
    run.launch(start_step=0)
    if status != "running":
        run.close(status)
    return path


def set_created(path: Path, created: str) -> None:
    run = RunFile.read(path / "run.json")
    run.update(created=created)


def test_runs_come_newest_first_by_what_they_say(tmp_path):
    paths = [make_run(tmp_path) for _ in range(3)]
    for path, year in zip(paths, (2025, 2027, 2026), strict=True):
        set_created(path, f"{year}-01-01T00:00:00.000000+00:00")
    os.utime(paths[0] / "run.json")
    os.utime(paths[0])

    found = find_runs(tmp_path)

    assert [run.path for run in found] == [paths[1], paths[2], paths[0]]


def test_only_runs_of_the_same_code_and_configuration_are_found_when_asked(tmp_path):
    same = make_run(tmp_path)
    make_run(tmp_path, run_id=OTHER)

    assert [run.path for run in find_runs(tmp_path, RUN)] == [same]
    assert len(find_runs(tmp_path)) == 2


def test_what_is_no_run_or_a_broken_one_is_passed_over(tmp_path):
    good = make_run(tmp_path)
    for name, content in {
        "torn": '{"schema": 1, "run_id": ',
        "empty": "",
        "foreign": '{"name": "something else"}',
        "future": '{"schema": 99}',
        "wrong types": '{"schema": 1, "run_id": 5, "created": [], "status": null}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    (tmp_path / "no file").mkdir()
    (tmp_path / "a file").write_text("x")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "run.json").mkdir()
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "run.json")
    (tmp_path / "link").symlink_to(good)

    assert [run.path for run in find_runs(tmp_path)] == [good]


def test_a_project_root_that_is_not_there_has_no_runs(tmp_path):
    assert find_runs(tmp_path / "missing") == []
    assert find_runs(__file__) == []


def test_a_run_that_was_moved_or_renamed_is_found_where_it_is(tmp_path):
    path = make_run(tmp_path / "first")
    (tmp_path / "second").mkdir()
    moved = tmp_path / "second" / "my favourite"
    shutil.move(path, moved)

    assert [run.path for run in find_runs(tmp_path / "second", RUN)] == [moved]
    assert find_runs(tmp_path / "first") == []


def test_of_a_run_and_its_copy_the_original_comes_first(tmp_path):
    path = make_run(tmp_path)
    for copy in ("a copy", "z copy"):
        shutil.copytree(path, tmp_path / copy)

    assert find_runs(tmp_path)[0].path == path


@pytest.mark.parametrize(
    ("status", "unfinished"),
    [
        ("finished", False),
        ("stopped", False),
        ("failed", True),
        ("preempted", True),
        ("interrupted", True),
        ("running", True),
    ],
)
def test_the_status_tells_whether_something_is_left_to_do(tmp_path, status, unfinished):
    make_run(tmp_path, status=status)

    assert find_runs(tmp_path)[0].unfinished is unfinished


def test_a_run_that_says_running_is_killed_unless_somebody_works_on_it(tmp_path):
    path = make_run(tmp_path, status="running")
    with DirectoryLock(path):
        held = find_runs(tmp_path)[0]
        assert (held.status, held.locked) == ("running", True)

    run = find_runs(tmp_path)[0]
    assert (run.status, run.locked) == ("killed", False)


def set_launch(path: Path, **values: object) -> None:
    run = RunFile.read(path / "run.json")
    run.data["launches"][-1].update(values)
    run.save()


@pytest.fixture
def slurm(monkeypatch):
    """The second attempt of SLURM job 7."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")


def test_a_requeued_job_finds_its_run_whatever_changed(tmp_path, slurm):
    other = make_run(tmp_path)
    set_launch(other, slurm={"SLURM_JOB_ID": "8"})
    path = make_run(tmp_path, run_id=OTHER)
    foreign = make_run(tmp_path)
    set_launch(foreign, slurm={"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "elsewhere"})

    found = find_job(tmp_path, run_id=RUN, name="new-name")

    assert found is not None
    assert found.path == path


def test_the_first_attempt_of_a_job_finds_nothing(tmp_path, slurm, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    make_run(tmp_path)

    assert find_job(tmp_path, run_id=RUN) is None
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert find_job(tmp_path, run_id=RUN) is None


def test_of_several_runs_of_a_job_the_one_of_the_same_configuration_or_name_goes_on(
    tmp_path, slurm
):
    first = make_run(tmp_path, name="first-run", status="finished")
    second = make_run(tmp_path, run_id=OTHER, name="second-run")

    assert path_of(find_job(tmp_path, run_id=RUN)) == first
    assert path_of(find_job(tmp_path, run_id=OTHER)) == second
    assert path_of(find_job(tmp_path, run_id="changed", name="second-run")) == second
    assert find_job(tmp_path, run_id="changed", name="third-run") is None


def path_of(run: FoundRun | None) -> Path | None:
    return run.path if run else None


def test_a_run_that_another_process_of_the_job_works_on_is_left_to_it(tmp_path, slurm):
    path = make_run(tmp_path)
    with DirectoryLock(path):
        assert find_job(tmp_path, run_id=RUN) is None

    assert path_of(find_job(tmp_path, run_id=RUN)) == path


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        ({"job": "abc", "host": socket.gethostname(), "parent": os.getppid()}, True),
        ({"job": "abc", "host": socket.gethostname(), "parent": 1_000_000_000}, False),
        ({"job": "abc", "host": "elsewhere", "parent": 1}, True),
        ({"job": "xyz", "host": socket.gethostname(), "parent": os.getppid()}, False),
    ],
)
def test_a_restarted_worker_of_torchelastic_finds_the_run_of_its_agent(
    tmp_path, monkeypatch, recorded, found
):
    path = make_run(tmp_path)
    job = {"TORCHELASTIC_RUN_ID": recorded["job"]}
    set_launch(path, torchelastic=job, host=recorded["host"], parent_pid=recorded["parent"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    assert path_of(find_job(tmp_path, run_id=OTHER)) == (path if found else None)


def test_jobs_without_an_id_of_their_own_share_no_run_across_hosts(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    path = make_run(tmp_path)
    assert path_of(find_job(tmp_path)) == path

    set_launch(path, host="elsewhere")

    assert find_job(tmp_path) is None


def test_broken_launches_are_passed_over(tmp_path, slurm):
    odd = {"slurm": 5, "torchelastic": [], "end_time": None, "exit_reason": None}
    broken: list[Any] = [None, "x", [None, 1, {}], [odd]]
    for launches in broken:
        folder = tmp_path / str(uuid4())
        folder.mkdir()
        data = {"schema": 1, "run_id": RUN, "created": "", "status": "failed"}
        (folder / "run.json").write_text(json.dumps(data | {"launches": launches}))

    assert find_job(tmp_path, run_id=RUN) is None
    assert len(find_runs(tmp_path)) == 1  # of the others the record is damaged


@pytest.mark.distributed
def test_torchrun_itself_restarts_a_worker_that_finds_its_run(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        f"sys.path[:0] = [{str(Path(__file__).parents[2])!r}]\n"
        "from tests.run.test_search import find_job, make_run\n"
        "found = find_job('experiments')\n"
        "path = found.path if found else make_run(Path('experiments'))\n"
        "with open('log', 'a') as log:\n    log.write(f'{path.name}\\n')\n"
        "sys.exit(0 if found else 1)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"]
    command += ["--nproc-per-node=1", "--monitor-interval=0.1", str(script)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    first, second = (tmp_path / "log").read_text().split()
    assert first == second


def files_opened(work: Any) -> list[str]:
    opened: list[str] = []
    is_on = [True]

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if is_on[0] and event == "open" and str(args[0]).endswith("run.json"):
            opened.append(str(args[0]))

    sys.addaudithook(hear)
    work()
    is_on[0] = False
    return opened


def test_of_many_runs_only_those_of_the_same_id_are_opened(tmp_path):
    same = [make_run(tmp_path) for _ in range(2)]
    for number in range(50):
        make_run(tmp_path, run_id=f"{number + 100:032x}"[::-1])
    renamed = tmp_path / "my favourite"
    shutil.move(same[1], renamed)
    found: list[FoundRun] = []

    opened = files_opened(lambda: found.extend(find_runs(tmp_path, RUN)))

    assert [run.path for run in found] == [renamed, same[0]]
    assert sorted(opened) == sorted(str(path / "run.json") for path in (renamed, same[0]))


def test_of_many_runs_of_one_name_those_that_changed_last_are_opened(tmp_path):
    paths = [make_run(tmp_path, run_id=f"{number:032x}") for number in range(30)]
    make_run(tmp_path, name="b-a")
    for age, path in enumerate(paths):
        os.utime(path, (1e9 - age, 1e9 - age))
    found: list[FoundRun] = []

    opened = files_opened(lambda: found.extend(find_namesakes(tmp_path, "a-b", limit=5)))

    assert {run.path for run in found} == set(paths[:5])
    assert len(opened) == 5
    assert len(find_namesakes(tmp_path, "a-b", limit=None)) == 30


@pytest.mark.parametrize(
    ("status", "reason", "unfinished"),
    [
        ("stopped", "max_time of 60 s is reached", True),
        ("stopped", "max_time of 60 s is reached (rank 1)", True),
        ("stopped", "good enough", False),
        ("stopped", None, False),
        ("finished", "max_time of 60 s is reached", False),
    ],
)
def test_a_run_that_its_time_budget_stopped_is_unfinished(tmp_path, status, reason, unfinished):
    path = make_run(tmp_path, status="running")
    RunFile.read(path / "run.json").close(status, reason)

    assert find_runs(tmp_path)[0].unfinished is unfinished


def whole_run(root: Path) -> Path:
    path, uuid = claim(root, "a-b", EXPERIMENT, RUN)
    names = {"name": "a-b", "uuid": str(uuid), "run_id": RUN, "experiment_id": EXPERIMENT}
    names |= {"run_uuid": str(UUID(RUN)), "experiment_uuid": str(UUID(EXPERIMENT))}
    RunFile.create(RunPaths(path).run_json, names, code=Code(), hash_inputs={})
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"run_id": OTHER}, "its run_id and its run_uuid contradict each other"),
        ({"run_id": OTHER, "run_uuid": str(UUID(OTHER))}, "its ids are not those in the name"),
        ({"uuid": "nonsense"}, "its ids are not those in the name"),
        ({"launches": [None]}, "the record of the run is damaged: launches[0]"),
        ({"status": "finishet"}, "the record of the run is damaged: status"),
        ({"created": 5}, "the record of the run is damaged: created"),
        ({"created": None}, "it lacks created"),
    ],
)
def test_a_record_that_contradicts_itself_or_its_directory_is_damaged(tmp_path, change, reason):
    path = whole_run(tmp_path)
    run = RunFile.read(path / "run.json")
    run.update(**change)

    told = damage(path, path / "checkpoints")

    assert told is None if reason is None else str(told).startswith(reason)


def test_a_directory_in_which_nothing_was_done_is_not_damaged(tmp_path):
    path = whole_run(tmp_path)
    (path / "run.json").unlink()
    assert damage(path, path / "checkpoints") is None

    (path / "checkpoints").mkdir()
    assert damage(path, path / "checkpoints") is None
    (path / "checkpoints" / "latest.pth").touch()

    assert damage(path, path / "checkpoints") == "not a run: it has no such file"
