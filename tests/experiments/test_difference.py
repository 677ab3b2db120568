from __future__ import annotations

from pathlib import Path

import danling as dl
from danling.experiments.difference import difference
from tests.support.runs import RECORD, make_run


def test_config_environment_command_and_metrics_in_five_lines(tmp_path: Path):
    make_run(tmp_path, 1, score=0.5)
    launch = {**RECORD["launches"][0], "argv": ["python", "-u", "other.py"]}
    make_run(
        tmp_path,
        2,
        score=0.75,
        config={"optim": {"lr": 0.2}, "depth": 3},
        environment={"host": "node2", "python": "3.11.0"},
        launches=[launch],
    )
    after, before = dl.runs(tmp_path)

    found = difference(before, after)

    told = {change.key: (change.before, change.after) for change in found.config}
    assert told == {"optim.lr": (0.1, 0.2), "depth": (None, 3)}
    assert found.code.same
    assert [(c.key, c.after) for c in found.environment] == [("host", "node2")]
    assert {change.key for change in found.command} == {"script", "python"}
    assert found.metrics[0].key == "val.accuracy"
    lines = str(found).splitlines()
    titles = ["config", "code", "environment", "command", "metrics"]
    assert [line.split()[0] for line in lines] == titles
    assert "optim.lr 0.1 → 0.2 · + depth 3" in lines[0]


def test_the_same_run_does_not_differ_from_itself(tmp_path: Path):
    make_run(tmp_path, 1)
    run = dl.runs(tmp_path)[0]

    assert run.diff(run).is_empty
    assert run.diff(run).to_dict()["config"] == []


def test_code_that_is_nowhere_is_said(tmp_path: Path):
    make_run(tmp_path, 1)
    make_run(tmp_path, 2, experiment_id="c" * 32, code={"commit": "2" * 40, "source": "git"})
    first, second = dl.runs(tmp_path)

    assert "no repository here has the commit" in first.diff(second).code.note
