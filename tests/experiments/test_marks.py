from __future__ import annotations

from pathlib import Path

import pytest

import danling as dl
from danling.errors import ConfigError
from danling.experiments.marks import Marks, read_marks
from tests.support.runs import make_run


def test_tags_and_notes_are_kept(tmp_path: Path):
    path = make_run(tmp_path)
    run = dl.runs(tmp_path)[0]

    run.tag("paper", "v1.2")
    run.tag("again", remove=["v1.2"])
    run.note("the loss jumps at epoch 3")

    marks = read_marks(path)
    assert marks.tags == ("paper", "again") == run.tags
    assert [note.text for note in marks.notes] == ["the loss jumps at epoch 3"]
    assert dl.runs(tmp_path).filter("'paper' in tags")[0] == run


@pytest.mark.parametrize("tag", ["two words", "", "-x", "a" * 60, "a/b", "a\x1b"])
def test_what_is_no_tag_is_refused_and_changes_nothing(tmp_path: Path, tag: str):
    path = make_run(tmp_path)

    with pytest.raises(ConfigError):
        dl.runs(tmp_path)[0].tag("good", tag)

    assert read_marks(path) == Marks()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"tags": 3, "notes": [1]}'])
def test_a_damaged_file_is_no_marks(tmp_path: Path, content: str):
    path = make_run(tmp_path)
    (path / "marks.json").write_text(content)

    assert read_marks(path) == Marks()
