"""Modules and objects besides the model: found, named, saved, restored and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from danling.callbacks import LambdaCallback, ModelCheckpoint
from danling.checkpoint.reading import read_checkpoint
from danling.checkpoint.sharded.state import differences, put_back
from danling.errors import CheckpointError, ConfigError
from danling.runner.members import find_members
from tests.support.held import Average, Labelled, Weighted
from tests.support.resume_runs import Noisy, Runner, interrupted, log, make_runner, trained, weights


def with_criterion(*callbacks: Any, **config: Any) -> Runner:
    """A runner whose criterion has a parameter that is trained."""
    runner = make_runner(callbacks, **config)
    runner.criterion = Weighted()
    runner.optimizer = torch.optim.SGD(
        [*runner.model.parameters(), *runner.criterion.parameters()], lr=0.01
    )
    return runner


def rewritten(runner: Runner, folder: Path, change: Any) -> Path:
    """A checkpoint of a run, as another version or a hand has made it."""
    loaded = torch.load(runner.checkpoint_dir / "latest.pth", weights_only=True)
    change(loaded)
    torch.save(loaded, folder / "changed.pth")
    return folder / "changed.pth"


def test_the_criterion_is_evaluated_in_evaluation_mode_and_put_back():
    modes: list[bool] = []
    runner = with_criterion(
        LambdaCallback(
            name="look", on_evaluate_start=lambda r, split: modes.append(r.criterion.training)
        )
    )

    runner.train()

    assert modes == [False, False]
    assert runner.criterion.training


def test_a_file_of_weights_alone_has_those_of_the_criterion():
    runner = with_criterion(ModelCheckpoint(save_weights_only=True))
    runner.train()
    path = runner.checkpoint_dir / "best.pth"

    other = with_criterion()
    other.load_checkpoint(path, strict=False)

    assert set(read_checkpoint(path)["stateful"]["criterion"]) == {"weight", "centre"}
    assert torch.equal(
        other.criterion.weight, read_checkpoint(path)["stateful"]["criterion"]["weight"]
    )


def test_the_log_says_what_is_saved():
    runner = with_criterion()
    runner.train()

    assert "checkpoints hold model, optimizer, criterion\n" in log(runner)


def test_a_checkpoint_of_before_loads_and_is_not_called_exact(tmp_path: Path):
    def without(loaded: dict[str, Any]) -> None:
        del loaded["stateful"], loaded["run"]["changed"], loaded["run"]["lost"]

    path = rewritten(trained(), tmp_path, without)
    plain, other = make_runner(), with_criterion()
    plain.load_checkpoint(path)
    other.optimizer = torch.optim.SGD(other.model.parameters(), lr=0.005, momentum=0.9)
    other.load_checkpoint(path)

    assert plain.resume_report is not None
    assert plain.resume_report["exact"]
    assert other.resume_report is not None
    assert not other.resume_report["exact"]
    assert other.resume_report["reasons"] == ["the checkpoint has no state of criterion"]


def test_another_shape_of_a_criterion_is_refused_and_nothing_is_changed():
    first = with_criterion()
    first.train()
    other = with_criterion()
    other.criterion.centre = torch.full((2,), 7.0)
    before = weights(other)

    with pytest.raises(
        CheckpointError, match=r"criterion.centre has the shape torch.Size\(\[1\]\)"
    ):
        other.load_checkpoint(first.checkpoint_dir / "latest.pth")

    assert weights(other) == before
    assert other.criterion.centre.tolist() == [7.0, 7.0]


def test_what_a_script_freezes_before_a_new_training_stays_frozen():
    path = trained().checkpoint_dir / "latest.pth"
    other = make_runner()
    other.model[0].requires_grad_(False)

    other.load_checkpoint(path)

    assert not other.model[0].weight.requires_grad


def test_callbacks_have_their_state_back_where_a_checkpoint_is_refused():
    first = interrupted(9, [ModelCheckpoint("1 step")])
    other = make_runner(optimizer=lambda p: torch.optim.Adam(p))
    before = str(other.callbacks.state_dict())

    with pytest.raises(CheckpointError, match="optimizer was SGD, now it is Adam"):
        other.load_checkpoint(first.checkpoint_dir / "latest.pth")

    assert str(other.callbacks.state_dict()) == before


def test_what_is_a_part_of_the_model_or_has_no_state_is_no_member():
    model = nn.Sequential(nn.Linear(2, 2))
    attributes = {
        "backbone": model[0],
        "number": 3,
        "kind": nn.Linear,
        "heads": [nn.Linear(2, 1)],
        "by_name": {"teacher": nn.Linear(2, 1)},
        "average": Average(model),
    }

    found = find_members(attributes, model.modules())

    assert list(found) == ["heads.0", "by_name.teacher", "average"]


def test_only_what_has_a_state_is_registered_and_only_once():
    runner = make_runner()
    runner.register_for_checkpointing(average=Average(runner.model))

    with pytest.raises(ConfigError, match=r"number=\.\.\.\): int has no state_dict\(\)"):
        runner.register_for_checkpointing(number=3)
    with pytest.raises(ConfigError, match="'average' is registered already"):
        runner.register_for_checkpointing(average=Average(runner.model))


def test_an_attribute_that_the_class_names_is_not_saved():
    class Own(Runner):
        not_saved = ("teacher",)

    runner = Own(
        {"seed": 0, "max_epochs": 1, "dataloader": {"batch_size": 4}},
        model=(model := nn.Linear(4, 1)),
        criterion=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        datasets={"train": Noisy()},
    )
    runner.teacher = nn.Linear(4, 1)  # type: ignore[attr-defined]
    runner.student = nn.Linear(4, 1)  # type: ignore[attr-defined]

    runner.train()

    assert list(read_checkpoint(runner.checkpoint_dir / "latest.pth")["stateful"]) == ["student"]


def test_strings_and_types_in_the_state_of_an_optimizer_are_put_back():
    parameter = nn.Parameter(torch.ones(2))
    first = Labelled([parameter], lr=0.1)
    parameter.grad = torch.ones(2)
    first.step()
    state = first.state_dict()
    second = Labelled([parameter], lr=0.1)
    second.load_state_dict(state)
    assert differences(second, state) == ["the state 'label' of an optimizer was not restored"]

    put_back(second, state)

    assert differences(second, state) == []
    assert second.state[parameter]["label"] == "step 1"
    assert second.state[parameter]["sum"].dtype == torch.float64
