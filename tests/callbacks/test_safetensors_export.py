from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from danling.callbacks import EMAWeightAveraging, SafetensorsExport
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner, is_equal

pytest.importorskip("safetensors")
from safetensors import safe_open
from safetensors.torch import load_file


def wrong(value: Any) -> Any:
    """A value that a type checker would refuse."""
    return value


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return SafetensorsExport()


class Tied(TinyRunner):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        self.model = nn.Sequential(first, second)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)


@pytest.mark.parametrize("which", ["best", "latest"])
def test_the_file_has_the_weights_of_the_checkpoint(tmp_path, which):
    runner = TinyRunner(
        {"project_root": str(tmp_path)},
        callbacks=[SafetensorsExport(which, "export/weights.safetensors"), EMAWeightAveraging(0.5)],
        default_callbacks=True,
    )
    runner.train()

    path = runner.dir / "export" / "weights.safetensors"
    checkpoint = torch.load(runner.checkpoint_dir / f"{which}.pth", weights_only=True)
    assert is_equal(load_file(path), dict(checkpoint["model"]))
    with safe_open(path, "pt") as file:
        assert file.metadata()["id"] == runner.id
        assert ("score" in file.metadata()) is (which == "best")


def test_a_tensor_of_two_names_is_written_once(tmp_path):
    runner = Tied(
        {"project_root": str(tmp_path)}, callbacks=[SafetensorsExport()], default_callbacks=True
    )
    runner.train()

    path = runner.dir / "model.safetensors"
    assert set(load_file(path)) == {"0.weight", "0.bias", "1.bias"}
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["same"]) == {"1.weight": "0.weight"}


def test_without_a_checkpoint_there_is_a_warning(tmp_path, caplog):
    runner = TinyRunner(
        {"project_root": str(tmp_path), "max_epochs": 1, "evaluate_every": None},
        callbacks=[SafetensorsExport()],
        default_callbacks=True,
    )
    runner.train()

    assert "there is no best.pth" in runner.log_path.read_text()


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="did you mean 'latest'"):
        SafetensorsExport(wrong("lastest"))
