from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from danling.cli.choosing import add_choice, chosen, chosen_run, note_passed_over
from danling.cli.output import Output


def options(*words: str) -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("-C", dest="root")
    add_choice(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ((), [3, 2, 1]),
        (("@1", "00000001"), [3, 1]),
        (("-F", "optim.lr == 0.1"), [2, 1]),
        (("-F", "optim.lr == 0.1", "-F", "val.accuracy > .6"), [2]),
        (("-s", "val.accuracy", "-n", "2"), [1, 2]),
        (("-s", "optim.lr", "--sort=-val.accuracy"), [2, 1, 3]),
        (("-n", "0"), []),
    ],
)
def test_words_filters_order_and_number(root: Path, words: tuple[str, ...], numbers: list[int]):
    found = chosen(options(*words), Output())

    assert [int(run.uuid[:8], 16) for run in found] == numbers


def test_one_word_is_one_run(root: Path):
    assert chosen_run(options(), "@best").score == 0.9


def test_what_was_passed_over_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a\x1b[2J", "b", "c", "d"):
        (root / name).mkdir()

    note_passed_over(chosen(options(), Output(json=True)), Output())

    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("4 entries were passed over: a\\x1b[2J: it has no run.json; b: ")
    assert "and 1 more (danling ls --passed-over)" in told
