"""What the documents show, runs; what they list, exists."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from danling.trackers import GOES_ON
from docs.generate import reference_pages
from tests.support.week import make_week

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for written_in, body in fenced if written_in == language]


DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
CODE = r"^```.*?^```$|`[^`\n]+`"
HAVE_THEIR_OWN = ("README.md", "docs/experiments.md")  # tests, below
WITH_PYTHON = [
    path
    for path in DOCUMENTS
    if path not in HAVE_THEIR_OWN and "\n```python\n" in (ROOT / path).read_text(encoding="utf-8")
]
MODULES = sorted(
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "danling").rglob("*.py")
        if path.name != "__main__.py"
    ]
    + [f"danling.callbacks.{path.stem}" for path in (ROOT / "callbacks").glob("[!_]*.py")]
)


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


@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_each_example_of_the_readme_runs_by_itself(number: int, tmp_path: Path):
    printed = run_as_script(blocks(README, "python")[number])

    assert "'loss':" in printed
    assert list(tmp_path.glob("experiments/*/checkpoints/best.pth"))


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str):
    run_as_script("\n".join(blocks((ROOT / page).read_text(encoding="utf-8"), "python")))


def test_the_python_of_the_week_of_experiments_runs_on_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    monkeypatch.chdir(make_week(tmp_path / "week"))

    printed = run_as_script("\n".join(blocks(text, "python")))

    assert "optim.lr" in printed
    assert "environment" in printed


def test_the_readme_s_test_command_is_the_one_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = blocks(README, "bash")[0].splitlines()

    assert install == 'pip install -c constraints.txt -e ".[examples]" && python examples/digits.py'
    assert f"test_command='{test}'" in ci


def test_the_readme_s_figures_are_those_of_the_page_on_performance():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    header = next(line for line in page.splitlines() if line.startswith("| | by hand |"))
    places = [cells(header).index(name) for name in ("DanLing", "Lightning", "HF Trainer")]
    lines = re.findall(r"^\| a plain `Dataset` .*", page, re.MULTILINE)

    for row, line in zip(("Time of a small step", "The same with bar"), lines, strict=True):
        shown = re.search(rf"^\| {row}.*", README, re.MULTILINE)
        assert shown is not None
        assert [float(cell) for cell in re.findall(r"([\d.]+) times", shown[0])] == [
            round(float(cells(line)[place]), 1) for place in places
        ]


def cells(line: str) -> list[str]:
    """The cells of a line of a table in Markdown."""
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str):
    path = ROOT / document
    text = re.sub(CODE, "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#]+)", text)  # kinds["sgd"](model) is none

    made = {(ROOT / "docs" / page).resolve() for page in reference_pages()}
    files = {target: (path.parent / target).resolve() for target in targets if ":" not in target}
    missing = [name for name, file in files.items() if not file.exists() and file not in made]

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
