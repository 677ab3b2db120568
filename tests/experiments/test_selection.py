from __future__ import annotations

from pathlib import Path

import pytest

import danling as dl
from danling.experiments import Runs, SelectionError, select, select_one
from tests.support.runs import make_run


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    root = tmp_path / "experiments"
    make_run(root, 0x1234, score=0.5)
    make_run(root, 0x1235, score=0.9, name="digits-mlp")
    make_run(root, 0x2000, score=0.1, name="digits-cnn", status="failed", run_id="c" * 32)
    return dl.runs(root)


@pytest.mark.parametrize(
    ("word", "numbers"),
    [
        ("00001234", [0x1234]),
        ("00002", [0x2000]),
        ("cccccccc", [0x2000]),
        ("bbbbbbbb", [0x1235, 0x1234]),
        ("aaaaaaaa-bbbbbbbb-00001235", [0x1235]),
        ("digits-*", [0x2000, 0x1235]),
        ("digits-mlp", [0x1235]),
        ("@1", [0x2000]),
        ("@3", [0x1234]),
        ("@best", [0x1235]),
        ("@failed", [0x2000]),
        ("@all", [0x2000, 0x1235, 0x1234]),
        ("experiments/digits-mlp-aaaaaaaa-bbbbbbbb-00001235", [0x1235]),
    ],
)
def test_words(runs: Runs, word: str, numbers: list[int]):
    assert [int(run.uuid[:8], 16) for run in select(runs, [word])] == numbers


@pytest.mark.parametrize(
    ("word", "message", "count"),
    [
        ("0000123", "selects 2 runs; take one of", 2),
        ("zzz", "danling ls lists the runs", 0),
        ("digits-mpl", "did you mean 'digits-mlp'", 0),
        ("@4", "there are 3 runs", 0),
        ("@0", "@1 is the newest", 0),
        ("@bst", "did you mean '@best'", 0),
        ("@killed", "no run is selected by @killed", 0),
        ("experiments", "danling ls lists the runs", 0),
        ("./", r"it has no run\.json", 0),
    ],
)
def test_a_word_that_selects_none_or_several_says_what_to_type(
    runs: Runs, word: str, message: str, count: int
):
    with pytest.raises(SelectionError, match=message) as failure:
        select_one(runs, word)

    assert len(failure.value.candidates) == count


def test_a_run_is_selected_once(runs: Runs):
    assert len(select(runs, ["@best", "digits-mlp", "@all"])) == 3
