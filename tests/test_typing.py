"""What mypy and pyright say of a user's script, in every way of installing DanLing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.support.environments import WAYS, Environment, make_environment

# setuptools' import hook is all that is left without symbolic links, and no type checker runs it
READABLE = [way for way in WAYS if way != "editable without symlinks"]

ROOT = Path(__file__).resolve().parent.parent

RIGHT = """\
from __future__ import annotations

from pathlib import Path

import danling as dl
import torch
from danling.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn


class Greeter(dl.Callback):
    name = "greeter"

    def on_epoch_end(self, runner: dl.BaseRunner) -> None:
        print(f"epoch {runner.epoch}: {runner.latest_result}")

    def on_save(self, runner: dl.BaseRunner, path: Path) -> None:
        print(path.name)


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(dim=1) == target).float().mean()


model = nn.Linear(2, 2)
config = dl.Config(seed=0, max_epochs=1, monitor="val/accuracy", monitor_mode="max")
dl.seed_everything(config)
data = torch.utils.data.TensorDataset(torch.randn(8, 2), torch.zeros(8, dtype=torch.long))
runner = dl.AccelerateRunner(
    config,
    model=model,
    criterion=nn.CrossEntropyLoss(),
    optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3),
    datasets={"train": data, "val": data},
    metrics={"accuracy": accuracy},
    callbacks=[Greeter(), EarlyStopping(patience=3), ModelCheckpoint()],
)
with runner:
    for epoch in runner.epochs():
        for batch in runner.batches("train"):
            runner.step(runner.train_step(batch))
        result = runner.evaluate("val")
print(runner.best_score, runner.global_step, runner.dir)
"""

WRONG = """\
import danling as dl
import torch
from danling import AcclerateRunner  # slip
from danling.callbacks import EarlyStopping
from danling.callbacks import EarlyStoping  # slip

model = torch.nn.Linear(2, 1)
config = dl.Config(max_epochs=1)


class Greeter(dl.Callback):
    def on_epoch_end(self, runner: dl.BaseRunner, result: float) -> None:  # slip
        print(result)


class Watcher(dl.Callback):
    def on_save(self, runner: dl.BaseRunner) -> None:  # slip
        print("saved")


EarlyStopping(patiance=3)  # slip
runner = dl.AccelerateRunner(config, model=model)
print(runner.best_reslt)  # slip
runner.evaluate(3)  # slip
"""

MISSPELT = """\
import danling as dl
import torch

model = torch.nn.Linear(2, 1)
config = dl.Config(max_epochs=1)
dl.AccelerateRunner(config, modle=model)  # slip
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of mypy: torch is read once for all environments."""
    return tmp_path_factory.mktemp("mypy")


@pytest.fixture(
    scope="module",
    params=[  # an installation and an sdist end as a wheel does
        pytest.param(way, marks=[pytest.mark.exhaustive] if way in ("install", "sdist") else [])
        for way in READABLE
    ],
)
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return make_environment(tmp_path_factory.mktemp("environment"), request.param)


def mypy(environment: Environment, program: str, cache: Path) -> dict[int, str]:
    """The errors of `mypy --strict`, by line of the script."""
    (environment.home / "script.py").write_text(program, encoding="utf-8")
    options = ["--strict", "--no-error-summary", "--cache-dir", str(cache)]
    interpreter = ["--python-executable", str(environment.python)]
    finished = environment.run(sys.executable, "-m", "mypy", *options, *interpreter, "script.py")
    assert finished.returncode in {0, 1}, finished.stdout + finished.stderr
    found = re.findall(r"^(.+?):(\d+): error: (.+)$", finished.stdout, re.MULTILINE)
    assert {file for file, _, _ in found} <= {"script.py"}
    return {int(line): message for _, line, message in found}


def pyright(environment: Environment, program: str) -> dict[int, str]:
    """The errors of pyright, by line of the script."""
    (environment.home / "script.py").write_text(program, encoding="utf-8")
    interpreter = ["--pythonpath", str(environment.python)]
    finished = environment.run(
        sys.executable, "-m", "pyright", "--outputjson", *interpreter, "script.py"
    )
    assert finished.returncode in {0, 1}, finished.stdout + finished.stderr
    answer = json.loads(finished.stdout)
    assert answer["summary"]["filesAnalyzed"] == 1
    return {
        error["range"]["start"]["line"] + 1: error["message"]
        for error in answer["generalDiagnostics"]
        if error["severity"] == "error"
    }


def slips(program: str) -> list[int]:
    """The lines of a script on which there is a mistake."""
    lines = enumerate(program.splitlines(), start=1)
    return [number for number, line in lines if line.endswith("# slip")]


def test_a_right_script_has_no_error(environment: Environment, cache: Path):
    assert mypy(environment, RIGHT, cache) == {}
    assert pyright(environment, RIGHT) == {}


def test_typical_slips_are_found_and_nothing_else(environment: Environment, cache: Path):
    expected = slips(WRONG)

    assert sorted(mypy(environment, WRONG, cache)) == expected
    assert sorted(pyright(environment, WRONG)) == expected


def test_a_misspelt_argument_of_the_runner_is_refused(environment: Environment, cache: Path):
    said_by_mypy = mypy(environment, MISSPELT, cache)
    said_by_pyright = pyright(environment, MISSPELT)

    assert sorted(said_by_mypy) == sorted(said_by_pyright) == slips(MISSPELT)
    assert "modle" in said_by_mypy[6]
    assert "modle" in said_by_pyright[6]


@pytest.mark.parametrize(
    "environment",
    ["wheel", pytest.param("editable", marks=pytest.mark.exhaustive)],
    indirect=True,
)
def test_the_examples_of_the_pages_have_no_error(environment: Environment, cache: Path):
    folders = [ROOT / "docs" / name for name in ("tutorials", "explanation")]
    pages = [ROOT / "README.md", ROOT / "docs" / "how_to.md"]
    pages += [page for folder in folders for page in sorted(folder.glob("*.md"))]
    files = []
    for page in filter(Path.exists, pages):  # an sdist has the README alone
        text = page.read_text(encoding="utf-8")
        programs = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if page.name != "README.md":  # each of whose examples stands by itself
            programs = ["\n".join(programs)]
        for number, program in enumerate(filter(None, programs)):
            files.append(f"example_{page.stem}_{number}.py")
            (environment.home / files[-1]).write_text(program, encoding="utf-8")

    options = ["--strict", "--ignore-missing-imports", "--cache-dir", str(cache)]
    options += ["--python-executable", str(environment.python)]
    by_mypy = environment.run(sys.executable, "-m", "mypy", *options, *files)
    interpreter = ["--pythonpath", str(environment.python)]
    by_pyright = environment.run(sys.executable, "-m", "pyright", *interpreter, *files)

    assert len(files) > 1
    assert f"no issues found in {len(files)} source files" in by_mypy.stdout, by_mypy.stdout
    assert by_pyright.stdout.startswith("0 errors"), by_pyright.stdout
