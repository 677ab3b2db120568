from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
import torch

from danling.callbacks import SpikeDetection
from danling.errors import CallbackError, MetricError
from danling.testing import CallbackContract, TinyRunner


def wrong(value: Any) -> Any:
    """A value that a type checker would refuse."""
    return value


class TestContract(CallbackContract):
    def make(self):
        return SpikeDetection(rtol=100.0)


class Jumping(TinyRunner):
    """Whose loss is 50 times as large at one batch."""

    def train_step(self, batch):
        loss = super().train_step(batch)["loss"]
        return {"loss": loss * (50 if (self.epoch, self.batch_index) == (1, 2) else 1)}


def test_a_spike_is_an_error_that_names_the_batch_and_is_in_a_file(tmp_path):
    detection = SpikeDetection(window=4, warmup=2)
    config = {"project_root": str(tmp_path)}
    runner = Jumping(config, callbacks=[detection], default_callbacks=True)

    with pytest.raises(MetricError, match=r"jumps to .* at batch 2 of epoch 1"):
        runner.train()

    [spike] = json.loads((runner.dir / "spikes.json").read_text())
    assert (spike["epoch"], spike["batch_index"]) == (1, 2)
    assert spike["loss"] > 10 * spike["mean"]


def test_a_warning_lets_the_training_go_on(caplog):
    runner = Jumping(callbacks=[detection := SpikeDetection(warmup=2, action="warn")])
    runner.train()

    assert runner.global_step == 8
    assert [spike["batch_index"] for spike in detection.spikes] == [2]
    assert "the loss jumps" in caplog.text


def test_a_stop_has_the_reason():
    runner = Jumping(callbacks=[SpikeDetection(warmup=2, action="stop")])
    runner.train()

    assert runner.global_step == 7
    assert runner.stop_reason is not None
    assert "the loss jumps" in runner.stop_reason


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1, 1, 9], [False, False, True]),
        ([1, 1, 2.9], [False, False, False]),
        ([1, 1, math.nan], [False, False, True]),
        ([9, 1, 1], [False, False, False]),
        ([1, 9, 9, 1], [False, True, True, False]),
    ],
)
def test_a_spike_is_worse_than_the_one_before_and_far_from_the_mean(losses, expected):
    detection = SpikeDetection(warmup=1, window=3)

    assert [detection.check(loss) for loss in losses] == expected


def test_the_first_batches_are_never_spikes():
    detection = SpikeDetection(warmup=3, window=3)

    assert [detection.check(loss) for loss in (1, 99, 9999)] == [False] * 3


@pytest.mark.filterwarnings("ignore:The `srun` command")  # of Lightning, where SLURM is
@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_same_batches_are_spikes_as_for_lightning(mode):
    pytest.importorskip("lightning.fabric")
    from lightning.fabric import Fabric
    from lightning.fabric.utilities.spike import SpikeDetection as Lightning

    theirs_found: list[int] = []

    def note(_: Any, fabric: Any, batch_idx: int) -> None:
        theirs_found.append(batch_idx)

    kind: Any = type("Theirs", (Lightning,), {"_handle_spike": note})
    fabric = Fabric(accelerator="cpu", devices=1)
    draws = random.Random(0)
    for atol, rtol, window in ((None, 0.6, 10), (0.5, 0.3, 4), (None, 0.1, 3)):
        theirs_found.clear()
        theirs = kind(mode=mode, window=window, warmup=5, atol=atol, rtol=rtol)
        ours = SpikeDetection(mode, window, 5, atol, rtol)
        losses = [draws.gauss(1, 0.2) * draws.choice([1, 1, 1, 4, 0.1]) for _ in range(200)]
        found = []
        for index, loss in enumerate(losses):
            theirs.on_train_batch_end(fabric, torch.tensor(loss), None, index)
            if ours.check(loss):
                found.append(index)

        assert found == theirs_found
        assert found


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="did you mean 'min'"):
        SpikeDetection(wrong("minn"))
    with pytest.raises(CallbackError, match="did you mean 'warn'"):
        SpikeDetection(action=wrong("warm"))
    with pytest.raises(CallbackError, match="numbers of batches"):
        SpikeDetection(window=0)
