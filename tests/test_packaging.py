"""What is built is what is in the tree: a module that a wheel lacks is invisible in a checkout."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

import pytest

import danling
from tests.support.environments import (
    ROOT,
    WAYS,
    Environment,
    build,
    copy_checkout,
    make_environment,
)

INSTALLED = [way for way in WAYS if way != "checkout"]
TRAINING = """\
import danling as dl
import torch
from danling.callbacks import EarlyStopping

data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.randn(32, 1))
model = torch.nn.Linear(4, 1)
runner = dl.AccelerateRunner(
    dl.Config(seed=0, max_epochs=2),
    model=model,
    criterion=torch.nn.MSELoss(),
    optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    datasets={"train": data, "val": data},
    callbacks=[EarlyStopping(patience=3)],
)
runner.train()
print(dl.__version__, runner.epoch, (runner.dir / "checkpoints" / "best.pth").exists())
"""


def package_files() -> set[str]:
    """Every file of the import packages, by the path it has once installed."""
    core = {path.relative_to(ROOT).as_posix() for path in (ROOT / "danling").rglob("*.py")}
    ready_made = (ROOT / "callbacks").rglob("*.py")
    in_callbacks = {f"danling/{path.relative_to(ROOT).as_posix()}" for path in ready_made}
    return core | in_callbacks | {"danling/py.typed"}


@pytest.fixture(scope="module", params=["checkout", "checkout without symlinks"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    source = tmp_path_factory.mktemp("source") / "danling"
    copy_checkout(source, symlinks=request.param == "checkout")
    return build(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module", params=WAYS)
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return make_environment(tmp_path_factory.mktemp("environment"), request.param)


def test_the_wheel_holds_exactly_the_packages_of_the_tree(built: tuple[Path, Path]):
    with zipfile.ZipFile(built[1]) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert files == package_files()


def test_the_sdist_holds_what_a_build_and_the_tests_need_and_no_more(built: tuple[Path, Path]):
    with tarfile.open(built[0]) as sdist:
        files = {
            name.partition("/")[2] for name in sdist.getnames() if sdist.getmember(name).isfile()
        }

    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in ("callbacks", "danling", "examples", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and not path.is_relative_to(ROOT / "danling" / "callbacks")  # the link
        and not path.is_relative_to(ROOT / "tests" / "benchmarks")
    }
    beside = {
        *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md"),
        *("build_backend.py", "constraints.txt", "pyproject.toml"),
    }
    of_the_repository = {
        f"tests/test_{name}.py"
        for name in ("coming_from", "docs", "notebooks", "site", "workflows")
    } | {"tests/recipes/test_table.py"}
    made_by_setuptools = {name for name in files if name.startswith("danling.egg-info/")}
    made_by_setuptools |= {"PKG-INFO", "setup.cfg", ".index/README.md"}  # the last for it
    assert files - made_by_setuptools == sources - of_the_repository | beside


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
    assert f"Version: {danling.__version__}" in lines


def test_the_readme_of_the_metadata_links_and_shows_files_of_the_repository(
    built: tuple[Path, Path],
):
    with zipfile.ZipFile(built[1]) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        head, _, readme = wheel.read(metadata).decode().partition("\n\n")

    repository = re.findall(r"^Project-URL: Repository, (\S+)$", head, re.MULTILINE)[0]
    links = re.findall(r"(!?)\[[^]]*\]\(([^)#]+)[^)]*\)", readme)
    paths = set()
    for picture, link in links:
        shown = f"{repository.replace('github.com', 'raw.githubusercontent.com')}/main/"
        base = shown if picture else f"{repository}/blob/main/"
        if "huggingface.co" not in link:
            assert link.startswith(base), link
            paths.add(link.removeprefix(base))

    assert "Description-Content-Type: text/markdown" in head
    assert "docs/images/terminal.png" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_a_user_s_script_trains(environment: Environment):
    printed = environment.python_prints(TRAINING)

    assert printed == f"{danling.__version__} 2 True"


def test_the_callbacks_are_those_of_the_installation(environment: Environment):
    program = "import danling.callbacks.early_stopping as module; print(module.__file__)"

    location = Path(environment.python_prints(program)).resolve()

    (site,) = environment.python.parent.parent.glob("lib/python*/site-packages")
    installed = site / "danling" / "callbacks" / "early_stopping.py"
    in_place = environment.source / "callbacks" / "early_stopping.py"
    assert location == (installed if installed.exists() else in_place)


@pytest.mark.parametrize("environment", INSTALLED, indirect=True)
def test_the_metadata_says_the_version(environment: Environment):
    program = "from importlib.metadata import version; print(version('danling'))"

    assert environment.python_prints(program) == danling.__version__


@pytest.mark.parametrize("environment", INSTALLED, indirect=True)
@pytest.mark.parametrize("files", [["__init__.py", "own.py"], ["own.py"]])
def test_a_user_s_own_folder_named_callbacks_does_not_collide(
    environment: Environment, files: list[str]
):
    folder = environment.home / f"project{len(files)}"
    (folder / "callbacks").mkdir(parents=True)
    for file in files:
        (folder / "callbacks" / file).write_text("class EarlyStopping: pass")
    program = (
        f"import sys; sys.path[0] = {str(folder)!r}\n"
        "from callbacks.own import EarlyStopping as Own\n"
        "from danling.callbacks import EarlyStopping\n"
        "print(Own.__module__, EarlyStopping.__module__)"
    )

    modules = environment.python_prints(program)

    assert modules == "callbacks.own danling.callbacks.early_stopping"


@pytest.mark.parametrize("environment", INSTALLED, indirect=True)
def test_an_installation_adds_no_other_name_than_danling(environment: Environment):
    program = (
        "from importlib.util import find_spec\n"
        "print([name for name in ('build_backend', 'callbacks', 'tests', 'examples', 'docs')"
        " if find_spec(name)])"
    )

    assert environment.python_prints(program) == "[]"


@pytest.mark.parametrize("way", ["editable", "editable without symlinks"])
def test_a_new_module_is_found_by_an_editable_install(way: str, tmp_path: Path):
    environment = make_environment(tmp_path, way)
    (environment.source / "danling" / "new.py").write_text("name = 'new'")
    (environment.source / "callbacks" / "newer.py").write_text("name = 'newer'")

    program = "from danling import new; from danling.callbacks import newer; print(newer.name)"

    assert environment.python_prints(program) == "newer"


def test_the_link_for_tools_that_read_the_checkout_points_to_the_folder():
    link = ROOT / "danling" / "callbacks"
    if not link.is_symlink() and link.is_file():
        pytest.skip("this checkout was made without symlinks")

    assert link.is_symlink()
    assert link.resolve() == ROOT / "callbacks"
