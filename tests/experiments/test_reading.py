from __future__ import annotations

import os
from pathlib import Path

import pytest

from danling.errors import ConfigError, RunDirectoryError
from danling.experiments.reading import (
    PassedOver,
    find_root,
    list_root,
    read_json,
    read_record,
    read_settings,
)
from tests.support.runs import make_run


def test_the_folder_of_the_runs_is_found_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "experiments"
    run = make_run(root)
    inner = tmp_path / "src" / "deep"
    inner.mkdir(parents=True)

    for place in (tmp_path, inner, root, run):
        monkeypatch.chdir(place)
        assert find_root().resolve() == root

    assert find_root(tmp_path).resolve() == root
    monkeypatch.setenv("DANLING_ROOT", str(root))
    monkeypatch.chdir("/")
    assert find_root() == root


def test_without_one_it_says_how_to_name_it(tmp_path: Path):
    with pytest.raises(RunDirectoryError, match="-C DIR or DANLING_ROOT"):
        find_root()


def test_hidden_and_foreign_files_are_no_matter(tmp_path: Path):
    run = make_run(tmp_path)
    (tmp_path / ".danling").mkdir()
    (tmp_path / "notes.txt").write_text("")

    assert list_root(tmp_path) == ([run], [])


@pytest.mark.parametrize("size", [0, 1, 5000, 3 << 20])
def test_a_file_of_any_size_is_read_whole(tmp_path: Path, size: int):
    path = tmp_path / "a.json"
    path.write_text(f'"{"x" * size}"')

    assert read_json(path) == "x" * size


def test_a_pipe_does_not_make_it_wait(tmp_path: Path):
    os.mkfifo(tmp_path / "run.json")

    with pytest.raises(OSError, match="not a regular file"):
        read_json(tmp_path / "run.json")
    assert isinstance(read_record(tmp_path), PassedOver)


def test_settings_are_read_from_yaml_and_json(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("optim: {lr: 1e-3}\n")
    (tmp_path / "a.json").write_text('{"optim": {"lr": 0.001}}')
    (tmp_path / "list.yaml").write_text("- 1\n")

    assert read_settings(tmp_path / "a.yaml") == read_settings(tmp_path / "a.json")
    for name in ("list.yaml", "none.yaml"):
        with pytest.raises(ConfigError, match=name):
            read_settings(tmp_path / name)
