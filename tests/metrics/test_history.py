from __future__ import annotations

import math
import random

import pytest

from danling.errors import MetricError
from danling.metrics.history import History, is_better


def history_of(scores, mode="max") -> History:
    history = History("val/score", mode, strict=False)
    for epoch, score in enumerate(scores, 1):
        values = {} if score is None else {"score": score}
        history.add({"epoch": epoch, "global_step": epoch, "val": {"loss": 1.0, **values}})
    return history


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("score", [None, math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_finite_number_is_never_better(mode, score):
    assert not is_better(score, None, mode)
    assert not is_better(score, 0.5, mode)


def test_better_follows_the_mode_and_an_equal_score_is_not():
    assert is_better(0.4, 0.5, "min")
    assert is_better(0.6, 0.5, "max")
    assert not is_better(0.5, 0.5, "min")
    assert not is_better(0.5, 0.5, "max")
    assert is_better(0.5, None, "min")


def test_nan_infinite_and_missing_scores_are_kept_but_never_best():
    history = history_of([math.nan, 0.5, math.nan, 0.7, None, math.inf])

    assert history.best_score == 0.7
    assert history.best == history.results[3]
    assert not history.is_best
    assert history.scores[4] is None
    assert history.scores[0] != history.scores[0]


def test_of_equals_the_earlier_wins():
    history = history_of([0.5, 0.7, 0.7])

    assert history.best is history.results[1]
    assert not history.is_best


def test_nothing_is_best_before_the_first_score():
    history = history_of([None, math.nan])

    assert history.best is None
    assert history.best_score is None
    assert not history.is_best


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_is_that_of_all_scores_in_any_order(mode):
    draw = random.Random(1)
    for _ in range(200):
        pool = [math.nan, math.inf, None, *[draw.randint(0, 5) / 5 for _ in range(6)]]
        draw.shuffle(pool)
        history = history_of(pool, mode)
        finite = [s for s in pool if s is not None and math.isfinite(s)]
        expected = (min if mode == "min" else max)(finite)

        assert history.best_score == expected
        assert history.best is history.results[pool.index(expected)]


def test_a_result_of_the_same_epoch_and_step_completes_the_last():
    history = History("val/score", "max", strict=False)
    history.add({"epoch": 1, "global_step": 4, "test": {"score": 0.1}})
    history.add({"epoch": 1, "global_step": 4, "val": {"score": 0.5}})

    assert history.results == [
        {"epoch": 1, "global_step": 4, "test": {"score": 0.1}, "val": {"score": 0.5}}
    ]
    assert history.scores == [0.5]
    assert history.is_best


def test_a_completed_result_is_judged_again():
    history = history_of([0.5, 0.7])

    history.add({"epoch": 2, "global_step": 2, "val": {"score": 0.4}})

    assert history.scores == [0.5, 0.4]
    assert history.best_score == 0.5


def test_what_is_not_scored_takes_no_score_away():
    history = history_of([0.5, 0.7])

    history.add({"epoch": 2, "global_step": 2, "train": {"score": 0.1}}, scored=False)
    history.add({"epoch": 2, "global_step": 3, "train": {"score": 0.1}}, scored=False)

    assert history.scores == [0.5, 0.7, None]
    assert history.best_score == 0.7


def test_what_is_not_scored_is_never_best():
    history = History("train/loss", "min", strict=True)

    history.add({"epoch": 0, "global_step": 3, "train": {"loss": 0.1}}, scored=False)
    history.add({"epoch": 1, "global_step": 4, "train": {"loss": 0.5}})

    assert history.scores == [None, 0.5]
    assert history.best_score == 0.5


def test_a_history_goes_on_from_its_results():
    history = history_of([0.5, 0.7, math.nan])
    other = History("val/score", "max", strict=False)

    other.restore(history.results)

    assert other.best == history.best
    assert other.scores[:2] == history.scores[:2]
    other.results[0]["epoch"] = 99
    assert history.results[0]["epoch"] == 1


def test_another_monitor_judges_restored_results_anew():
    history = history_of([0.5, 0.7])
    other = History("val/score", "min", strict=False)

    other.restore(history.results)

    assert other.best_score == 0.5


def result(**splits):
    return {"epoch": 1, "global_step": 4, **splits}


def test_a_monitor_that_the_first_result_lacks_lists_what_there_is():
    history = History("val/acuracy", "max", strict=True)

    with pytest.raises(MetricError) as raised:
        history.add(result(train={"loss": 1.0}, val={"loss": 1.0, "accuracy": 0.5}))

    assert str(raised.value) == (
        "the monitor 'val/acuracy' is not in the result: did you mean 'val/accuracy'? "
        "(there are: train/loss, val/loss, val/accuracy)"
    )


def test_a_result_without_the_monitored_split_is_not_judged():
    history = History("val/accuracy", "max", strict=True)

    history.add(result(train={"loss": 1.0}))
    history.add({"epoch": 2, "global_step": 8, "val": {"accuracy": 0.5}})
    history.add({"epoch": 3, "global_step": 9, "val": {"loss": 0.5}})

    assert history.scores == [None, 0.5, None]


def test_a_nested_name_is_found():
    history = History("val/recall/macro", "max", strict=True)

    history.add(result(val={"recall/macro": 0.5}))

    assert history.best_score == 0.5
