"""The directory of a run is its own, and run.json says what happened in it."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from danling.errors import RunDirectoryError
from danling.identity.code import Code, read_code
from danling.identity.environment import read_environment
from danling.run.directory import RunPaths, claim
from danling.run.record import STATUSES, RunFile
from tests.support.repositories import commit_all, git, make_repository

EXPERIMENT, RUN = "0" * 32, "1" * 32

FORK_AND_CLAIM = """
import os, sys
from pathlib import Path
from danling.identity import experiment_uuid, read_code, run_uuid
from danling.identity.ids import run_name
from danling.run.directory import claim

root, count = Path(sys.argv[1]), int(sys.argv[2])
ready, say_ready = os.pipe()
start, say_start = os.pipe()
for _ in range(count):
    if os.fork() == 0:
        os.close(say_start)
        timeout = 60.0  # the machine has fewer cores than processes
        experiment = experiment_uuid(read_code(Path.cwd(), exclude=[root], timeout=timeout))
        run = run_uuid(experiment, {"lr": 0.1})
        os.write(say_ready, b"x")
        os.read(start, 1)  # returns when the parent closes its end: for all at once
        path, uuid = claim(root, run_name("digits", "mlp"), experiment.hex, run.hex)
        (path / "owner").write_text(str(os.getpid()))
        os._exit(0)
for _ in range(count):
    os.read(ready, 1)
os.close(say_start)
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(count)))
"""


def claim_here(root: Path) -> Path:
    return claim(root, "digits-mlp", EXPERIMENT, RUN)[0]


def test_the_directory_is_named_after_the_run_and_its_ids(tmp_path):
    path, uuid = claim(tmp_path / "experiments", "digits-mlp", "0a" * 16, "1b" * 16)

    assert path == tmp_path / "experiments" / f"digits-mlp-0a0a0a0a-1b1b1b1b-{uuid.hex[:8]}"
    assert path.is_dir()
    assert isinstance(uuid, UUID)


@pytest.mark.parametrize(
    "count", [50, pytest.param(300, marks=pytest.mark.exhaustive)], ids=lambda count: f"{count}"
)
def test_many_processes_at_once_get_as_many_directories(tmp_path, count):
    repository = make_repository(tmp_path / "repository")
    command = [sys.executable, "-c", FORK_AND_CLAIM, "experiments", str(count)]

    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=200)

    assert (done.returncode, done.stderr) == (0, "")
    runs = [path for path in (repository / "experiments").iterdir() if path.is_dir()]
    assert len(runs) == count
    assert len({(path / "owner").read_text() for path in runs}) == count
    assert len({path.name.rpartition("-")[0] for path in runs}) == 1  # same code, same config
    assert (repository / "experiments" / ".gitignore").read_text() == "*\n"
    assert git(repository, "status", "--porcelain") == ""


def test_a_name_that_is_taken_is_drawn_again(tmp_path, monkeypatch):
    first, second = UUID(int=1 << 96), UUID(int=2 << 96)
    draws = iter([first, first, second])
    monkeypatch.setattr("danling.run.directory.uuid4", lambda: next(draws))

    paths = [claim_here(tmp_path), claim_here(tmp_path)]

    assert [path.name[-8:] for path in paths] == ["00000001", "00000002"]


def test_a_link_in_the_place_of_the_directory_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "victim").mkdir()
    root = tmp_path / "experiments"
    root.mkdir()
    draws = iter([UUID(int=1 << 96), UUID(int=2 << 96)])
    monkeypatch.setattr("danling.run.directory.uuid4", lambda: next(draws))
    (root / "digits-mlp-00000000-11111111-00000001").symlink_to(tmp_path / "victim")

    path = claim_here(root)

    assert path.name.endswith("00000002")
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/b", "a/../../outside"])
def test_a_name_that_leads_out_of_project_root_makes_nothing(tmp_path, name):
    root = tmp_path / "experiments"

    with pytest.raises(RunDirectoryError, match="would lie outside project_root"):
        claim(root, name, EXPERIMENT, RUN)

    assert [path.name for path in tmp_path.iterdir()] == ["experiments"]
    assert list(root.iterdir()) == []


def test_a_file_in_the_place_of_project_root_is_told(tmp_path):
    (tmp_path / "experiments").write_text("a file")

    with pytest.raises(RunDirectoryError, match=r"project_root='experiments': a file is in the"):
        claim("experiments", "digits-mlp", EXPERIMENT, RUN)


@pytest.mark.skipif(os.name == "nt" or not Path("/proc").is_dir(), reason="needs /proc")
def test_a_place_that_cannot_be_written_is_told():
    with pytest.raises(RunDirectoryError, match="no run can be made in project_root='/proc/x'"):
        claim("/proc/x", "digits-mlp", EXPERIMENT, RUN)


@pytest.mark.parametrize("umask", [0o077, 0o000, 0o027])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = claim_here(tmp_path / "experiments")
        RunFile.create(RunPaths(path).run_json, {}, code=Code(), hash_inputs={})
    finally:
        os.umask(before)

    made = [path, tmp_path / "experiments" / ".gitignore", RunPaths(path).run_json]
    modes = [stat.S_IMODE(file.stat().st_mode) for file in made]
    assert modes == [0o777 & ~umask, 0o666 & ~umask, 0o666 & ~umask]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the group is inherited anyway")
def test_a_group_that_shares_the_project_shares_the_runs(tmp_path):
    root = tmp_path / "experiments"
    root.mkdir()
    root.chmod(0o2775)

    path = claim(root, "run", "0" * 32, "1" * 32)[0]
    (path / "checkpoints").mkdir()

    for folder in (path, path / "checkpoints"):
        assert folder.stat().st_mode & stat.S_ISGID
        assert folder.stat().st_gid == root.stat().st_gid


def test_a_project_root_of_runs_alone_is_ignored_by_git(tmp_path):
    (tmp_path / "experiments").mkdir()
    claim_here(tmp_path / "experiments")
    (tmp_path / "experiments" / ".gitignore").unlink()

    path = claim_here(tmp_path / "experiments")

    assert (tmp_path / "experiments" / ".gitignore").read_text() == "*\n"
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("own", [None, "*.log\n"])
def test_a_project_root_with_the_users_code_keeps_it_visible_and_hides_the_run(tmp_path, own):
    repository = make_repository(tmp_path / "repository")
    if own is not None:
        (repository / ".gitignore").write_text(own)
        commit_all(repository)
    before = read_code(repository, exclude=[repository])

    path = claim_here(repository)

    assert git(repository, "status", "--porcelain") == ""
    assert read_code(repository, exclude=[repository]) == before
    assert (path / ".gitignore").read_text() == "*\n"
    assert (repository / ".gitignore").exists() is (own is not None)


def test_the_files_of_a_run_have_these_names(tmp_path):
    paths = RunPaths(tmp_path, checkpoint_dir_name="weights")

    names = {key: path.relative_to(tmp_path).as_posix() for key, path in vars(paths).items()}

    assert names == {
        "path": ".",
        "checkpoints": "weights",
        "log": "run.log",
        "runner_yaml": "runner.yaml",
        "results": "results.json",
        "latest": "latest.json",
        "best": "best.json",
        "metrics": "metrics.jsonl",
        "run_json": "run.json",
        "lock": ".lock",
        "metadata": "metadata",
        "code_patch": "metadata/code.patch",
        "main_program": "metadata/main_program.py",
        "packages": "metadata/packages.json",
        "abandoned": "metadata/abandoned.jsonl",
    }


@pytest.mark.parametrize("name", ["run.log", "checkpoints", ".lock", "run.json", "metadata"])
def test_a_run_with_a_link_in_it_is_refused(tmp_path, name):
    path = claim_here(tmp_path / "experiments")
    RunPaths(path).check()
    (path / name).symlink_to(tmp_path / "victim")

    with pytest.raises(RunDirectoryError, match=rf"symbolic link.*remove it: '.*{name}'"):
        RunPaths(path).check()


def test_a_run_that_is_gone_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match="the directory of the run is gone"):
        RunPaths(tmp_path / "gone").check()


def new_run(path: Path) -> RunFile:
    names = {"name": "digits-mlp", "id": "a-b-c", "run_id": RUN, "experiment_id": EXPERIMENT}
    code = Code(commit="0" * 40, branch="main", tree="1" * 40, dirty=True, source="git")
    return RunFile.create(
        path, names, code=code, hash_inputs={"lr": 0.1}, environment=read_environment()
    )


def test_run_json_says_what_the_run_is_and_how_it_went(tmp_path):
    run = new_run(tmp_path / "run.json")
    run.launch(start_step=0)
    run.close("preempted", "SIGTERM", step=40)
    run = RunFile.read(tmp_path / "run.json")
    run.launch(start_step=40)
    run.close("finished", step=100)

    data = json.loads((tmp_path / "run.json").read_text())

    assert (data["schema"], data["status"], data["reason"]) == (1, "finished", None)
    assert (data["name"], data["run_id"]) == ("digits-mlp", RUN)
    assert data["code"]["commit"] == "0" * 40
    assert (data["code"]["dirty"], data["code"]["partial"]) == (True, False)
    assert data["hash_inputs"] == {"lr": 0.1}
    assert data["environment"]["python"]
    first, second = data["launches"]
    assert (first["start_step"], first["end_step"], first["exit_reason"]) == (0, 40, "SIGTERM")
    assert (second["start_step"], second["end_step"], second["exit_reason"]) == (
        40,
        100,
        "finished",
    )
    assert first["uuid"] != second["uuid"]
    assert (second["pid"], second["world_size"]) == (os.getpid(), 1)
    times = [data["created"], first["start_time"], first["end_time"], second["end_time"]]
    assert times == sorted(times)
    assert (data["started"], data["ended"]) == (first["start_time"], second["end_time"])
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}\+00:00", time) for time in times)


def test_a_launch_that_was_killed_is_told_by_the_next_one(tmp_path):
    new_run(tmp_path / "run.json").launch(start_step=0)

    run = RunFile.read(tmp_path / "run.json")
    run.launch(start_step=0)

    reasons = [(entry["exit_reason"], entry["end_time"]) for entry in run.data["launches"]]
    assert reasons == [("killed", None), (None, None)]
    assert (run.data["status"], run.data["ended"]) == ("running", None)


def test_a_status_that_there_is_not_is_refused(tmp_path):
    run = new_run(tmp_path / "run.json")

    with pytest.raises(ValueError, match="status='done': valid are 'running', 'finished'"):
        run.close("done")

    assert STATUSES == ("running", "finished", "stopped", "failed", "preempted", "interrupted")


def test_no_secret_reaches_run_json(tmp_path, monkeypatch):
    key = "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789"
    monkeypatch.setenv("HF_TOKEN", "planted-token")
    monkeypatch.setenv("SLURM_COMMENT", f"uses {key}")
    argv = ["python", "train.py", "--api_key", "planted-option", "--url=https://u:planted-url@h/"]
    monkeypatch.setattr(sys, "orig_argv", argv)
    inputs = {"hub": {"token": "planted0config"}, "note": f"key {key}", "password": "planted-word"}
    run = RunFile.create(
        tmp_path / "run.json",
        {"name": "digits-mlp"},
        code=Code(note=f"fatal: could not read https://me:planted-note@host/{key}"),
        hash_inputs=inputs,
        environment=read_environment(),
    )
    run.launch(start_step=0)
    run.close("failed", f"ValueError: bad token {key}")

    text = (tmp_path / "run.json").read_text()

    assert re.findall(r"planted[-\w]*|ghp_\w+", text) == []
    assert json.loads(text)["launches"][0]["argv"][:4] == ["python", "train.py", "--api_key", "***"]


def test_run_json_is_valid_at_any_moment_of_its_life(tmp_path):
    path = tmp_path / "run.json"
    new_run(path)
    script = "import sys; from danling.run.record import RunFile; run = RunFile.read(sys.argv[1])\n"
    script += (
        "print('ready', flush=True)\nwhile True: run.launch(start_step=0); run.close('failed')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()

    statuses, looks = set[str](), 0
    while looks < 500 or len(statuses) < 2:
        statuses.add(json.loads(path.read_text())["status"])
        looks += 1
    process.kill()
    process.communicate()

    assert statuses == {"running", "failed"}
    assert RunFile.read(path).data["schema"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a run"),
        ("{", "not a run"),
        ("[]", "there is no schema"),
        ("{}", "there is no schema"),
        ('{"schema": "1"}', "there is no schema"),
        ('{"schema": 99}', "written by a later DanLing"),
        ("\udcff", "not a run"),
        (None, "it has no such file"),
    ],
)
def test_a_file_that_is_no_run_is_refused_with_its_name(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))

    with pytest.raises(RunDirectoryError, match=rf"{message}.*run\.json"):
        RunFile.read(tmp_path / "run.json")
