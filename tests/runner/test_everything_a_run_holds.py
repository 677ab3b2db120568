"""Whatever a run holds: killed and resumed it is as undisturbed, or the report says why not."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.held import CASES, KILL_AT, train
from tests.support.resume_harness import in_process

REASONS = {
    "sam": "keeps base_optimizer (SGD), whose state is not in its state_dict()",
    "unsaved": "1 parameters in group 0 of the optimizer are in nothing that is saved",
    "left_out": "2 parameters in group 0 of the optimizer are in nothing that is saved",
}
"""What cannot be restored, and what is said of it; all others go on exactly."""

ASSIGNED = {
    "as_big": "datasets['train'] was assigned while the run trained, for epoch 1",
    "other_model": " was assigned while the run trained, for epoch 1, and nobody has done it again",
}
"""What nobody can tell to be what it was, since the run was given it while it trained."""


def outcome(root: Path, case: str, kill_at: int | None = None) -> dict[str, Any]:
    root.mkdir(exist_ok=True)
    if kill_at is not None:
        assert in_process(train, root, case, kill_at) == -signal.SIGKILL
    assert in_process(train, root, case) == 0
    result: dict[str, Any] = json.loads((root / "outcome.json").read_text())
    return result


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_exactly_or_says_why_not(case: str, tmp_path: Path) -> None:
    whole = outcome(tmp_path / "whole", case)

    resumed = outcome(tmp_path / "resumed", case, KILL_AT)

    report, doubts = resumed["report"], REASONS | ASSIGNED
    assert report["global_step"] == KILL_AT - 1
    assert (resumed["digest"] == whole["digest"]) == (case not in {*REASONS, "as_big"})
    assert report["exact"] == (case not in doubts)
    assert bool(report["reasons"]) == (case in doubts)
    assert all(doubts[case] in reason for reason in report["reasons"])
    if case in REASONS:
        assert f"a resume will not be exact: the optimizer {REASONS[case]}" in whole["log"] or (
            f"a resume will not be exact: {REASONS[case]}" in whole["log"]
        )
