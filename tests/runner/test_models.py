"""Several models of one run: placed, called, saved and continued by their names."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import danling as dl
from danling.callbacks import EMAWeightAveraging, ModelSummary, StochasticWeightAveraging
from danling.errors import CheckpointError, ConfigError, RunError
from tests.support import gan
from tests.support.resume_harness import in_process
from tests.support.tensors import are_identical

QUIET: dict[str, Any] = {"seed": 0, "max_epochs": 1, "accelerate": {"cpu": True}}


def pair() -> dict[str, nn.Module]:
    return {"first": nn.Linear(2, 3), "second": nn.Linear(3, 1)}


def chained(models: Any) -> Any:
    return [parameter for model in models.values() for parameter in model.parameters()]


class Pair(dl.AccelerateRunner):
    """Two models, one after the other, that are trained as one."""

    def train_step(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.predict_step(batch), batch[1])

    evaluate_step = train_step

    def predict_step(self, batch: Any) -> Tensor:
        output: Tensor = self.model["second"](self.model["first"](batch[0]).relu())
        return output


def make(config: dict[str, Any] | None = None, **parts: Any) -> Pair:
    torch.manual_seed(3)
    models = parts.pop("model", None) or pair()
    data = TensorDataset(torch.randn(24, 2), torch.randn(24, 1))
    return Pair(
        QUIET | (config or {}),
        model=models,
        optimizer=parts.pop("optimizer", None) or torch.optim.SGD(chained(models), lr=0.1),
        datasets={"train": data, "val": data, "test": data},
        **{"default_callbacks": False} | parts,
    )


# Training


def test_adversaries_are_trained_as_by_hand_bit_for_bit(tmp_path: Path) -> None:
    runner = gan.make_runner(tmp_path, resume=False)
    orders: list[Tensor] = []

    class Seen(dl.Callback):
        def on_batch_start(self, runner: dl.AccelerateRunner, batch: Any) -> None:
            orders.append(batch[0].clone())

    runner.callbacks.append(Seen())
    runner.train()

    models = gan.make_models()
    optimizers = gan.make_optimizers(models)
    schedulers = gan.make_schedulers(optimizers)
    torch.manual_seed(1)  # what the runner seeds for a training
    for real in orders:
        for name, loss_of in (("critic", gan.critic_loss), ("generator", gan.generator_loss)):
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            loss_of(models, real).backward()
            nn.utils.clip_grad_norm_(models[name].parameters(), 1.0)
            optimizers[name].step()
            if name in schedulers:
                schedulers[name].step()

    expected = {
        f"{name}.{key}": v for name, m in models.items() for key, v in m.state_dict().items()
    }
    found = runner.unwrapped_model.state_dict()
    assert runner.global_step == 2 * gan.EPOCHS * gan.SAMPLES // gan.BATCH
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_adversaries_that_are_killed_twice_end_as_if_undisturbed(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert in_process(gan.train, tmp_path / "whole") == 0
    for step in (5, 16):  # a critic's, and a generator's
        assert in_process(gan.train, tmp_path / "killed", step) == -signal.SIGKILL
    assert in_process(gan.train, tmp_path / "killed") == 0

    whole, killed = gan.outcome(tmp_path / "whole"), gan.outcome(tmp_path / "killed")
    assert killed.pop("exact") is True
    assert whole.pop("exact") is None
    assert killed == whole


# What they are


def test_each_model_is_called_by_its_name_and_in_the_mode_of_the_runner() -> None:
    modes: dict[str, list[bool]] = {}

    class Modes(Pair):
        def train_step(self, batch: Any) -> Tensor:
            modes["train"] = [model.training for model in self.model.values()]
            return super().train_step(batch)

        def evaluate_step(self, batch: Any) -> Tensor:
            modes["val"] = [model.training for model in self.model.values()]
            return super().train_step(batch)

    models = pair()
    models["first"].eval()  # as from_pretrained of other libraries hands it over
    data = TensorDataset(torch.randn(8, 2), torch.randn(8, 1))
    runner = Modes(
        QUIET,
        model=models,
        optimizer=torch.optim.SGD(chained(models), lr=0.1),
        datasets={"train": data, "val": data},
        default_callbacks=False,
    )
    runner.train()

    assert modes == {"train": [True, True], "val": [False, False]}
    assert runner.model["first"] is models["first"]
    assert [model.training for model in models.values()] == [True, True]


def test_a_teacher_that_no_optimizer_trains_keeps_its_mode() -> None:
    models = {**pair(), "teacher": nn.Dropout(0.5).eval()}
    runner = make(model=models, optimizer=torch.optim.SGD(chained(pair()), lr=0.1))
    runner.optimizer = torch.optim.SGD(models["first"].parameters(), lr=0.1)

    runner.train()

    assert [model.training for model in models.values()] == [True, True, False]


def test_the_default_steps_say_that_nobody_knows_which_model_is_called() -> None:
    models = pair()
    data = TensorDataset(torch.randn(8, 2), torch.randn(8, 1))
    runner = dl.AccelerateRunner(
        QUIET, model=models, criterion=nn.MSELoss(), datasets={"val": data}, default_callbacks=False
    )

    for ask in (lambda: runner.evaluate("val"), lambda: runner.predict("val")):
        with pytest.raises(RunError, match=r"several models, \['first', 'second'\].*train_step"):
            ask()


def test_a_training_with_the_default_steps_is_refused_before_it_begins() -> None:
    class Half(dl.AccelerateRunner):
        def train_step(self, batch: Any) -> Tensor:
            raise AssertionError("it is refused before")

    models, data = pair(), TensorDataset(torch.randn(8, 2), torch.randn(8, 1))
    runner = Half(
        QUIET,
        model=models,
        optimizer=torch.optim.SGD(chained(models), lr=0.1),
        datasets={"train": data, "val": data},
        default_callbacks=False,
    )

    with pytest.raises(ConfigError, match=r"'second'\], and evaluate_step of the runner"):
        runner.train()


def test_evaluate_and_predict_use_all_of_them() -> None:
    runner = make()
    plain: Any = runner.unwrapped_model

    output = runner.predict("test")

    inputs = runner.datasets["test"].tensors[0]
    assert torch.equal(output, plain["second"](plain["first"](inputs).relu()).detach())
    assert runner.evaluate("val")["loss"] > 0


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "model is an empty mapping"),
        ({"a": nn.Linear(1, 1), "b": "module"}, "the model 'b' is a str, and no module"),
        ({"a.b": nn.Linear(1, 1)}, "a model cannot be named 'a.b'"),
        ({"forward": nn.Linear(1, 1)}, "a model cannot be named 'forward'"),
    ],
)
def test_what_is_no_model_is_refused_by_the_constructor(models: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dl.AccelerateRunner(QUIET, model=models, default_callbacks=False)


def test_one_model_of_two_names_is_refused() -> None:
    shared = nn.Linear(1, 1)

    with pytest.raises(ConfigError, match="the model 'b' has another name too"):
        dl.AccelerateRunner(QUIET, model={"a": shared, "b": shared}, default_callbacks=False)


def test_models_that_a_subclass_assigns_are_several_models_too() -> None:
    runner = make()
    models: Any = pair()
    runner.model = models
    runner.optimizer = torch.optim.SGD(chained(models), lr=0.1)
    before = models["first"].state_dict()["weight"].clone()

    runner.train()

    assert runner.unwrapped_model["first"] is models["first"]
    assert not torch.equal(models["first"].state_dict()["weight"], before)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("direct", [True, False])
def test_models_and_optimizers_may_be_assigned_between_epochs(
    precision: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from danling.optimization import optimization

    if not direct:
        monkeypatch.setattr(optimization, "accelerate_adds_nothing", lambda _: False)
    others = pair()

    class Assign(dl.Callback):
        def on_epoch_start(self, runner: dl.AccelerateRunner) -> None:
            if runner.epoch == 1:
                runner.optimizer = torch.optim.AdamW(runner.unwrapped_model.parameters(), lr=0.1)
            if runner.epoch == 2:
                runner.model = others
                runner.optimizer = torch.optim.SGD(chained(others), lr=0.1)

    options = {"cpu": True, "mixed_precision": precision}
    first = pair()
    config = {"max_epochs": 3, "accelerate": options}
    runner = make(config, model=first, callbacks=[Assign()])
    before = [model.state_dict()["weight"].clone() for model in (*first.values(), *others.values())]

    runner.train()

    after = [model.state_dict()["weight"] for model in (*first.values(), *others.values())]
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert list(runner.unwrapped_model.values()) == list(others.values())


# Checkpoints, and what else takes a model


def test_a_checkpoint_has_their_weights_under_their_names(tmp_path: Path) -> None:
    runner = make({"project_root": str(tmp_path)}, default_callbacks=True)
    runner.train()

    saved = dl.read_checkpoint(runner.checkpoint_dir / "latest.pth")
    assert list(saved["model"]) == ["first.weight", "first.bias", "second.weight", "second.bias"]

    again = Pair.from_checkpoint(
        runner.checkpoint_dir / "latest.pth",
        model=pair(),
        datasets=runner.datasets,
        default_callbacks=False,
    )
    assert again.evaluate("val") == runner.evaluate("val")
    container = nn.ModuleDict(pair())
    container.load_state_dict(saved["model"])  # and without this library


def test_a_checkpoint_of_other_models_is_refused(tmp_path: Path) -> None:
    runner = make({"project_root": str(tmp_path)}, default_callbacks=True)
    runner.train()

    with pytest.raises(
        CheckpointError, match=r"missing weight third\.weight; .*unexpected weight s"
    ):
        Pair.from_checkpoint(
            runner.checkpoint_dir / "latest.pth",
            model={"first": nn.Linear(2, 3), "third": nn.Linear(3, 1)},
            default_callbacks=False,
        )


def test_a_checkpoint_of_one_module_with_the_same_parts_is_taken(tmp_path: Path) -> None:
    class Whole(nn.ModuleDict):
        def forward(self, inputs: Any) -> Any:
            hidden: Any = self["first"](inputs)
            return self["second"](hidden.relu())

    data = TensorDataset(torch.randn(8, 2), torch.randn(8, 1))
    whole = Whole(pair())
    runner = dl.AccelerateRunner(
        QUIET | {"project_root": str(tmp_path)},
        model=whole,
        criterion=nn.MSELoss(),
        optimizer=torch.optim.SGD(whole.parameters(), lr=0.1),
        datasets={"train": data, "val": data},
    )
    runner.train()

    models = pair()
    Pair.from_checkpoint(
        runner.checkpoint_dir / "latest.pth", model=models, default_callbacks=False
    )

    found, expected = models["second"].state_dict(), whole["second"].state_dict()
    assert torch.equal(found["weight"], expected["weight"])


@pytest.mark.parametrize(
    "average", [lambda: EMAWeightAveraging(0.9), lambda: StochasticWeightAveraging(0.01)]
)
def test_an_average_of_the_weights_is_of_all_of_them(average: Any, tmp_path: Path) -> None:
    config = {"project_root": str(tmp_path), "max_epochs": 4}
    runner = make(config, default_callbacks=True, callbacks=[average()])
    runner.train()

    best = runner.checkpoint_dir / "best.pth"
    again = Pair.from_checkpoint(
        best, model=pair(), datasets=runner.datasets, default_callbacks=False
    )
    assert again.evaluate("val")["loss"] == pytest.approx(runner.best_score, rel=1e-6)


def test_a_summary_has_all_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {"project_root": str(tmp_path)}
    runner = make(config, default_callbacks=True, callbacks=[ModelSummary()])
    runner.train()

    text = (runner.dir / "run.log").read_text()
    assert "first             Linear               9          9" in text
    assert "second            Linear               4          4" in text


def test_they_are_exported_in_one_file(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    from danling.callbacks import SafetensorsExport

    config = {"project_root": str(tmp_path)}
    runner = make(config, default_callbacks=True, callbacks=[SafetensorsExport("latest")])
    runner.train()

    weights = load_file(runner.dir / "model.safetensors")
    assert weights.keys() == runner.unwrapped_model.state_dict().keys()
    assert torch.equal(weights["second.weight"], runner.unwrapped_model["second"].weight)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of the tracer itself
def test_compiled_models_are_saved_under_plain_names() -> None:
    models = {name: torch.compile(model, backend="eager") for name, model in pair().items()}
    runner = make(model=models)

    runner.train()

    assert next(iter(runner.unwrapped_model.state_dict())) == "first.weight"
    assert next(iter(runner.state_dict()["model"])) == "first.weight"


def test_accelerate_wraps_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from danling.optimization import optimization

    def weights() -> list[Tensor]:
        runner = make({"accelerate": {"cpu": True, "mixed_precision": "bf16"}, "max_epochs": 2})
        runner.train()
        return [p.detach().clone() for p in runner.unwrapped_model.parameters()]

    direct = weights()
    monkeypatch.setattr(optimization, "accelerate_adds_nothing", lambda _: False)

    assert are_identical(direct, weights())


def test_an_empty_container_is_a_model_too() -> None:
    empty = nn.Sequential()
    data = TensorDataset(torch.randn(8, 2), torch.randn(8, 2))
    runner = dl.AccelerateRunner(
        QUIET, model=empty, criterion=nn.MSELoss(), datasets={"val": data}, default_callbacks=False
    )

    assert runner.evaluate("val")["loss"] > 0
    assert runner.unwrapped_model is empty
