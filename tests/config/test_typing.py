"""What mypy and pyright say of a script with a typed configuration."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RIGHT = """
from typing import Annotated, Literal

import danling as dl
from danling.config import Minimum, NotInRunId


class Optim(dl.Config):
    name: str = "adamw"
    lr: float = 1e-3


class Training(dl.Config):
    batch_size: int = 32
    layers: list[int] = [64, 64]
    kind: Literal["mlp", "cnn"] = "mlp"
    cache: Annotated[str, NotInRunId] = "cache"
    width: Annotated[int, Minimum(1)] = 8
    optim: Optim = Optim()
    max_epochs: int = 20
    seed: int = 0
    monitor: str = "val/accuracy"
    evaluate_every = "2 epochs"


config = Training(batch_size=8, optim=Optim(lr=1.0), monitor_mode="max", max_steps=3)
also = Training({"optim": {"lr": 1e-4}}, layers=[1])
parsed = Training.parse([])
epochs: int = parsed.max_epochs
steps: int | None = config.max_steps
rate: float = also.optim.lr
config.batch_size = 4
config["optim.lr"] = 1e-2
config.dataloader.batch_size = 4
plain = dl.Config(anything=1, optim={"lr": 1e-3}, max_epochs=3)
plain.optim.momentum = plain.optim.lr
limit: int | None = plain.max_epochs
print(epochs, steps, rate, limit, plain.run_name.upper())
"""

WRONG = """
import danling as dl


class Optim(dl.Config):
    lr: float = 1e-3


class Training(dl.Config):
    batch_size: int = 32
    optim: Optim = Optim()


config = Training()
Training(batchsize=3)  # wrong
Training(batch_size="many")  # wrong
Training(max_epochs="many")  # wrong
Training(max_epoch=3)  # wrong
print(config.batchsize)  # wrong
print(config.optim.lrr)  # wrong
config.batchsize = 3  # wrong
config.batch_size = "many"  # wrong
config.monitor_mode = "maximum"  # wrong
"""


def mypy(script: Path) -> set[int]:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", script.name],
        cwd=script.parent,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {int(line) for line in re.findall(rf"^{script.name}:(\d+): error", done.stdout, re.M)}


def pyright(script: Path) -> set[int]:
    if importlib.util.find_spec("pyright") is None or shutil.which("node") is None:
        pytest.skip("pyright and node are not installed: pip install pyright")
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "pythonVersion": "3.11"}
    (script.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", script.name],
        cwd=script.parent,
        env=os.environ | {"PYRIGHT_PYTHON_GLOBAL_NODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"}


@pytest.mark.parametrize("check", [mypy, pyright])
def test_a_typed_configuration_that_is_right_has_no_error(check, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(RIGHT)

    assert check(script) == set()


@pytest.mark.parametrize("check", [mypy, pyright])
def test_every_slip_is_found_in_its_line(check, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(WRONG)
    marked = {n for n, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")}

    assert check(script) == marked


def test_the_script_that_is_right_runs(tmp_path):
    (tmp_path / "train.py").write_text(RIGHT)

    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "20 3 0.0001 3 RUN\n"), done.stderr
