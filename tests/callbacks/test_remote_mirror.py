from __future__ import annotations

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


def test_a_run_that_died_goes_on_from_its_copy(tmp_path):
    url = f"file://{tmp_path}/mirror"
    undisturbed = make(tmp_path / "whole")
    undisturbed.train()

    class Patient(RemoteMirror):
        """Waits for each copy, so that what is there when it dies is known."""

        def on_save(self, runner, path):
            super().on_save(runner, path)
            super().on_teardown(runner)

    in_child(lambda: make(tmp_path / "here", Patient(url), Lasting(6)).train())
    [name] = [path.name for path in (tmp_path / "here").glob("danling-*")]
    RemoteMirror(url).fetch(name, tmp_path / "there")
    resumed = make(tmp_path / "there")
    resumed.train()

    assert resumed.dir.name == name
    assert (resumed.resume_report or {})["global_step"] == 5
    assert is_equal(outcome(resumed), outcome(undisturbed))


def test_a_place_that_fails_is_a_warning_and_tried_again(tmp_path, capsys):
    mirror = RemoteMirror("memory://failing", retries=1)
    tries: list[str] = []

    def fail(path, target, **_):
        tries.append(path)
        raise OSError("the network is down")

    mirror._filesystem = type(
        "Down", (), {"makedirs": lambda *_, **__: None, "put_file": staticmethod(fail)}
    )()
    runner = make(tmp_path, mirror, ModelCheckpoint())
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
