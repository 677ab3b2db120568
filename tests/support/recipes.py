"""The recipes of `examples/recipes/`: trained in this process, or in one that dies and goes on."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

import danling as dl
from danling.data.sampling import Shuffled
from danling.seed import derive
from tests.support.resume_harness import digest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.py"))
NEEDS = {"lora": ["transformers", "peft"]}
"""The packages besides those of the tests that a recipe needs."""
PROCESSES = {"clip": 2}
"""The number of processes of a recipe that is made for several."""

WITHOUT_DATA = ("maml", "reinforce")

Weights = Mapping[str, Tensor]


def weights_of(models: nn.Module | Mapping[str, nn.Module]) -> Weights:
    """The weights of a model, or of several by name, as a checkpoint has them."""
    model = nn.ModuleDict(models) if isinstance(models, Mapping) else models
    return model.state_dict()


def batches(
    dataset: Any,
    config: Any,
    epoch: int,
    split: str = "train",
    collate_fn: Any = default_collate,
    times: int = 1,
) -> Iterator[Any]:
    """The batches of a plain `DataLoader`, in the order that a run has in this epoch.

    Args:
        dataset: The samples.
        config: The configuration of the recipe, with seed and batch size.
        epoch: The epoch.
        split: The split of the run whose order it is.
        collate_fn: The function that makes a batch of samples.
        times: The number of batches of the run that are one batch here.
    """
    order = list(Shuffled(len(dataset), derive(config.seed, split)).items(epoch))
    settings = config.dataloader.get(split, config.dataloader)
    size = times * settings["batch_size"]
    end = len(order) - (len(order) % size if settings.get("drop_last") else 0)
    for start in range(0, end, size):
        yield collate_fn([dataset[index] for index in order[start : start + size]])


def short(name: str) -> list[str]:
    """What makes the training of a recipe short, on its command line."""
    return ["--max_steps", "12"] if name in WITHOUT_DATA else ["--max_epochs", "2"]


def run_here(name: str, monkeypatch: Any, *arguments: str) -> ModuleType:
    """Train a recipe in this process; what it has defined is in the module that is returned."""
    path = FOLDER / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def trained(recipe: Any) -> Weights:
    """The weights of all that a recipe has trained."""
    if runners := getattr(recipe, "runners", None):
        return weights_of({f"{n}": runner.unwrapped_model for n, runner in enumerate(runners)})
    model, criterion = recipe.runner.unwrapped_model, recipe.runner.criterion
    if isinstance(criterion, nn.Module) and list(criterion.parameters()):
        return weights_of({"model": model, "criterion": criterion})
    return weights_of(model)


def plain(name: str) -> ModuleType:
    """The module with the same training in plain PyTorch."""
    return importlib.import_module(f"tests.recipes.plain.{name}")


class Kill(dl.Callback):
    """Dies as by `kill -9` at the step of this process that `KILL_AT` says."""

    priority = 1000
    steps = 0  # of all runners of the process

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        Kill.steps += 1
        if Kill.steps == int(os.environ.get("KILL_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)


KILLED = {
    "callbacks": {
        "model_checkpoint": {"every": "1 step"},
        "kill": {"callback": "tests.support.recipes:Kill"},
    },
    "accelerate": {"cpu": True},
    "resume": "auto",
}
"""What a recipe is told on its command line, besides how long it trains."""


def run_in_process(
    name: str, folder: Path, *arguments: str, kill_at: int = 0
) -> subprocess.CompletedProcess[str]:
    """Train a recipe as a script in a folder, until it kills itself at a step of the process."""
    folder.mkdir(exist_ok=True)
    file = folder / "killed.json"
    file.write_text(json.dumps(KILLED), encoding="utf-8")
    launcher = []
    if (number := PROCESSES.get(name, 1)) > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    return subprocess.run(
        [sys.executable, *launcher, FOLDER / f"{name}.py", "--config", str(file), *arguments],
        cwd=folder,
        env={**os.environ, "KILL_AT": str(kill_at), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def ends(folder: Path) -> dict[str, tuple[str, str, int]]:
    """Weights, state of the optimizers and number of steps at the end of each run of a folder."""
    found = {}
    for path in sorted(folder.glob("experiments/*/checkpoints/latest.pth")):
        checkpoint = torch.load(path, weights_only=True)
        parts = digest(checkpoint["model"]), digest(checkpoint["optimizer"])
        found[checkpoint["config"]["run_name"]] = (*parts, checkpoint["data"]["global_step"])
    return found


def lines_of(name: str) -> tuple[int, int]:
    """The lines of code of a recipe, and of the same in plain PyTorch; imports do not count.

    The plain program is its loop, and all definitions of the recipe that the loop uses.
    """
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    loop = Path(str(plain(name).__file__)).read_text(encoding="utf-8")
    own = [node for node in ast.parse(text).body if not isinstance(node, IMPORTS)][1:]
    (train,) = (node for node in ast.parse(loop).body if isinstance(node, ast.FunctionDef))
    wanted = {
        node.attr
        for node in ast.walk(train)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "recipe"
    }
    shared: set[ast.stmt] = set()
    while new := {node for node in own if defines(node) & wanted} - shared:
        shared |= new
        wanted |= {name.id for node in new for name in ast.walk(node) if isinstance(name, ast.Name)}
    return lines_in(text, own), lines_in(text, shared) + lines_in(loop, train.body)


IMPORTS = (ast.Import, ast.ImportFrom)


def defines(node: ast.stmt) -> set[str]:
    """The names that a statement of a module gives a meaning to."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {name.id for each in targets for name in ast.walk(each) if isinstance(name, ast.Name)}


def lines_in(text: str, nodes: Iterable[ast.stmt]) -> int:
    """The lines that statements take, without those that are blank, a comment or a docstring."""
    lines, numbers = text.splitlines(), set[int]()
    for node in nodes:
        docs = [each for each in ast.walk(node) if isinstance(each, ast.Expr) and is_text(each)]
        numbers |= numbers_of(node) - {n for each in docs for n in numbers_of(each)}
    code = [lines[number - 1].strip() for number in numbers]
    return sum(bool(line) and not line.startswith("#") for line in code)


def numbers_of(node: ast.stmt) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or 0) + 1))


def is_text(node: ast.Expr) -> bool:
    return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
