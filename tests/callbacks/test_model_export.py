from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from danling.callbacks import EMAWeightAveraging, ModelExport
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner, tiny_data


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return ModelExport()


def trained(folder, *callbacks, **parts) -> TinyRunner:
    runner = TinyRunner(
        {"project_root": str(folder), "max_epochs": 3}, callbacks=callbacks, default_callbacks=True
    )
    for name, part in parts.items():
        setattr(runner, name, part)
    runner.train()
    return runner


@pytest.mark.parametrize("which", ["best", "latest"])
def test_the_program_computes_what_the_checkpoint_s_model_does(tmp_path, which):
    runner = trained(tmp_path, ModelExport(which), EMAWeightAveraging(0.5))
    about = {"run.json": ""}

    program = torch.export.load(runner.dir / "model.pt2", extra_files=about).module()

    model = nn.Linear(4, 3)
    model.load_state_dict(runner.checkpoints.load(which)[0]["model"])
    for count in (1, 4, 7):
        points = torch.randn(count, 4)
        assert torch.allclose(program(points), model(points), atol=1e-6)
    told = json.loads(about["run.json"])
    assert told["id"] == runner.id
    assert ("score" in told) is (which == "best")


def test_without_a_dynamic_batch_the_size_is_that_of_the_example(tmp_path):
    example = torch.ones(2, 4)
    runner = trained(tmp_path, ModelExport(path="a/b.pt2", example=example, dynamic_batch=False))

    program = torch.export.load(runner.dir / "a" / "b.pt2").module()

    assert program(torch.ones(2, 4)).shape == (2, 3)
    with pytest.raises((AssertionError, RuntimeError)):
        program(torch.ones(3, 4))


def test_what_cannot_be_traced_is_a_warning_and_leaves_no_file(tmp_path, capsys):
    class Undecided(nn.Linear):
        def forward(self, points):
            return super().forward(points) * (1 if points.sum() > 0 else -1)

    model = Undecided(4, 3)
    runner = trained(
        tmp_path,
        ModelExport(),
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )

    assert runner.status == "finished"
    assert "model_export: the model was not exported" in capsys.readouterr().err
    assert not list(runner.dir.glob("*model.pt2*"))


def test_batches_that_are_mappings_are_passed_by_name(tmp_path):
    class Named(nn.Linear):
        def forward(self, points, labels=None):
            output = super().forward(points)
            return {"loss": nn.functional.cross_entropy(output, labels), "logits": output}

    points, labels = tiny_data(8, "train").tensors
    data = [{"points": one, "labels": other} for one, other in zip(points, labels, strict=True)]
    model = Named(4, 3)
    runner = trained(
        tmp_path,
        ModelExport(),
        model=model,
        datasets={"train": data, "val": data},
        metrics={},
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )

    program = torch.export.load(runner.dir / "model.pt2").module()
    assert program(points=points[:3], labels=labels[:3])["logits"].shape == (3, 3)


def test_what_is_neither_the_best_nor_the_last_is_an_error():
    with pytest.raises(CallbackError, match="did you mean 'best'"):
        ModelExport("bets")  # type: ignore[arg-type]  # on purpose
