from __future__ import annotations

import pytest

from danling.errors import ConfigError
from danling.run.trial import VARIABLE, SweepTrial

TRIAL = SweepTrial("sqlite:///a.db", "moons", 3, "val/accuracy", "MedianPruner")


def test_a_process_reads_the_trial_that_its_sweep_has_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, TRIAL.text)

    assert SweepTrial.read() == TRIAL


@pytest.mark.parametrize("environment", [{}, {VARIABLE: ""}])
def test_without_a_sweep_there_is_none(environment: dict[str, str]):
    assert SweepTrial.read(environment) is None


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"storage": "x"}', '{"colour": "red"}'])
def test_what_is_no_trial_is_refused(text: str):
    with pytest.raises(ConfigError, match=f"{VARIABLE} holds no trial of a sweep"):
        SweepTrial.read({VARIABLE: text})
