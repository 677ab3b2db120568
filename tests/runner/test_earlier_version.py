"""Runs that an earlier version has begun go on bit for bit; tests/fixtures has one of each kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.earlier_runs import FIXTURES, make_runner

EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))


def flat(results: list[dict[str, Any]]) -> list[float]:
    """Steps and values of all results, in their order."""
    found = []
    for result in results:
        found += [result["epoch"], result["global_step"]]
        found += [value for split in ("train", "val") for value in result[split].values()]
    return found


@pytest.mark.parametrize("name", sorted(EXPECTED))
@pytest.mark.parametrize("what", ["the run", "the file"])
def test_a_run_of_an_earlier_version_goes_on_bit_for_bit(name: str, what: str, tmp_path: Path):
    shutil.copytree(FIXTURES / name, tmp_path / "experiments")
    (run,) = (tmp_path / "experiments").glob("danling-run-*")
    resume = run if what == "the run" else run / "checkpoints" / "latest.pth"

    runner = make_runner(run.parent, 1 + name.startswith("window"), str(resume))
    runner.train()

    expected = EXPECTED[name]
    assert runner.dir == run
    assert runner.resume_report is not None
    assert runner.resume_report["exact"], runner.resume_report["reasons"]
    assert runner.resume_report["global_step"] == expected["step"]
    assert [parameter.tolist() for parameter in runner.model.parameters()] == expected["weights"]
    # the last bit of a mean of losses depends on where in memory its tensors lie
    assert flat(runner.results) == pytest.approx(flat(expected["results"]), rel=1e-6)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
