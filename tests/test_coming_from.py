"""The page for those who come from elsewhere: its names are those of the libraries, and ours."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import danling.callbacks
from danling import AccelerateRunner
from danling.callback import HOOKS
from danling.config.settings import SETTINGS
from danling.data.prepare import SETTINGS as DATALOADER_SETTINGS
from danling.defaults import callback_names
from danling.testing import TinyRunner, tiny_data

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coming_from.md"


class Row(NamedTuple):
    """A row of a table of the page."""

    library: str
    table: str
    there: str
    here: str


def rows_of(text: str) -> list[Row]:
    rows: list[Row] = []
    library = table = ""
    for line in text.splitlines():
        if line.startswith("## "):
            library = line[3:]
        elif line.startswith("### "):
            table = line[4:].split()[0]
        elif match := re.match(r"\| `(.+?)` \| (.+?) \|", line):
            rows.append(Row(library, table, match[1], match[2].strip("`")))
    return rows


NOTHING = "\N{EN DASH}"
ROWS = rows_of(PAGE.read_text(encoding="utf-8"))


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def hooks_of(kind: type) -> set[str]:
    return {name for name in dir(kind) if name.startswith("on_") or name in ("setup", "teardown")}


def part(module: str, *names: str) -> Any:
    found: Any = pytest.importorskip(module, reason=f"needs {module.partition('.')[0]}")
    for name in names:
        found = getattr(found, name)
    return found


def keras(*names: str) -> Any:
    pytest.importorskip("keras", reason="needs keras")
    return part("keras", *names)


THERE: dict[tuple[str, str], Callable[[], set[str]]] = {
    ("Lightning", "Hooks"): lambda: hooks_of(part("lightning.pytorch", "Callback")),
    ("Lightning", "Callbacks"): lambda: set(dir(part("lightning.pytorch.callbacks"))),
    ("Lightning", "Arguments"): lambda: parameters(part("lightning.pytorch", "Trainer")),
    ("Lightning", "Methods"): lambda: set(dir(part("lightning.pytorch", "Trainer"))),
    ("Transformers", "Hooks"): lambda: hooks_of(part("transformers", "TrainerCallback")),
    ("Transformers", "Callbacks"): lambda: set(dir(part("transformers"))),
    ("Transformers", "Arguments"): lambda: {
        field.name for field in dataclasses.fields(part("transformers", "TrainingArguments"))
    },
    ("Transformers", "Methods"): lambda: set(dir(part("transformers", "Trainer"))),
    ("Keras", "Hooks"): lambda: hooks_of(keras("callbacks", "Callback")),
    ("Keras", "Callbacks"): lambda: set(dir(keras("callbacks"))),
    ("Keras", "Arguments"): lambda: parameters(keras("Model", "fit")),
    ("Keras", "Methods"): lambda: set(dir(keras("Model"))),
    ("Ignite", "Events"): lambda: {event.name for event in part("ignite.engine", "Events")},
    ("Ignite", "Handlers"): lambda: set(dir(part("ignite.handlers"))),
    ("Ignite", "Methods"): lambda: set(dir(part("ignite.engine", "Engine"))),
}


def table(library: str, name: str) -> set[str]:
    return {row.there for row in ROWS if (row.library, row.table) == (library, name)}


def test_the_page_has_every_table():
    assert {(row.library, row.table) for row in ROWS} == set(THERE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "name"), THERE, ids="-".join)
def test_the_names_of_other_libraries_are_theirs(
    library: str, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    known = THERE[library, name]()

    assert table(library, name) - known == set()
    if name in ("Hooks", "Events"):
        assert known - table(library, name) - {"on_epoch", "on_batch"} == set()


def is_ours(row: Row) -> bool:
    """Whether what stands in the second column is there."""
    name, call, arguments = row.here.partition("(")
    if row.table in ("Hooks", "Events"):
        return name in HOOKS
    if name in danling.callbacks.__all__:
        given = re.findall(r"(\w+)=", arguments)
        return set(given) <= parameters(getattr(danling.callbacks, name))
    key, _, inner = name.partition(".")
    if inner:
        known = {
            "accelerate": parameters(Accelerator),
            "callbacks": set(callback_names()),
            "dataloader": set(DATALOADER_SETTINGS) | parameters(torch.utils.data.DataLoader),
        }
        return inner in known[key]
    runner = set(dir(AccelerateRunner)) | parameters(AccelerateRunner)
    return not call and (name in SETTINGS or name in runner)


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.here != NOTHING],
    ids=lambda row: f"{row.library}-{row.there}",
)
def test_the_names_here_are_ours(row: Row):
    assert is_ours(row)


@pytest.mark.parametrize(
    "wrong",
    [
        Row("Keras", "Methods", "fit", "fitt"),
        Row("Keras", "Callbacks", "EarlyStopping", "EarlyStopping(patiense=3)"),
        Row("Keras", "Hooks", "on_epoch_begin", "on_epoch_begin"),
        Row("Keras", "Arguments", "batch_size", "dataloader.batchsize"),
    ],
    ids=lambda row: row.here,
)
def test_a_wrong_name_is_found(wrong: Row):
    assert not is_ours(wrong)


# The five differences: our side, and theirs where they are installed


def test_a_scheduler_moves_with_every_step_unless_it_is_by_epoch():
    rates = []
    for interval in ("step", "epoch"):
        runner = TinyRunner({"scheduler_interval": interval, "max_epochs": 2})
        runner.scheduler = torch.optim.lr_scheduler.StepLR(runner.optimizer, 1, gamma=0.5)
        runner.train()
        rates.append(runner.optimizer.param_groups[0]["lr"])

    assert rates == [0.1 * 0.5**8, 0.1 * 0.5**2]
    assert TinyRunner().config.scheduler_interval == "step"


def test_smaller_is_better_unless_said():
    assert TinyRunner({"monitor": "val/accuracy"}).config.monitor_mode == "min"


def test_nothing_is_clipped_scheduled_or_batched_unasked():
    runner = AccelerateRunner(
        {"seed": 0, "max_epochs": 1},
        model=nn.Linear(4, 3),
        datasets={"train": tiny_data(8, "train")},
        default_callbacks=False,
    )

    assert runner.config.max_grad_norm is None
    assert runner.scheduler is None
    assert runner.batch_size == 1


def test_an_evaluation_takes_the_weights_as_they_are(tmp_path: Path):
    config = {"project_root": str(tmp_path), "monitor": "val/accuracy", "monitor_mode": "min"}
    runner = TinyRunner({**config, "max_epochs": 4}, default_callbacks=True)
    runner.train()

    assert runner.best_result is not runner.latest_result
    assert runner.evaluate("val") == runner.results[-1]["val"]
    runner.load_checkpoint(runner.checkpoint_dir / "best.pth")
    assert runner.evaluate("val")["accuracy"] == runner.best_score


def test_steps_are_of_the_optimizer_and_batches_of_a_process():
    counts = {"step": 0, "batch_end": 0}
    accelerate = {"gradient_accumulation_steps": 2}
    runner = TinyRunner({"max_epochs": 1, "accelerate": accelerate})

    @runner.on("step")
    def count_steps(runner):
        counts["step"] += 1

    @runner.on("batch_end")
    def count_batches(runner, batch, output):
        counts["batch_end"] += 1

    runner.train()

    assert counts == {"step": 2, "batch_end": 4}
    assert (runner.global_step, runner.batch_size, runner.batch_size_equivalent) == (2, 4, 8)


@pytest.mark.filterwarnings("ignore")
def test_lightning_moves_schedulers_by_the_epoch():
    types = pytest.importorskip("lightning.pytorch.utilities.types", reason="needs lightning")

    fields = {field.name: field.default for field in dataclasses.fields(types.LRSchedulerConfig)}
    assert fields["interval"] == "epoch"


@pytest.mark.filterwarnings("ignore")
def test_transformers_clips_and_schedules_by_default():
    pytest.importorskip("transformers", reason="needs transformers")
    kind = import_module("transformers").TrainingArguments
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}

    assert defaults["max_grad_norm"] == 1.0
    assert defaults["lr_scheduler_type"] == "linear"
    assert defaults["per_device_train_batch_size"] == 8
