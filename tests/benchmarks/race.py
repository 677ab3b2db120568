"""Runs contestants in turn, again and again, so that a slow moment of the machine hits them all."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks import peers, trainers
from tests.benchmarks.tasks import Task
from tests.benchmarks.work import Work, by_hand, by_hand_on_accelerate, spread


class Contestant(NamedTuple):
    """Someone who does the work.

    Attributes:
        name: As the table has it.
        needs: The module without which it is left out.
        run: Does the work; gives the seconds of each epoch.
        any_model: Whether it takes a model of torch as it is.
    """

    name: str
    needs: str
    run: Callable[[Work], list[float]]
    any_model: bool = True

    @property
    def is_installed(self) -> bool:
        return find_spec(self.needs) is not None


ALL = [
    Contestant("PyTorch by hand", "torch", by_hand),
    Contestant("DanLing", "danling", peers.danling),
    Contestant("Accelerate by hand", "accelerate", by_hand_on_accelerate),
    Contestant("Ignite", "ignite", peers.ignite),
    Contestant("pytorch-accelerated", "pytorch_accelerated", peers.pytorch_accelerated),
    Contestant("Lightning", "lightning", trainers.lightning),
    Contestant("HF Trainer", "transformers", trainers.transformers),
    Contestant("Keras on torch", "keras", trainers.keras, any_model=False),
]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Send what everybody prints and logs to nowhere: bars are drawn, and nobody reads them."""
    logging.disable(logging.CRITICAL)
    out, err = contextlib.redirect_stdout, contextlib.redirect_stderr
    with open(os.devnull, "w") as nowhere, out(nowhere), err(nowhere):
        yield
    logging.disable(logging.NOTSET)


def race(
    task: Task, *, features: bool, rounds: int, steps: int, epochs: int
) -> dict[str, dict[str, Any]]:
    """Microseconds per step of each, and how many times those of the hand-written loop.

    Of each contestant and round the fastest epoch counts; a ratio is of the same round.
    """
    able = [contestant for contestant in ALL if contestant.any_model or task.is_small]
    present = [contestant for contestant in able if contestant.is_installed]
    best: dict[str, list[float]] = {contestant.name: [] for contestant in present}
    for _ in range(rounds):
        for contestant in present:
            with tempfile.TemporaryDirectory() as folder, silence():
                work = Work.of(
                    Path(folder), task, steps=steps, epochs=epochs + 2, features=features
                )
                best[contestant.name].append(min(contestant.run(work)) / steps * 1e6)
    hand, ours = best[ALL[0].name], best["DanLing"]
    return {
        name: {
            "us_per_step": spread(times),
            "times_by_hand": spread(_ratios(times, hand)),
            "times_danling": spread(_ratios(times, ours)),
        }
        for name, times in best.items()
    } | {other.name: {"missing": other.needs} for other in able if not other.is_installed}


def table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    text = io.StringIO()
    print(f"\n### {title}\n", file=text)
    print("| | µs per step | times by hand | times DanLing |", file=text)
    print("| --- | --- | --- | --- |", file=text)
    for name, row in rows.items():
        if "missing" in row:
            print(f"| {name} | not installed: {row['missing']} | | |", file=text)
            continue
        cells = [
            f"{row['us_per_step']['median']:.0f} (at best {row['us_per_step']['min']:.0f})",
            _ratio(row["times_by_hand"]),
            _ratio(row["times_danling"]),
        ]
        print(f"| {name} | {' | '.join(cells)} |", file=text)
    return text.getvalue()


def summary(title: str, lines: dict[str, dict[str, dict[str, Any]]]) -> str:
    """One row for each line: the loop by hand, and how many times that everybody else takes."""
    names = list(dict.fromkeys(name for rows in lines.values() for name in rows))[1:]
    text = io.StringIO()
    print(f"\n### {title}\n\n| | by hand | {' | '.join(names)} |", file=text)
    print(f"| --- |{' --- |' * (len(names) + 1)}", file=text)
    for line, rows in lines.items():
        first = next(iter(rows.values()))["us_per_step"]["median"]
        ratios = [rows.get(name, {}).get("times_by_hand") for name in names]
        cells = [f"{ratio['median']:.2f}" if ratio else "-" for ratio in ratios]
        print(f"| {line} | {first:.0f} µs | {' | '.join(cells)} |", file=text)
    return text.getvalue()


def _ratios(times: Sequence[float], others: Sequence[float]) -> list[float]:
    return [time / other for time, other in zip(times, others, strict=True)]


def _ratio(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"
