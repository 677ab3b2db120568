from __future__ import annotations

from pathlib import Path

import pytest
import torch

from danling.callbacks import PredictionWriter
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner


class TestContract(CallbackContract):
    def make(self):
        return PredictionWriter("predictions")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_pieces_are_what_predict_gives(tmp_path: Path, size: int):
    runner = TinyRunner(callbacks=[PredictionWriter(tmp_path, batches_per_piece=size)])
    expected = runner.predict("test")

    pieces = list((tmp_path / "test").iterdir())
    assert len(pieces) == -(-4 // size)
    assert torch.equal(torch.cat(PredictionWriter.read(tmp_path / "test")), expected)


def test_a_prediction_removes_the_one_before(tmp_path: Path):
    TinyRunner(callbacks=[PredictionWriter(tmp_path, batches_per_piece=1)], samples=32).predict()
    TinyRunner(callbacks=[PredictionWriter(tmp_path, batches_per_piece=1)]).predict()

    assert len(list((tmp_path / "test").iterdir())) == 4


def test_outputs_that_are_mappings_keep_their_form(tmp_path: Path):
    class Naming(TinyRunner):
        def predict_step(self, batch):
            return {"logits": super().predict_step(batch), "ids": [1, 2]}

    Naming(callbacks=[PredictionWriter(tmp_path)]).predict("val")

    first = PredictionWriter.read(tmp_path / "val")[0]
    assert first["ids"] == [1, 2]
    assert first["logits"].shape == (4, 3)


def test_a_folder_without_predictions_is_an_error(tmp_path: Path):
    with pytest.raises(CallbackError, match="no predictions"):
        PredictionWriter.read(tmp_path)


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="at least 1"):
        PredictionWriter("x", batches_per_piece=0)
