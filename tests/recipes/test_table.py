"""The page on recipes has each of them, with the lines that it has."""

from __future__ import annotations

import ast
import re

from tests.support.recipes import RECIPES, ROOT, lines_in, lines_of


def test_the_table_has_the_lines_of_each_recipe_and_of_its_plain_loop():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    row = r"^\| \[[^]]+\]\(\.\./examples/recipes/(\w+)\.py\) \| [^|]+ \| (\d+) \| (\d+) \|$"
    rows = re.findall(row, page, re.MULTILINE)

    assert sorted(name for name, _, _ in rows) == RECIPES
    assert {name: (int(own), int(plain)) for name, own, plain in rows} == {
        name: lines_of(name) for name in RECIPES
    }


def test_blank_lines_comments_and_docstrings_do_not_count():
    text = (
        '"""What it is."""\n\nx = 1  # one\n\n\ndef f():\n    """It adds.\n\n    Much.\n    """\n'
    )
    text += "    # a comment\n    return (\n        x\n    )\n"

    assert lines_in(text, ast.parse(text).body[1:]) == 5
