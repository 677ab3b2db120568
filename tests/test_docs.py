"""What the documents show, runs; what they list, exists."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import danling.callbacks
from danling.callback import HOOKS
from danling.trackers import GOES_ON

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
)
MODULES = sorted(
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "danling").rglob("*.py")
        if path.name != "__main__.py"
    ]
    + [f"danling.callbacks.{path.stem}" for path in (ROOT / "callbacks").glob("[!_]*.py")]
)


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for written_in, body in fenced if written_in == language]


def run_as_script(program: str, *arguments: str) -> str:
    """What `program`, a file of the user's in the working directory, prints."""
    Path("train.py").write_text(program, encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, "train.py", *arguments], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_run(module: str, tmp_path_factory: pytest.TempPathFactory):
    def getfixture(name: str) -> Path:  # as pytest's own doctests have it
        assert name == "tmp_path"
        return tmp_path_factory.mktemp("doctest")

    failed, _ = doctest.testmod(
        import_module(module),
        extraglobs={"getfixture": getfixture},
        optionflags=doctest.ELLIPSIS,
    )

    assert failed == 0


def test_the_readme_s_python_runs_from_top_to_bottom(tmp_path: Path):
    printed = run_as_script("\n".join(blocks(README, "python")))

    assert "'accuracy':" in printed
    assert list(tmp_path.glob("experiments/digits-mlp-*/checkpoints/best.pth"))


def test_contributing_s_python_runs_from_top_to_bottom():
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

    run_as_script("\n".join(blocks(contributing, "python")))


def test_the_readme_s_test_command_is_the_one_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = blocks(README, "bash")[0].splitlines()

    assert install == 'pip install -c constraints.txt -e ".[examples]" && python examples/digits.py'
    assert f"test_command='{test}'" in ci


def test_the_readme_shows_every_hook():
    picture = next(block for block in blocks(README, "") if "on_setup" in block)

    assert set(re.findall(r"\bon_\w+", picture)) == set(HOOKS)


def test_the_readme_s_table_lists_every_ready_made_callback():
    listed = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)

    assert sorted(listed) == sorted(danling.callbacks.__all__)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str):
    path = ROOT / document
    targets = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))

    missing = [
        target for target in targets if ":" not in target and not (path.parent / target).exists()
    ]

    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_heading_is_empty(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    without_code = re.sub(r"^```.*?^```$", "code", text, flags=re.MULTILINE | re.DOTALL)

    headings = r"^(#+) .+\n+(?=(#+) |\Z)"
    empty = [
        heading.group().strip()
        for heading in re.finditer(headings, without_code, re.MULTILINE)
        if len(heading[2] or "") <= len(heading[1])
    ]
    assert empty == []


def test_the_table_of_trackers_has_the_versions_that_were_seen_to_work():
    page = (ROOT / "docs" / "trackers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", page, re.MULTILINE)

    assert dict(rows) == GOES_ON
