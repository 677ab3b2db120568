from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from danling.checkpoint.exporting import Call, example_of, model_with, saved_weights, write_whole
from danling.errors import CheckpointError, DataError
from danling.testing import TinyRunner


def trained(folder: Path, **config) -> TinyRunner:
    runner = TinyRunner({"project_root": str(folder), **config}, default_callbacks=True)
    runner.train()
    return runner


def test_the_weights_come_with_what_they_are(tmp_path):
    runner = trained(tmp_path)

    best, latest = (saved_weights(runner.checkpoints, which) for which in ("best", "latest"))

    assert best is not None
    assert best.metadata == {
        "id": runner.id,
        "checkpoint": "best.pth",
        "score": f"val/loss={runner.best_score!r}",
    }
    assert latest is not None
    assert torch.equal(latest.weights["weight"], runner.model.weight)
    assert "score" not in latest.metadata


def test_what_was_never_saved_is_none_and_what_is_damaged_an_error(tmp_path):
    runner = trained(tmp_path)
    path = runner.checkpoint_dir / "best.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        saved_weights(runner.checkpoints, "best")
    path.unlink()

    assert saved_weights(runner.checkpoints, "best") is None


def test_a_model_with_other_weights_is_another_one():
    model = nn.Sequential(nn.Linear(2, 1), nn.Dropout())
    weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}

    twin = model_with(model, weights)

    assert not twin.training
    assert model.training
    assert torch.equal(twin(torch.ones(1, 2)), torch.zeros(1, 1))
    assert not torch.equal(model.state_dict()["0.weight"], weights["0.weight"])


@pytest.mark.parametrize(
    ("batch", "arguments", "names"),
    [
        ((torch.ones(2, 3), torch.ones(2)), 1, []),
        (torch.ones(2, 3), 1, []),
        ({"points": torch.ones(2), "labels": torch.ones(2)}, 0, ["points", "labels"]),
    ],
)
def test_a_batch_is_called_as_a_prediction_does(batch, arguments, names):
    call = Call.of(batch)

    assert len(call.arguments) == arguments
    assert list(call.keywords) == names


def test_an_example_draws_nothing_and_needs_a_batch():
    runner, empty = TinyRunner(), TinyRunner(samples=0)
    before = torch.get_rng_state()
    call = example_of(runner.loader("val", evaluating=True))

    assert call.arguments[0].shape == (4, 4)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(DataError, match="no example of the input"):
        example_of(empty.loader("val", evaluating=True))


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "folder" / "model.bin"
    write_whole(path, lambda file: file.write_bytes(b"old"))

    def fail(file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_whole(path, fail)
    assert [(found.name, found.read_bytes()) for found in path.parent.iterdir()] == [
        ("model.bin", b"old")
    ]


def test_what_is_written_beside_a_file_comes_along(tmp_path):
    def write(file: Path) -> None:
        file.write_bytes(b"graph")
        file.with_name("model.onnx.data").write_bytes(b"weights")

    write_whole(tmp_path / "model.onnx", write)

    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
