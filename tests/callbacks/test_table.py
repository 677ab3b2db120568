"""The table of the callbacks in the documentation is that of the code, and of the libraries."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import danling.callbacks
from danling.callback import HOOKS, Callback

PAGE = Path(__file__).resolve().parents[2] / "docs" / "callbacks.md"
OF_A_STEP = {
    "on_fetch_start",
    "on_fetch_end",
    "on_batch_start",
    "on_batch_end",
    "on_before_step",
    "on_step",
    "on_checkpoint",
}
OF_THE_INSTANCE = {"CallbackProfiler", "LambdaCallback"}  # their hooks are not on the class
LIBRARIES = {
    "Lightning": (
        "lightning.pytorch",
        "lightning.pytorch.callbacks",
        "lightning.pytorch.loggers",
        "lightning.pytorch.profilers",
        "lightning.pytorch.plugins.environments",
        "lightning.pytorch.utilities",
        "lightning.pytorch.cli",
    ),
    "Keras": ("keras.callbacks",),
    "Transformers": ("transformers", "transformers.integrations"),
    "Ignite": (
        "ignite.handlers",
        "ignite.metrics",
        "ignite.metrics.confusion_matrix",
        "ignite.handlers.tensorboard_logger",
        "ignite.handlers.wandb_logger",
    ),
}


class Row(NamedTuple):
    name: str
    what: str
    replaced: str
    hooks: str
    cost: str


ROWS = [
    Row(*(cell.strip() for cell in line.strip("|").split("|")))
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]


def overridden(name: str) -> list[str]:
    kind = getattr(danling.callbacks, name)
    return [hook for hook in HOOKS if getattr(kind, hook) is not getattr(Callback, hook)]


def test_every_callback_has_a_row_in_order():
    assert [row.name.strip("`") for row in ROWS] == danling.callbacks.__all__


@pytest.mark.parametrize("row", ROWS, ids=[row.name.strip("`") for row in ROWS])
def test_the_hooks_and_the_cost_of_a_row_are_those_of_the_class(row: Row):
    name = row.name.strip("`")
    hooks = overridden(name)

    assert re.findall(r"`(\w+)`", row.hooks) == hooks
    if name not in OF_THE_INSTANCE:
        assert (row.cost == "nothing") is not bool(OF_A_STEP & set(hooks))
    assert row.what
    assert row.cost


@pytest.mark.parametrize("name", danling.callbacks.__all__)
def test_arguments_are_told_in_sentences_with_a_subject(name: str):
    """Each begins as "The number of steps.", and none as "How many."."""
    kind = getattr(danling.callbacks, name)
    text = inspect.getdoc(kind) or ""
    section = re.search(r"^Args:\n((?:    .*\n|\n(?=    ))+)", f"{text}\n", re.MULTILINE)
    told = re.findall(r"^    \*{0,2}(\w+): (\w+|`)", section[1] if section else "", re.MULTILINE)

    assert [argument for argument, _ in told] == list(inspect.signature(kind).parameters)
    assert [each for each in told if each[1] not in ("The", "A", "An", "Whether")] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_replaced_exists_where_the_library_is_installed(library, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    modules: list[Any] = [pytest.importorskip(LIBRARIES[library][0].partition(".")[0])]
    modules += [import_module(name) for name in LIBRARIES[library]]
    names = [
        (row.name, name)
        for row in ROWS
        for other, name in re.findall(r"(\w+) `([^`]+)`", row.replaced)
        if other == library
    ]

    assert len(names) >= 5
    for row, name in names:
        path, _, argument = name.rstrip(")").partition("(")
        kind, _, method = path.partition(".")
        found = [getattr(module, kind) for module in modules if hasattr(module, kind)]
        assert found, f"{row}: {library} has no {kind}"
        assert hasattr(found[0], method or "__init__"), f"{row}: {kind} has no {method}"
        takes = inspect.signature(found[0]).parameters
        assert not argument or argument in takes, f"{row}: {kind} takes no {argument}"
