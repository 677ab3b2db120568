from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from danling.callbacks import LambdaCallback, ScheduleFree
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner, is_equal

schedulefree: Any = pytest.importorskip("schedulefree")


class Free(TinyRunner):
    """The tiny training with a schedule-free optimizer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.optimizer = schedulefree.AdamWScheduleFree(self.model.parameters(), lr=0.1)
        self.optimizer.train()  # as somebody does who has no callback for it


class TestContract(CallbackContract):
    runner_class = Free
    default_callbacks = True

    def make(self):
        return ScheduleFree()


def make(folder: Path, kind: str = "AdamWScheduleFree", **config: Any) -> TinyRunner:
    runner = TinyRunner(
        {"project_root": str(folder), **config}, callbacks=[ScheduleFree()], default_callbacks=True
    )
    runner.optimizer = getattr(schedulefree, kind)(runner.model.parameters(), lr=0.1)
    return runner


@pytest.mark.parametrize("kind", ["AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"])
def test_what_is_evaluated_and_saved_is_what_the_optimizer_s_eval_gives(tmp_path, kind):
    seen: list[torch.Tensor] = []
    keep = LambdaCallback(
        on_evaluate_batch_start=lambda runner, batch: seen.append(runner.model.weight.clone())
    )
    runner = make(tmp_path, kind)
    runner.callbacks.append(keep)
    runner.train()

    trained = runner.model.weight.detach().clone()
    runner.optimizer.eval()
    assert torch.equal(seen[-1], runner.model.weight)
    assert not torch.equal(seen[-1], trained)
    latest, _ = runner.checkpoints.load()
    assert torch.equal(latest["model"]["weight"], runner.model.weight)


def test_an_evaluation_changes_no_bit_of_what_is_trained(tmp_path):
    often, never = make(tmp_path, evaluate_every="1 step"), make(tmp_path, evaluate_every=None)
    often.train()
    never.train()

    assert torch.equal(often.model.weight, never.model.weight)
    assert is_equal(often.optimizer.state_dict(), never.optimizer.state_dict())


def test_the_best_checkpoint_gives_the_best_score_back_without_the_callback(tmp_path):
    runner = make(tmp_path, max_epochs=4)
    runner.train()

    again = Free.from_checkpoint(runner.checkpoint_dir / "best.pth", default_callbacks=False)
    assert again.evaluate("val")["loss"] == runner.best_score


def test_an_optimizer_without_the_two_modes_is_an_error(tmp_path):
    runner = TinyRunner(callbacks=[ScheduleFree()])

    with pytest.raises(CallbackError, match="no optimizer has train"):
        runner.train()
