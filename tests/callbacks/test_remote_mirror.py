from __future__ import annotations

import signal
from pathlib import Path

import pytest

from danling.callbacks import ModelCheckpoint, RemoteMirror
from danling.errors import CallbackError
from danling.testing import CallbackContract, Lasting, TinyRunner, in_child, is_equal, outcome

fsspec = pytest.importorskip("fsspec")


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return RemoteMirror("memory://contract")


def files(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def make(root: Path, *callbacks, **config) -> TinyRunner:
    settings = {"project_root": str(root), "resume": "auto", **config}
    return TinyRunner(settings, callbacks=callbacks, default_callbacks=True)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_the_copy_is_the_run(tmp_path, kind):
    url = "memory://mirror" if kind == "memory" else f"file://{tmp_path}/mirror"
    mirror = RemoteMirror(url)
    runner = make(tmp_path / "here", mirror)
    runner.train()

    fetched = mirror.fetch(runner.dir.name, tmp_path / "there")
    assert mirror.failures == {}
    assert files(fetched) == files(runner.dir)
    assert "checkpoints/latest.pth" in files(fetched)


class Patient(RemoteMirror):
    """Waits for each copy, so that what is there when it dies is known."""

    def on_save(self, runner, path):
        super().on_save(runner, path)
        super().on_teardown(runner)


def test_a_run_that_died_goes_on_from_its_copy(tmp_path):
    url = f"file://{tmp_path}/mirror"
    undisturbed = make(tmp_path / "whole")
    undisturbed.train()

    in_child(lambda: make(tmp_path / "here", Patient(url), Lasting(6)).train())
    [name] = [path.name for path in (tmp_path / "here").glob("danling-*")]
    (tmp_path / "mirror" / name / "checkpoints" / "best.pth.part").write_bytes(b"half")
    resumed = make(tmp_path / "there", RemoteMirror(url))
    resumed.train()

    assert resumed.dir.name == name
    assert (resumed.resume_report or {})["global_step"] == 5
    assert is_equal(outcome(resumed), outcome(undisturbed))
    assert not list(resumed.dir.rglob("*.part"))


def test_nothing_is_fetched_where_the_run_is_here_or_has_ended(tmp_path):
    url = f"file://{tmp_path}/mirror"
    make(tmp_path / "here", RemoteMirror(url)).train()

    elsewhere = make(tmp_path / "there", RemoteMirror(url))
    elsewhere.train()  # the one of the mirror has ended: a new run
    again = make(tmp_path / "there", RemoteMirror(url), resume="latest")
    again.train()  # is here

    assert elsewhere.resume_report is None
    assert again.dir == elsewhere.dir
    assert len(list((tmp_path / "there").glob("danling-*"))) == 1


def test_a_run_that_ended_is_fetched_where_its_latest_is_asked_for(tmp_path):
    url = f"file://{tmp_path}/mirror"
    first = make(tmp_path / "here", RemoteMirror(url))
    first.train()

    again = make(tmp_path / "there", RemoteMirror(url), resume="latest")
    again.train()

    assert again.dir.name == first.dir.name
    assert (again.resume_report or {})["global_step"] == first.global_step


def test_a_place_that_cannot_be_read_refuses_the_resume(tmp_path):
    mirror = RemoteMirror(f"file://{tmp_path}/mirror")
    name = "danling-run-00000000-00000000-00000000"
    (tmp_path / "mirror" / name).mkdir(parents=True)
    (tmp_path / "mirror" / name / "run.json").write_text("{")

    with pytest.raises(CallbackError, match="cannot be read: JSONDecodeError"):
        make(tmp_path / "there", mirror).train()


@pytest.fixture
def s3(monkeypatch):
    """An S3-compatible server with a bucket; returns what fsspec has to know of it."""
    pytest.importorskip("s3fs")
    server_of = pytest.importorskip("moto.server")
    for key, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    options = {"endpoint_url": "http://{}:{}".format(*server.get_host_and_port())}
    fsspec.filesystem("s3", **options).mkdir("bucket")
    yield options
    server.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_run_that_died_goes_on_from_a_server_of_s3(tmp_path, s3):
    undisturbed = make(tmp_path / "whole")
    undisturbed.train()
    url = "s3://bucket/runs"

    code = in_child(
        lambda: make(tmp_path / "here", Patient(url, storage_options=s3), Lasting(6)).train()
    )
    mirror = RemoteMirror(url, storage_options=s3)
    resumed = make(tmp_path / "there", mirror)
    resumed.train()

    assert code == -signal.SIGKILL
    assert (resumed.resume_report or {})["global_step"] == 5
    assert is_equal(outcome(resumed), outcome(undisturbed))
    assert mirror.failures == {}
    fetched = mirror.fetch(resumed.dir.name, tmp_path / "again")
    assert files(fetched) == files(resumed.dir)


def test_a_place_that_fails_is_a_warning_and_tried_again(tmp_path, capsys):
    mirror = RemoteMirror("memory://failing", retries=1)
    tries: list[str] = []

    def fail(path, target, **_):
        tries.append(path)
        raise OSError("the network is down")

    mirror._filesystem = type(
        "Down", (), {"makedirs": lambda *_, **__: None, "put_file": staticmethod(fail)}
    )()
    runner = make(tmp_path, mirror, ModelCheckpoint(), resume=False)
    runner.train()

    latest = [path for path in tries if path.endswith("latest.pth")]
    assert len(latest) >= 4  # at two occasions, twice at each
    assert "OSError" in mirror.failures["checkpoints/latest.pth"]
    assert "checkpoints/latest.pth was not copied: OSError" in capsys.readouterr().err
    assert runner.status == "finished"


def test_a_run_that_is_there_is_not_touched(tmp_path):
    mirror = RemoteMirror(f"file://{tmp_path}/mirror")
    runner = make(tmp_path / "here", mirror)
    runner.train()

    with pytest.raises(CallbackError, match="exists"):
        mirror.fetch(runner.dir.name, tmp_path / "here")
    with pytest.raises(CallbackError, match=runner.dir.name):
        mirror.fetch("another", tmp_path / "here")


def test_a_place_that_nobody_knows_is_an_error():
    with pytest.raises(CallbackError, match="nowhere"):
        RemoteMirror("nowhere://runs")
