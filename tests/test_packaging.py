"""What is built is what is in the tree: a module that a wheel lacks is invisible in a checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    *(".*_cache", ".git", ".venv", "__pycache__", "*.egg-info", "build", "dist", "experiments")
)


def build(source: Path, out: Path) -> tuple[Path, Path]:
    """The sdist of `source`, and the wheel made from that sdist."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def package_files() -> set[str]:
    """Every file of the import packages, by the path it has once installed."""
    core = {path.relative_to(ROOT).as_posix() for path in (ROOT / "danling").rglob("*.py")}
    ready_made = (ROOT / "callbacks").rglob("*.py")
    in_callbacks = {f"danling/{path.relative_to(ROOT).as_posix()}" for path in ready_made}
    return core | in_callbacks | {"danling/py.typed"}


@pytest.fixture(scope="module", params=["checkout", "checkout without symlinks"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    source = tmp_path_factory.mktemp("source") / "danling"
    shutil.copytree(ROOT, source, symlinks=True, ignore=LEFT_OUT)
    if request.param == "checkout without symlinks":  # what git makes of a link on Windows
        (source / "danling" / "callbacks").unlink()
        (source / "danling" / "callbacks").write_text("../callbacks")
    return build(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture
def installed(built: tuple[Path, Path], tmp_path: Path) -> Path:
    """A directory for `sys.path` with the wheel's contents, away from the checkout."""
    site = tmp_path / "site"
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(site)
    return site


def run(program: str, site: Path, cwd: Path) -> str:
    """Run `program` as a user's script in `cwd` would run, with the wheel installed."""
    script = cwd / "program.py"
    script.write_text(f"import sys; sys.path.insert(1, {str(site)!r})\n{program}")
    return subprocess.run(
        [sys.executable, str(script)],
        check=True,
        capture_output=True,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin"},
        text=True,
    ).stdout.strip()


def test_the_wheel_holds_exactly_the_packages_of_the_tree(built: tuple[Path, Path]):
    with zipfile.ZipFile(built[1]) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert files == package_files()


def test_the_sdist_holds_what_a_build_and_the_tests_need(built: tuple[Path, Path]):
    with tarfile.open(built[0]) as sdist:
        files = {name.partition("/")[2] for name in sdist.getnames()}

    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in ("callbacks", "examples", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    documents = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"}
    assert files >= sources | documents | {".ci/run", "constraints.txt", "pyproject.toml"}


def test_the_wheel_depends_on_six_packages_and_no_more(built: tuple[Path, Path]):
    with zipfile.ZipFile(built[1]) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        lines = wheel.read(metadata).decode().splitlines()

    required = {
        line.removeprefix("Requires-Dist: ").partition(">=")[0]
        for line in lines
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    assert required == {"accelerate", "gitpython", "pyyaml", "tensorboard", "torch", "tqdm"}


def test_an_installed_callback_is_the_one_of_the_wheel(installed: Path, tmp_path: Path):
    program = "import danling.callbacks.early_stopping as module; print(module.__file__)"

    location = run(program, installed, tmp_path)

    assert location == str(installed / "danling" / "callbacks" / "early_stopping.py")


def test_a_user_s_own_folder_named_callbacks_does_not_collide(installed: Path, tmp_path: Path):
    own = tmp_path / "callbacks"
    own.mkdir()
    (own / "__init__.py").write_text("class EarlyStopping: pass")
    program = (
        "from callbacks import EarlyStopping as Own\n"
        "from danling.callbacks import EarlyStopping\n"
        "print(Own.__module__, EarlyStopping.__module__)"
    )

    modules = run(program, installed, tmp_path)

    assert modules == "callbacks danling.callbacks.early_stopping"


def test_the_link_for_tools_that_read_the_checkout_points_to_the_folder():
    link = ROOT / "danling" / "callbacks"
    if not link.is_symlink() and link.is_file():
        pytest.skip("this checkout was made without symlinks")

    assert link.is_symlink()
    assert link.resolve() == ROOT / "callbacks"
