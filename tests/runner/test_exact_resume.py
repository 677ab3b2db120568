"""Kill -9 at a step, continue in a fresh process: nothing differs from a run nobody disturbed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.resume_harness import EPOCHS, SAMPLES, Setting, interrupted, name, reference

STEPS = EPOCHS * SAMPLES // 4

SETTINGS = [
    Setting(),
    Setting(workers=2),
    Setting(workers=2, persistent=True),
    Setting(accumulation=4),
    Setting(workers=2, accumulation=4),
    Setting(optimizer="adamw", schedule="epoch", every="3 steps"),
    Setting(evaluate_every="5 steps", every="7 steps"),
    Setting(asynchronous=True, every="2 steps"),
]
CHUNK = 6  # steps of one test of the full sweep


def steps_of(setting: Setting) -> int:
    return setting.epochs * -(-(SAMPLES // 4) // setting.accumulation)


SWEEP = [
    pytest.param(setting, first, id=f"{name(setting)}-{first}")
    for setting in SETTINGS
    for first in range(1, steps_of(setting) + 1, CHUNK)
]


class References(dict[Setting, dict[str, Any]]):
    """Outcomes of uninterrupted trainings, each made when it is first asked for.

    Neither how samples are loaded nor when is saved may change a training: they share one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, setting: Setting) -> dict[str, Any]:
        plain = replace(setting, workers=0, persistent=False, every="1 epoch", asynchronous=False)
        if plain not in self:
            self[plain] = reference(self.root / name(plain), plain)
        return self[plain]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory.mktemp("references"))


@pytest.mark.parametrize("setting", SETTINGS, ids=name)
def test_a_killed_training_goes_on_exactly(
    setting: Setting, references: References, tmp_path: Path
) -> None:
    step = random.Random(name(setting)).randrange(8, steps_of(setting))  # after the first save

    outcome = interrupted(tmp_path, setting, step)

    assert outcome == references.of(setting)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("setting", "first"), SWEEP)
def test_a_training_killed_at_any_step_goes_on_exactly(
    setting: Setting, first: int, references: References, tmp_path: Path
) -> None:
    for step in range(first, min(first + CHUNK, steps_of(setting) + 1)):
        outcome = interrupted(tmp_path / str(step), setting, step)

        assert outcome == references.of(setting), f"killed at step {step}"


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_the_number_of_workers_may_change(
    before: int, after: int, references: References, tmp_path: Path
) -> None:
    outcome = interrupted(tmp_path, Setting(workers=before), 21, then=Setting(workers=after))

    assert outcome == references.of(Setting())


def test_several_kills_within_one_epoch_are_as_none(references: References, tmp_path: Path) -> None:
    outcome = interrupted(tmp_path, Setting(), 18, 20, 21, 29)

    assert outcome == references.of(Setting())


@pytest.mark.exhaustive
@pytest.mark.parametrize("setting", [Setting(), Setting(workers=2, accumulation=4)], ids=name)
def test_ten_kills_at_random_steps_are_as_none(
    setting: Setting, references: References, tmp_path: Path
) -> None:
    steps = sorted(random.Random(7).sample(range(1, steps_of(setting)), 10))

    outcome = interrupted(tmp_path, setting, *steps)

    assert outcome == references.of(setting)


def test_a_finished_run_is_left_alone(references: References, tmp_path: Path) -> None:
    first = interrupted(tmp_path, Setting())

    again = interrupted(tmp_path, Setting())

    assert again["results"] == first["results"]
    assert len(list((tmp_path / "experiments").glob("danling-run-*"))) == 2  # auto starts anew
