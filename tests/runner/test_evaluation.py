from __future__ import annotations

import os
import random

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from danling import AccelerateRunner, Callback
from danling.errors import DataError, RunError
from danling.metrics.averages import reduce_totals
from danling.runner.evaluation import evaluation_mode
from danling.testing import RecordingCallback, TinyRunner, accuracy, tiny_data
from tests.support.tensors import are_identical


class Noisy(Dataset):
    """Draws from every random stream there is."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        noise = torch.rand(4) + random.random()
        return noise, torch.tensor(index % 3)


class Dropping(TinyRunner):
    """Draws in its model, too."""

    def __init__(self, config=None, **parts):
        super().__init__(config, **parts)
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.datasets["val"] = Noisy()

    def evaluate_step(self, batch):
        torch.rand(random.randint(1, 5))
        return super().evaluate_step(batch)


# It changes nothing of a training


def states(model):
    return list(model.state_dict().values())


@pytest.mark.parametrize("every", ["1 steps", "3 steps", "1 epoch"])
def test_weights_are_the_same_however_often_they_are_evaluated(every):
    never = Dropping({"evaluate_every": None})
    never.train()

    often = Dropping({"evaluate_every": every})
    often.train()

    assert often.evaluations > 0
    assert are_identical(states(often.model), states(never.model))
    trained = [result["train"] for result in often.results if "train" in result]
    assert trained == [result["train"] for result in never.results]


def test_evaluating_the_training_data_leaves_the_open_epoch_alone():
    quiet = Dropping({"evaluate_every": None})
    quiet.train()

    curious = Dropping({"evaluate_every": None})
    with curious:
        for _ in curious.epochs():
            for batch in curious.batches():
                curious.step(curious.train_step(batch))
                curious.evaluate("train")

    trained = [result["train"] for result in quiet.results]
    assert are_identical(states(curious.model), states(quiet.model))
    assert [result["train"] for result in curious.results if result["epoch"] == 2][-1] == trained[1]


def test_the_random_streams_are_where_they_were():
    runner = Dropping()
    runner.prepare()
    before = torch.get_rng_state(), random.getstate()

    runner.evaluate("val")
    runner.predict("val")

    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_every_module_gets_back_the_mode_it_had():
    runner = Dropping()
    runner.model[1].eval()
    seen: list[bool] = []
    modes: list[list[bool]] = []

    class Watching(Callback):
        def on_evaluate_batch_start(self, runner, batch):
            seen.extend(module.training for module in runner.model.modules())

        def on_step(self, runner):
            modes.append([part.training for part in runner.model])

    runner.callbacks.append(Watching())
    running_mean = runner.model[1].running_mean.clone()
    runner.config.max_epochs = 1
    runner.train()

    assert set(seen) == {False}
    assert modes == [[True, False, True, True]] * runner.global_step
    assert runner.global_step > 1
    assert torch.equal(runner.model[1].running_mean, running_mean)
    assert runner.model.training


def test_a_model_in_evaluation_mode_is_trained_in_training_mode_and_evaluated_as_it_was():
    runner = Dropping({"max_epochs": 1})
    runner.model.eval()
    runner.evaluate("val")
    assert not any(module.training for module in runner.model.modules())

    runner.train()

    assert all(module.training for module in runner.model.modules())


def test_what_a_module_does_on_changing_its_mode_is_undone():
    class Merging(nn.Linear):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Merging(2, 2))

    with evaluation_mode(model):
        assert model[0].merged

    assert not model[0].merged


def test_modes_and_gradients_come_back_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].eval()

    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError

    assert torch.is_grad_enabled()
    assert [model.training, model[0].training, model[1].training] == [True, False, True]


def test_gradients_of_an_open_window_survive_an_evaluation():
    config = {"max_epochs": 1, "accelerate": {"gradient_accumulation_steps": 2}}
    plain, curious = TinyRunner(config), TinyRunner(config)
    plain.train()

    with curious:
        for _ in curious.epochs():
            for batch in curious.batches():
                curious.step(curious.train_step(batch))
                curious.evaluate("val")

    assert torch.equal(curious.model.weight, plain.model.weight)


# What it returns


def test_one_split_gives_its_result_and_several_a_mapping():
    runner = TinyRunner()

    one = runner.evaluate("test")
    both = runner.evaluate("val", "test")
    default = runner.evaluate()

    assert set(one) == {"loss", "accuracy"}
    assert set(both) == {"val", "test"}
    assert both["test"] == one
    assert default == {"val": both["val"]}


def test_a_result_is_the_mean_over_the_samples():
    runner = TinyRunner({"dataloader": {"batch_size": 8}}, samples=101)

    result = runner.evaluate("test")

    points, target = runner.datasets["test"].tensors
    with torch.no_grad():
        output = runner.model(points).double()
    expected = nn.functional.cross_entropy(output, target).item()
    assert result["loss"] == pytest.approx(expected, rel=1e-6)
    assert result["accuracy"] == pytest.approx(accuracy(output, target).item(), rel=1e-6)
    assert all(type(value) is float for value in result.values())


def test_a_loss_that_is_written_to_the_same_place_every_time_is_averaged():
    class Reusing(TinyRunner):  # as CUDA graphs do
        loss = torch.zeros(())

        def evaluate_step(self, batch):
            return {"loss": self.loss.add_(1), "twice": self.loss}

    result = Reusing().evaluate("test")

    assert result == {"loss": 2.5, "twice": 2.5}


def test_values_logged_during_an_evaluation_are_part_of_its_result():
    class Logging(TinyRunner):
        def evaluate_step(self, batch):
            self.log("margin", batch[0].mean())
            self.log({"val/full": 2, "other/tag": 3.0})
            assert self.evaluating == "val"
            return super().evaluate_step(batch)

    runner = Logging()

    result = runner.evaluate("val")

    points, _ = runner.datasets["val"].tensors
    assert result["margin"] == pytest.approx(points.mean().item(), abs=1e-6)
    assert result["full"] == 2.0
    assert result["other/tag"] == 3.0
    assert runner.evaluating is None


def test_callbacks_know_which_split_is_evaluated():
    seen = []

    class Watching(Callback):
        def on_evaluate_start(self, runner, split):
            seen.append((split, runner.evaluating))

        def on_evaluate_batch_end(self, runner, batch, output):
            seen.append(runner.evaluating)
            assert output["loss"].requires_grad is False

        def on_evaluate_end(self, runner, split, result):
            seen.append((split, sorted(result)))

    TinyRunner(callbacks=[Watching()], samples=4).evaluate("test")

    assert seen == [("test", "test"), "test", ("test", ["accuracy", "loss"])]


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_split_that_does_not_exist_is_named_with_the_nearest(verb):
    with pytest.raises(DataError, match="no data for the split 'tset': did you mean 'test'"):
        getattr(TinyRunner(), verb)("tset")


def test_training_without_training_data_names_the_split():
    runner = TinyRunner()
    del runner.datasets["train"]

    with pytest.raises(DataError, match="no data for the split 'train': valid are 'test', 'val'"):
        runner.train()


def test_a_runner_without_data_says_so():
    with pytest.raises(DataError, match="no data for the split 'test': there are none"):
        AccelerateRunner({"seed": 0}, model=nn.Linear(1, 1), default_callbacks=False).evaluate(
            "test"
        )


def test_evaluating_all_of_nothing_is_refused():
    runner = TinyRunner()
    runner.datasets = {"train": runner.datasets["train"]}

    with pytest.raises(DataError, match="no split to evaluate"):
        runner.evaluate()


def test_an_empty_split_is_refused():
    runner = TinyRunner()
    runner.dataloaders["empty"] = []

    with pytest.raises(DataError, match="the split 'empty' has no batches"):
        runner.evaluate("empty")


def test_a_model_is_missed_where_it_is_needed():
    runner = TinyRunner()
    runner.model = None

    with pytest.raises(RunError, match="there is no model: pass `model=`"):
        runner.evaluate("test")


# On its own


def test_on_its_own_it_writes_and_claims_nothing(tmp_path):
    recording = RecordingCallback()
    runner = TinyRunner(callbacks=[recording])

    runner.evaluate("test")
    runner.predict("test")

    assert os.listdir(tmp_path) == []
    assert not runner.has_dir
    assert runner.results == []
    assert {"on_setup", "on_teardown", "on_log", "on_checkpoint"} & set(recording.hooks) == set()
    assert recording.hooks[0] == "on_evaluate_start"
    assert recording.hooks[-1] == "on_predict_end"


def test_with_the_default_callbacks_it_writes_and_claims_nothing_either(tmp_path):
    runner = TinyRunner(default_callbacks=True)

    runner.evaluate("test")
    runner.predict("test")

    assert os.listdir(tmp_path) == []
    assert not runner.has_dir


def test_after_a_training_it_changes_no_results():
    runner = TinyRunner()
    runner.train()
    before = [dict(result) for result in runner.results]

    runner.evaluate("val", "test")

    assert runner.results == before
    assert runner.evaluations == 2


# Prediction


def test_predictions_are_in_order_each_sample_once():
    runner = TinyRunner({"dataloader": {"batch_size": 8}}, samples=101)
    runner.train()

    predicted = runner.predict("train")

    points, _ = runner.datasets["train"].tensors
    with torch.no_grad():
        torch.testing.assert_close(predicted, runner.model(points))


@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_need_no_target(split):
    runner = TinyRunner()
    points = runner.datasets[split].tensors[0]
    expected = runner.predict(split)

    runner.datasets[split] = TensorDataset(points)
    runner.data.forget_loaders()

    assert torch.equal(runner.predict(split), expected)


def test_outputs_that_are_no_tensors_come_as_a_list_of_batches():
    class Named(TinyRunner):
        def predict_step(self, batch):
            output = self.model(batch[0])
            return {"logits": output, "parts": (output.argmax(1), "name")}

    predicted = Named().predict("test")

    assert len(predicted) == 4
    assert not predicted[0]["logits"].requires_grad
    assert predicted[0]["parts"][1] == "name"


def test_outputs_of_different_lengths_come_as_a_list():
    class Ragged(TinyRunner):
        def predict_step(self, batch):
            self.calls = getattr(self, "calls", 0) + 1
            return torch.zeros(4, self.calls)

    assert [output.shape for output in Ragged().predict("test")] == [(4, n) for n in (1, 2, 3, 4)]


def test_predict_hooks_fire_around_and_within():
    recording = RecordingCallback()

    TinyRunner(callbacks=[recording]).predict("test")

    assert recording.hooks == [
        *("on_predict_start", *["on_predict_batch_end"] * 4, "on_predict_end")
    ]


@pytest.mark.parametrize("hook", ["on_step", "on_batch_end", "on_checkpoint", "on_epoch_end"])
def test_a_callback_may_evaluate(hook):
    plain = Dropping({"evaluate_every": None})
    plain.train()
    recording = RecordingCallback()

    class Curious(Callback):
        def __init__(self):
            setattr(self, hook, lambda runner, *_: runner.evaluate("test"))

    curious = Dropping({"evaluate_every": None}, callbacks=[Curious(), recording])
    curious.train()

    assert are_identical(states(curious.model), states(plain.model))
    assert recording.is_paired
    assert recording.count("on_evaluate_end") == (2 if hook == "on_epoch_end" else 8) + (
        2 if hook == "on_checkpoint" else 0
    )


def test_a_callback_may_evaluate_another_split_within_an_evaluation():
    class Curious(Callback):
        def on_evaluate_batch_end(self, runner, batch, output):
            if runner.evaluating == "val":
                runner.evaluate("test")

    assert TinyRunner(callbacks=[Curious()]).evaluate("val") == TinyRunner().evaluate("val")


def test_predicting_within_a_training_changes_nothing_of_it():
    plain = Dropping({"max_epochs": 1})
    plain.train()
    curious = Dropping({"max_epochs": 1})

    class Curious(Callback):
        def on_step(self, runner):
            runner.predict("val")
            runner.predict("train")

    curious.callbacks.append(Curious())
    curious.train()

    assert are_identical(states(curious.model), states(plain.model))
    assert curious.results == plain.results


def test_totals_of_processes_are_added():
    from danling.metrics.averages import Total

    parts = [{"x": Total(1.0, 2.0, 0)}, {"x": Total(3.0, 2.0, 1), "y": Total(1.0, 1.0, 0)}]

    totals = reduce_totals({}, lambda own: parts)

    assert totals == {"x": Total(4.0, 4.0, 1), "y": Total(1.0, 1.0, 0)}
    assert tiny_data(3, "x").tensors[0].shape == (3, 4)
