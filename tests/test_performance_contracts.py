"""What makes a step cheap, as things that can be counted; `tests/benchmarks` measures time."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, TensorDataset

import danling as dl
from danling.callbacks import TensorBoard
from danling.optimization import optimization

BARE, EVERYTHING = 740, 1090  # bytecodes of a step, without callbacks and with the default ones
EVALUATION = {
    "a list": (8, 340),
    "a loader": (26, 770),
    "TensorDataset": (12, 440),
    "a plain dataset": (25, 740),
}
READING = {
    "a list": (0, 0),
    "a loader": (18, 425),
    "TensorDataset": (5, 172),
    "a plain dataset": (18, 470),
}
"""The most calls and bytecodes of this library for a batch, by the kind of data."""

STEPS = 256  # a whole number of the windows in which values are folded on the device


def make_batches(amount: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 16, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in range(amount)
    ]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def make_runner(steps: int, *, default: bool = False, **parts: Any) -> dl.AccelerateRunner:
    model, config = make_model(), parts.pop("config", {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    return dl.AccelerateRunner(
        {"seed": 0, "max_epochs": 1, "accelerate": {"cpu": True}} | config,
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        scheduler=schedule if config.get("scheduler_interval") else None,
        dataloaders={"train": make_batches(steps)},
        default_callbacks=default,
        **parts,
    )


# The way of a step


@pytest.mark.parametrize(
    ("accumulation", "norm", "precision", "schedule"),
    list(product((1, 3), (None, 0.1), ("no", "bf16"), (None, "step", "epoch"))),
)
def test_a_step_is_the_same_bit_for_bit_with_and_without_the_wrappers_of_accelerate(
    accumulation, norm, precision, schedule, monkeypatch
):
    options = {
        "cpu": True,
        "gradient_accumulation_steps": accumulation,
        "mixed_precision": precision,
    }
    config = {"accelerate": options, "max_epochs": 2, "max_grad_norm": norm}
    config |= {"scheduler_interval": schedule} if schedule else {}

    direct = make_runner(10, config=config)
    direct.train()
    monkeypatch.setattr(optimization, "accelerate_adds_nothing", lambda _: False)
    wrapped = make_runner(10, config=config)
    wrapped.train()

    assert direct.optimization.direct
    assert not wrapped.optimization.direct
    assert_same(direct.unwrapped_model.state_dict(), wrapped.unwrapped_model.state_dict())
    assert direct.results == wrapped.results
    assert direct.optimizer.param_groups[0]["lr"] == wrapped.optimizer.param_groups[0]["lr"]


def test_a_training_is_the_hand_written_loop_bit_for_bit():
    runner = make_runner(100)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    runner.train()
    for input, target in make_batches(100):
        nn.functional.cross_entropy(model(input), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    assert_same(runner.model.state_dict(), model.state_dict())


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


# What a step calls


class Bytecodes:
    """Counts the bytecodes of this library that run: what it costs, and no clock."""

    def __init__(self) -> None:
        self.total = 0

    def __enter__(self) -> Bytecodes:
        sys.settrace(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _see(self, frame: FrameType, event: str, _: object) -> Any:
        path = frame.f_code.co_filename
        if event == "call" and "/danling/" not in path and "/callbacks/" not in path:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.total += event == "opcode"
        return self._see


class Calls:
    """Counts the calls of Python functions of this library."""

    def __init__(self) -> None:
        self.by_name: Counter[str] = Counter()

    def __enter__(self) -> Counter[str]:
        sys.setprofile(self._see)
        return self.by_name

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and ("/danling/" in path or "/callbacks/" in path):
            self.by_name[frame.f_code.co_qualname] += 1


def calls_per_step(tmp_path: Path, *, default: bool) -> float:
    """The calls of a step more, in an epoch that is otherwise the same."""
    totals = []
    for steps in (STEPS, 2 * STEPS):
        config = {"project_root": str(tmp_path / str(steps)), "log_interval": 10**6}
        extra = [TensorBoard()] if default else []
        runner = make_runner(steps, default=default, config=config, callbacks=extra)
        with Calls() as calls:
            runner.train()
        totals.append(calls.total())
    return (totals[1] - totals[0]) / STEPS


def test_a_step_without_callbacks_makes_few_calls(tmp_path: Path):
    assert calls_per_step(tmp_path, default=False) <= 26


def test_a_step_with_the_default_callbacks_makes_few_more(tmp_path: Path):
    assert calls_per_step(tmp_path, default=True) <= 48


def bytecodes_per_step(tmp_path: Path, *, default: bool) -> float:
    """The bytecodes of a step more, in an epoch that is otherwise the same."""
    totals = []
    for steps in (STEPS - 1, STEPS, 2 * STEPS):  # the first one imports, too
        config = {"project_root": str(tmp_path / str(steps)), "log_interval": 10**6}
        extra = [TensorBoard()] if default else []
        runner = make_runner(steps, default=default, config=config, callbacks=extra)
        with Bytecodes() as bytecodes:
            runner.train()
        totals.append(bytecodes.total)
    return (totals[2] - totals[1]) / STEPS


@pytest.mark.parametrize(("default", "most"), [(False, BARE), (True, EVERYTHING)])
def test_a_step_is_few_bytecodes(default: bool, most: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)  # what is drawn by the clock is no step

    assert bytecodes_per_step(tmp_path, default=default) <= most


# What an evaluation and a batch that is read call


class Whole(Dataset[Any]):
    """Batches behind an index."""

    deterministic = True

    def __init__(self, amount: int) -> None:
        self.batches = make_batches(amount)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


class Plain(Dataset[Any]):
    """Samples, as everybody writes a dataset."""

    def __init__(self, amount: int) -> None:
        self.inputs, self.targets = torch.zeros(8 * amount, 16), torch.zeros(8 * amount).long()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index], self.targets[index]


KINDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "a list": lambda n: {"dataloaders": {"val": make_batches(n)}},
    "a loader": lambda n: {"dataloaders": {"val": DataLoader(Whole(n), batch_size=None)}},
    "TensorDataset": lambda n: {
        "datasets": {"val": TensorDataset(torch.zeros(8 * n, 16), torch.zeros(8 * n).long())}
    },
    "a plain dataset": lambda n: {"datasets": {"val": Plain(n)}},
}


def evaluator(parts: dict[str, Any]) -> dl.AccelerateRunner:
    return dl.AccelerateRunner(
        {"seed": 0, "accelerate": {"cpu": True}, "dataloader": {"batch_size": 8}},
        model=make_model(),
        criterion=nn.CrossEntropyLoss(),
        default_callbacks=False,
        **parts,
    )


def cost_per_batch(kind: str, work: Callable[[dl.AccelerateRunner], object]) -> tuple[float, float]:
    """The calls and the bytecodes of a batch more, from the second time on."""
    calls, bytecodes = [], []
    for amount in (STEPS, 2 * STEPS):
        runner = evaluator(KINDS[kind](amount))
        work(runner)
        with Calls() as counted:
            work(runner)
        calls.append(counted.total())
        with Bytecodes() as executed:
            work(runner)
        bytecodes.append(executed.total)
    return (calls[1] - calls[0]) / STEPS, (bytecodes[1] - bytecodes[0]) / STEPS


@pytest.mark.parametrize(("kind", "most"), list(EVALUATION.items()))
def test_a_batch_is_evaluated_with_few_calls(kind: str, most: tuple[int, int]):
    cost = cost_per_batch(kind, lambda runner: runner.evaluate("val"))

    assert cost[0] <= most[0]
    assert cost[1] <= most[1]


@pytest.mark.parametrize(("kind", "most"), list(READING.items()))
def test_a_batch_is_read_with_few_calls(kind: str, most: tuple[int, int]):
    cost = cost_per_batch(kind, lambda runner: deque(runner.loader("val").iterate(0), 0))

    assert cost[0] <= most[0]
    assert cost[1] <= most[1]


def test_a_hook_that_nobody_overrides_is_not_called():
    runner = make_runner(10)

    with Calls() as calls:
        runner.train()

    assert calls["Callbacks.__call__"] <= 10  # those of the run and the epoch, and none per step


# What a step reads from the device


class Reads(TorchDispatchMode):
    """Counts the values that travel from the device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.amount = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.amount += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("default", [False, True])
def test_no_value_is_read_outside_the_log_interval(default, tmp_path: Path, monkeypatch):
    lists: list[int] = []
    original = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        lists.append(tensor.numel())
        return original(tensor)

    reads = Reads()
    reads_at: dict[int, int] = {}

    class Watch(dl.Callback):
        def on_batch_start(self, runner: dl.AccelerateRunner, batch: Any) -> None:
            reads_at[runner.global_step] = reads.amount + len(lists)

    config = {"project_root": str(tmp_path), "log_interval": 20}
    runner = make_runner(60, default=default, config=config, callbacks=[Watch()])
    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    with reads:
        runner.train()

    changed = [step for step in range(1, 60) if reads_at[step] != reads_at[step - 1]]
    assert changed == ([20, 40] if default else [])


# What grows


@pytest.mark.parametrize("default", [False, True])
def test_neither_objects_nor_memory_grow_with_the_steps(default, tmp_path: Path):
    objects: dict[int, tuple[int, int]] = {}
    marks = {2 * STEPS, 12 * STEPS}

    class Watch(dl.Callback):
        def on_batch_end(self, runner: dl.AccelerateRunner, batch: Any, output: Any) -> None:
            if runner.global_step in marks:
                gc.collect()
                objects[runner.global_step] = (len(gc.get_objects()), sys.getallocatedblocks())

    config = {"project_root": str(tmp_path), "log_interval": STEPS // 2}
    runner = make_runner(1, default=default, config=config, callbacks=[Watch()])
    runner.dataloaders["train"] = runner.dataloaders["train"] * (12 * STEPS + 1)
    runner.train()

    early, late = (objects[mark] for mark in sorted(marks))
    assert late[0] - early[0] < 100
    assert late[1] - early[1] < 1000


# What is imported


def test_the_runner_is_imported_without_a_collection_of_all_objects():
    script = (
        "import gc, torch, accelerate; before = gc.get_stats()[2]['collections']; "
        "import danling; danling.AccelerateRunner; "
        "print(gc.get_stats()[2]['collections'] - before, gc.isenabled())"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )

    assert done.stdout.split() == ["0", "True"]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import danling", {"torch", "accelerate", "numpy", "git", "tensorboard", "tqdm"}),
        (
            "import danling; danling.AccelerateRunner",
            {"git", "pandas", "sympy", "tensorboard", "tqdm"},
        ),
        ("import danling.config.command_line", {"torch", "accelerate", "numpy", "tensorboard"}),
    ],
)
def test_an_import_brings_only_what_is_used(statement, absent):
    script = f"import torch, accelerate; {statement}" if "Runner" in statement else statement
    before = "import sys; import torch, accelerate; " if "Runner" in statement else "import sys; "
    command = f"{before}known = set(sys.modules); {script}; print(*set(sys.modules) - known)"

    done = subprocess.run(
        [sys.executable, "-c", command], check=True, capture_output=True, text=True
    )

    assert absent & set(done.stdout.split()) == set()
