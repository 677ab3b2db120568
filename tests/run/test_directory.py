"""The names of a run's files, and directories that are claimed."""

from __future__ import annotations

from pathlib import Path

from danling.run.directory import RunPaths, claim


def test_every_file_of_a_run_is_in_its_directory(tmp_path: Path):
    paths = RunPaths(tmp_path / "run", "saves")

    named = [paths.run_json, paths.runner_yaml, paths.results, paths.metrics, paths.log]
    assert {path.parent for path in named} == {paths.path}
    assert paths.checkpoints == tmp_path / "run" / "saves"


def test_a_directory_is_claimed_once_and_hidden_from_git(tmp_path: Path):
    first, one = claim(tmp_path / "runs", "digits-mlp", "a" * 32, "b" * 32)
    second, two = claim(tmp_path / "runs", "digits-mlp", "a" * 32, "b" * 32)

    assert first != second
    assert first.name == f"digits-mlp-aaaaaaaa-bbbbbbbb-{one.hex[:8]}"
    assert second.name.endswith(two.hex[:8])
    assert (tmp_path / "runs" / ".gitignore").read_text().split() == ["*"]
