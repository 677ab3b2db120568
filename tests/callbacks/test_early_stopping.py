from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from danling.callbacks.early_stopping import EarlyStopping
from danling.callbacks.lambda_callback import LambdaCallback
from danling.errors import CallbackError, MetricError
from danling.testing import CallbackContract


def checked(scores: list[float], mode: Literal["min", "max"] = "min", **arguments: Any) -> int:
    """How many of the scores are checked until the rule says stop; one more than all if never."""
    stopping = EarlyStopping("val/loss", mode, **arguments)
    for number, score in enumerate(scores, start=1):
        stopping.check(score, number, mode)
        if stopping.verdict(mode) is not None:
            return number
    return len(scores) + 1


def test_the_default_patience_is_three_checks():
    assert checked([0.5, 0.6, 0.6, 0.6, 0.6]) == 4


def test_a_patience_of_one_stops_at_the_first_check_without_improvement():
    assert checked([0.5, 0.4, 0.4], patience=1) == 3


def test_an_improvement_starts_the_count_anew():
    assert checked([0.5, 0.6, 0.6, 0.4, 0.5, 0.5, 0.5], patience=3) == 7


def test_an_improvement_smaller_than_min_delta_is_none():
    scores = [0.50, 0.49, 0.48, 0.47]

    assert checked(scores, patience=3, min_delta=0.1) == 4
    assert checked(scores, patience=3, min_delta=0.005) == 5


def test_small_improvements_add_up_to_one():
    """The best is the last that counted, not the last that was lower."""
    assert checked([0.50, 0.49, 0.47, 0.46, 0.44], patience=2, min_delta=0.02) == 6


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_stops_at_once(score: float):
    assert checked([0.5, score, 0.4], patience=9) == 2


def test_without_check_finite_it_is_a_check_that_did_not_improve():
    assert checked([math.nan, 0.5, math.nan, math.inf, 0.4], patience=2, check_finite=False) == 4
    assert checked([0.5, -math.inf, 0.4, 0.3], patience=3, check_finite=False) == 5


def test_a_score_beyond_the_stopping_threshold_is_good_enough():
    assert checked([0.5, 0.2, 0.1], stopping_threshold=0.2) == 3
    assert checked([0.5, 0.95, 0.99], mode="max", stopping_threshold=0.9) == 2


def test_a_score_beyond_the_divergence_threshold_does_not_recover():
    assert checked([0.5, 2.0, 2.1], divergence_threshold=2.0) == 3
    assert checked([0.5, 0.05, 0.6], mode="max", divergence_threshold=0.1) == 2


def test_the_reason_says_what_and_where():
    stopping = EarlyStopping(patience=2)
    for step, score in ((10, 0.5), (20, 0.6), (30, 0.7)):
        stopping.check(score, step, "min")

    assert stopping.verdict("min", "val/loss") == (
        "val/loss did not improve in 2 checks, the best is 0.5 at global step 10"
    )


def test_the_counts_survive_and_the_patience_is_that_of_now():
    before = EarlyStopping(patience=3)
    for step, score in ((10, 0.5), (20, 0.6), (30, 0.7)):
        before.check(score, step, "min")
    state = before.state_dict()

    same, patient = EarlyStopping(patience=3), EarlyStopping(patience=4)
    for stopping in (same, patient):
        stopping.load_state_dict(state)
        stopping.check(0.55, 40, "min")

    assert (same.best, same.wait) == (0.5, 3)
    assert same.verdict("min") is not None
    assert patient.verdict("min") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patience": 0}, "patience=0.*at least 1"),
        ({"patience": 2.5}, "patience=2.5.*integer"),
        ({"patience": True}, "patience=True.*integer"),
        ({"start_from_epoch": -1}, "start_from_epoch=-1.*at least 0"),
        ({"mode": "minimum"}, "did you mean 'min'"),
    ],
)
def test_what_cannot_be_meant_is_an_error_at_once(arguments: dict[str, Any], message: str):
    with pytest.raises(CallbackError, match=message):
        EarlyStopping(**arguments)


# In a training


def worsen(runner) -> None:
    """Make the model worse, so that nothing improves after the first epoch."""
    if runner.epoch >= 1:
        with torch.no_grad():
            for parameter in runner.unwrapped_model.parameters():
                parameter.mul_(1.5)


def test_a_training_that_gets_worse_is_stopped_with_the_reason(make_runner):
    runner = make_runner(
        [EarlyStopping(patience=2), LambdaCallback(on_epoch_start=worsen)], max_epochs=20
    )

    runner.train()

    assert runner.epoch == 3
    assert runner.stop_reason.startswith("early_stopping: val/loss did not improve in 2 checks")
    assert runner.status == "stopped"


def test_evaluations_within_an_epoch_are_checks(make_runner):
    stopping = EarlyStopping(stopping_threshold=1e9)

    runner = make_runner([stopping], evaluate_every="2 steps")
    runner.train()

    assert runner.global_step == 2


def test_a_value_of_the_training_is_checked_once_per_epoch(make_runner):
    stopping = EarlyStopping("train/loss", patience=2, min_delta=1e9)

    runner = make_runner([stopping], max_epochs=9, evaluate_every="2 steps")
    runner.train()

    assert runner.epoch == 3


def test_no_check_happens_during_the_first_epochs(make_runner):
    stopping = EarlyStopping(stopping_threshold=1e9, start_from_epoch=2)

    runner = make_runner([stopping], max_epochs=9)
    runner.train()

    assert runner.epoch == 3


def test_several_monitors_live_together(make_runner):
    by_epoch = EarlyStopping("train/loss", patience=5, name="of_training")

    runner = make_runner([EarlyStopping(stopping_threshold=1e9), by_epoch], max_epochs=9)
    runner.train()

    assert runner.stop_reason.startswith("early_stopping: ")
    assert runner.callbacks["of_training"] is by_epoch


def test_a_split_that_does_not_exist_is_an_error_before_the_training(make_runner):
    runner = make_runner([EarlyStopping("vall/loss")])

    with pytest.raises(CallbackError, match="did you mean 'val'"):
        runner.train()

    assert runner.global_step == 0


def test_a_metric_that_does_not_exist_is_an_error_at_the_first_result(make_runner):
    runner = make_runner([EarlyStopping("val/accuracy", "max")])

    with pytest.raises(MetricError, match="the result has train/loss, val/loss"):
        runner.train()

    assert runner.epoch == 1


def test_the_best_weights_are_put_back(make_runner):
    losses: list[float] = []
    runner = make_runner(
        [
            EarlyStopping(patience=2, restore_best_weights=True),
            LambdaCallback(
                on_epoch_start=worsen,
                on_train_end=lambda runner: losses.append(runner.latest_result["val"]["loss"]),
            ),
        ],
        max_epochs=20,
    )

    runner.train()

    restored = runner.evaluate("val")["loss"]
    assert restored == runner.best_result["val"]["loss"]
    assert restored < losses[0]


def test_the_best_weights_are_in_the_state_only_if_they_are_restored(make_runner):
    without, with_weights = EarlyStopping(), EarlyStopping(restore_best_weights=True, name="with")

    runner = make_runner([without, with_weights], max_epochs=1)
    runner.train()

    weights = with_weights.state_dict()["weights"]
    assert "weights" not in without.state_dict()
    assert list(weights) == list(runner.unwrapped_model.state_dict())
    assert all(
        weights[key].data_ptr() != value.data_ptr()
        for key, value in runner.unwrapped_model.state_dict().items()
    )


def test_a_second_training_that_was_stopped_stops_again(make_runner):
    runner = make_runner(
        [EarlyStopping(patience=2), LambdaCallback(on_epoch_start=worsen)], max_epochs=20
    )
    runner.train()
    steps, reason = runner.global_step, runner.stop_reason

    runner.train()

    assert runner.global_step == steps
    assert runner.stop_reason == reason


def test_another_runner_starts_anew(make_runner):
    stopping = EarlyStopping(patience=2)
    make_runner([stopping, LambdaCallback(on_epoch_start=worsen)], max_epochs=20).train()

    runner = make_runner([stopping], max_epochs=3)
    runner.train()

    assert runner.epoch == 3
    assert stopping.best == runner.best_score


# Against the originals


def score_sequences() -> list[list[float]]:
    """200 sequences of scores that fall for a while and then wander, with equal ones in them."""
    generator = random.Random(0)
    sequences = []
    for _ in range(200):
        score, sequence = 1.0, []
        for step in range(30):
            score += generator.gauss(-0.05 if step < generator.randint(3, 15) else 0.0, 0.05)
            sequence.append(round(score * 64) / 64)  # exact, with float32 too
        sequences.append(sequence)
    return sequences


def stops_at(
    stopping: EarlyStopping, scores: list[float], mode: Literal["min", "max"]
) -> int | None:
    for index, score in enumerate(scores):
        stopping.check(score, index, mode)
        if stopping.verdict(mode) is not None:
            return index
    return None


@pytest.mark.parametrize("mode", ["min", "max"])
def test_it_stops_where_lightning_s_does(mode: Literal["min", "max"]):
    torch = pytest.importorskip("torch")
    lightning = pytest.importorskip("lightning.pytorch.callbacks")
    sign = 1 if mode == "min" else -1
    ends = []
    for number, falling in enumerate(score_sequences()):
        scores = [sign * score for score in falling]
        options: dict[str, Any] = {
            "patience": 1 + number % 6,
            "min_delta": [0.0, 1 / 64, 5 / 64][number % 3],
        }
        if number % 5 == 0:
            options |= {"stopping_threshold": sign * 0.25, "divergence_threshold": sign * 1.125}
        theirs = lightning.EarlyStopping("val/loss", mode=mode, **options)
        expected = None
        for index, score in enumerate(scores):
            if expected is None and theirs._evaluate_stopping_criteria(torch.tensor(score))[0]:
                expected = index

        ends.append(stops_at(EarlyStopping("val/loss", mode, **options), scores, mode))
        assert ends[-1] == expected, (number, options)
    assert len(set(ends)) > 10


@pytest.mark.parametrize("mode", ["min", "max"])
def test_it_stops_where_keras_s_does(mode: Literal["min", "max"], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    sign = 1 if mode == "min" else -1
    ends = []
    for number, falling in enumerate(score_sequences()):
        scores = [sign * score for score in falling]
        options: dict[str, Any] = {
            "patience": 1 + number % 6,
            "min_delta": [0.0, 1 / 64, 5 / 64][number % 3],
        }
        options["baseline"] = sign * 0.75 if number % 2 else None
        theirs = keras.callbacks.EarlyStopping("val_loss", mode=mode, **options)
        theirs.set_model(SimpleNamespace(stop_training=False))
        theirs.on_train_begin()
        expected = None
        for index, score in enumerate(scores):
            theirs.on_epoch_end(index, {"val_loss": score})
            if expected is None and theirs.model.stop_training:
                expected = index

        ends.append(stops_at(EarlyStopping("val/loss", mode, **options), scores, mode))
        assert ends[-1] == expected, (number, options)
    assert len(set(ends)) > 10


def test_a_relative_min_delta_is_a_share_of_the_best():
    stopping = EarlyStopping("val/loss", "min", min_delta=0.1, min_delta_mode="rel")

    assert [stopping.check(score, step, "min") for step, score in enumerate([10.0, 9.1, 8.9])] == [
        True,
        False,
        True,
    ]
    assert stopping.is_better(-1.2, -1.0, "min")
    assert not stopping.is_better(-1.05, -1.0, "min")
    assert not stopping.is_better(1.05, 1.0, "max")


def test_a_training_that_does_not_beat_the_baseline_says_so(make_runner):
    runner = make_runner([EarlyStopping(baseline=-1.0, patience=2)], max_epochs=9)

    runner.train()

    assert "did not get better than -1 in" in runner.stop_reason


def test_a_train_value_is_checked_at_each_log(make_runner):
    worse = LambdaCallback(on_step=lambda runner: runner.log("worse", float(runner.global_step)))
    stopping = EarlyStopping("train/worse", "min", patience=2, check_on="log")
    runner = make_runner([worse, stopping], log_interval=1)

    runner.train()

    assert runner.global_step == 3
    assert stopping.best == 1.0


def test_a_value_that_is_never_logged_is_an_error(make_runner):
    stopping = EarlyStopping("train/lss", "min", check_on="log")

    with pytest.raises(MetricError, match="train/loss"):
        make_runner([stopping]).train()


@pytest.mark.parametrize(
    ("argument", "value"), [("min_delta_mode", "relative"), ("check_on", "logs")]
)
def test_a_choice_that_there_is_not_is_an_error(argument: str, value: str):
    with pytest.raises(CallbackError, match=argument):
        EarlyStopping(**{argument: value})  # type: ignore[arg-type]  # it is wrong on purpose


class TestContract(CallbackContract):
    def make(self):
        return EarlyStopping(patience=3)
