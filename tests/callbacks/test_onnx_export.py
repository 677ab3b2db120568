from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from danling.callbacks import ONNXExport
from danling.testing import CallbackContract, TinyRunner

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnx.reference")
pytest.importorskip("onnxscript")


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return ONNXExport()


def test_the_graph_computes_what_the_best_model_does(tmp_path):
    runner = TinyRunner(
        {"project_root": str(tmp_path)}, callbacks=[ONNXExport()], default_callbacks=True
    )
    runner.train()

    path = runner.dir / "model.onnx"
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    [given] = graph.graph.input
    model = nn.Linear(4, 3)
    model.load_state_dict(runner.checkpoints.load("best")[0]["model"])
    for count in (1, 4, 7):
        points = torch.randn(count, 4)
        evaluator = onnx.reference.ReferenceEvaluator(str(path))
        [found] = evaluator.run(None, {given.name: points.numpy()})
        assert torch.allclose(torch.from_numpy(found), model(points), atol=1e-5)
    told = {entry.key: entry.value for entry in graph.metadata_props}
    assert told["id"] == runner.id
    assert told["score"] == f"val/loss={runner.best_score!r}"
    assert not list(runner.dir.glob(".model.onnx*"))
