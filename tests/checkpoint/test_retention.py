"""Which numbered files stay; `callbacks/test_model_checkpoint` shows it for whole runs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from danling.checkpoint.retention import REGULAR, SCORE, Ranking, kept
from danling.checkpoint.store import CheckpointStore


def store_of(directory: Path, files: list[tuple[str, dict[str, float]]]) -> CheckpointStore:
    store = CheckpointStore(directory / "checkpoints")
    for number, (name, metrics) in enumerate(files, 1):
        names = [name, "latest"]
        store.commit({"model": {}}, names, global_step=number, epoch=number, metrics=metrics)
    return store


def test_the_newest_regular_files_stay_in_the_order_of_their_numbers(tmp_path: Path):
    store = store_of(tmp_path, [(f"step-{n}", {REGULAR: 1.0}) for n in (9, 10, 100)])

    assert kept(store.candidates(), last=2, best=0, mode="min") == {"step-10", "step-100"}
    assert len(kept(store.candidates(), last=None, best=0, mode="min")) == 3


@pytest.mark.parametrize(("mode", "expected"), [("min", {"epoch-2"}), ("max", {"epoch-1"})])
def test_of_equal_scores_the_earlier_stays(tmp_path: Path, mode: str, expected: set[str]):
    scores = [0.7, 0.1, 0.7, 0.1]
    store = store_of(tmp_path, [(f"epoch-{n}", {SCORE: s}) for n, s in enumerate(scores, 1)])

    assert kept(store.candidates(), last=1, best=1, mode=mode) == expected


def test_a_file_stays_for_either_reason_and_one_without_a_reason_always(tmp_path: Path):
    files = [
        ("epoch-1", {SCORE: 0.1, REGULAR: 1.0}),
        ("epoch-2", {REGULAR: 1.0}),
        ("epoch-3", {SCORE: 0.5}),
        ("epoch-4", {"val/loss": 9.0}),
        ("epoch-5", {REGULAR: 1.0}),
    ]
    store = store_of(tmp_path, files)

    expected = {"epoch-1", "epoch-4", "epoch-5"}
    assert kept(store.candidates(), last=1, best=1, mode="min") == expected


@pytest.mark.parametrize("seed", range(20))
def test_the_ranking_has_the_best_scores_of_any_sequence(seed: int):
    chance = random.Random(seed)
    scores = [chance.choice([float("nan"), float("inf"), None, chance.random()]) for _ in range(30)]
    ranking = Ranking(1, "max")

    for score in scores:
        ranking.add(score)

    finite = [s for s in scores if s is not None and s not in (float("inf"),) and s == s]
    assert ranking.best == max(finite, default=None)
