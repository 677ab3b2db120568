"""What MkDocs calls: adds the pages that are made of the code, the navigation, and links to files.

A page that is linked is a file below docs/. Files elsewhere in the repository, as examples, are
linked in the way that works in a checkout, and lead to the repository on the site.
"""

from __future__ import annotations

import posixpath
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from docs.generate import reference_pages  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]

SECTIONS = {
    "Tutorials": [
        "tutorials/first_run.md",
        "tutorials/configure.md",
        "tutorials/own_callback.md",
        "tutorials/own_loop.md",
        "tutorials/resume.md",
        "tutorials/several_gpus.md",
        "tutorials/tensorboard.md",
        "tutorials/from_plain_torch.md",
        "experiments.md",
        "coming_from.md",
    ],
    "How to": [
        "how_to.md",
        "training.md",
        "optimization.md",
        "data_and_metrics.md",
        "recipes.md",
        "callbacks.md",
        "write_a_callback.md",
        "trackers.md",
        "distributed.md",
    ],
    "Explanation": [
        "explanation/exact_resume.md",
        "explanation/identity.md",
        "explanation/commit.md",
        "resume.md",
        "performance.md",
    ],
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the reference."""
    from mkdocs.structure.files import File

    for path, text in reference_pages().items():
        files.append(File.generated(config, path, content=text))
    config.nav = _navigation({file.src_uri for file in files.documentation_pages()})
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Have links that lead out of docs/ lead to the repository."""

    def outward(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, match[2]))
        if target.startswith("docs/") or not (ROOT / target).exists():
            return match[0]
        return f"{match[1]}{REPOSITORY}/blob/main/{target}{match[3]}"

    folder = posixpath.dirname(page.file.src_uri)
    return re.sub(r"(\]\()(\.\./[^)#]+)([^)]*\))", outward, markdown)


def _navigation(pages: set[str]) -> list[Any]:
    """The pages that are there by section; those that no section names come under "More"."""
    navigation: list[Any] = [{"DanLing": "index.md"}]
    named = {"index.md"}
    for title, listed in SECTIONS.items():
        navigation.append({title: [page for page in listed if page in pages]})
        named.update(listed)
    others = sorted(pages - named)
    reference = [page for page in others if page.startswith("reference/")]
    recipes = [page for page in others if page.startswith("recipes/")]
    more = [page for page in others if page not in [*reference, *recipes]]
    navigation += [
        {title: found} for title, found in (("Recipes", recipes), ("More", more)) if found
    ]
    return [*navigation, {"Reference": _reference(reference)}]


def _reference(pages: list[str]) -> list[Any]:
    top = [page for page in pages if page.count("/") == 1 and page != "reference/index.md"]
    callbacks = [page for page in pages if page.startswith("reference/callbacks/")]
    packages = [page for page in pages if page.startswith("reference/api/")]
    return ["reference/index.md", *top, {"Each callback": callbacks}, {"Packages": packages}]
