from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from danling.callbacks import GradientClipping, LambdaCallback
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner


def wrong(value: Any) -> Any:
    """A value that a type checker would refuse."""
    return value


class TestContract(CallbackContract):
    changes_training = True

    def make(self):
        return GradientClipping(threshold=0.1)


class TestContractOfAdaptiveClipping(CallbackContract):
    changes_training = True

    def make(self):
        return GradientClipping("adaptive", 0.01)


def trained(*callbacks, **config) -> torch.Tensor:
    runner = TinyRunner({"max_epochs": 1, **config}, callbacks=callbacks)
    runner.train()
    return runner.model.weight.detach()


def by_torch(clip) -> LambdaCallback:
    return LambdaCallback(on_before_step=lambda runner: clip(list(runner.model.parameters())))


@pytest.mark.parametrize(
    ("callback", "clip"),
    [
        (GradientClipping("norm", 0.2), lambda parameters: clip_grad_norm_(parameters, 0.2)),
        (
            GradientClipping("norm", 0.2, norm_type=1.0),
            lambda parameters: clip_grad_norm_(parameters, 0.2, norm_type=1.0),
        ),
        (
            GradientClipping("norm", 0.05, norm_type=float("inf")),
            lambda parameters: clip_grad_norm_(parameters, 0.05, norm_type=float("inf")),
        ),
        (GradientClipping("value", 0.02), lambda parameters: clip_grad_value_(parameters, 0.02)),
    ],
)
def test_it_clips_as_torch_does(callback, clip):
    clipped = trained(callback)

    assert torch.equal(clipped, trained(by_torch(clip)))
    assert not torch.equal(clipped, trained())


def test_it_clips_as_the_configuration_does():
    assert torch.equal(trained(GradientClipping(threshold=0.2)), trained(max_grad_norm=0.2))


@pytest.mark.parametrize("kind", ["norm", "value", "adaptive"])
def test_the_norm_that_is_logged_is_the_one_before_clipping(kind):
    norms: list[list[torch.Tensor]] = [[], []]
    for kept, callbacks in ((norms[0], []), (norms[1], [GradientClipping(kind, 1e-3)])):
        runner = TinyRunner(
            {"max_steps": 1},
            callbacks=[
                *callbacks,
                LambdaCallback(on_step=lambda runner, kept=kept: kept.append(runner.grad_norm)),
            ],
        )
        runner.train()

    assert torch.equal(norms[0][0], norms[1][0])


def test_adaptive_clipping_bounds_each_row_by_its_weights():
    seen: list[tuple[torch.Tensor, ...]] = []

    def before(runner):
        seen.append((runner.model.weight.detach().clone(), runner.model.weight.grad.clone()))

    def after(runner):
        seen[-1] += (runner.model.weight.grad.clone(),)

    first = LambdaCallback(name="first", on_before_step=before)
    last = LambdaCallback(name="last", on_step=after)
    trained(first, GradientClipping("adaptive", 0.8), last)

    clipped = 0
    for weight, gradient, result in seen:
        for row, raw, new in zip(weight, gradient, result, strict=True):
            largest = 0.8 * max(row.norm().item(), 1e-3)
            if raw.norm() <= largest:
                assert torch.equal(raw, new)
            else:
                clipped += 1
                assert new.norm().item() == pytest.approx(largest, rel=1e-5)
                assert torch.allclose(new / new.norm(), raw / raw.norm(), atol=1e-6)
    assert 0 < clipped < 12


@pytest.mark.parametrize("key", ["max_grad_norm", "max_grad_value"])
def test_clipping_twice_is_refused(key):
    with pytest.raises(CallbackError, match=rf"{key}=1.0"):
        trained(GradientClipping(), **{key: 1.0})


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="did you mean 'adaptive'"):
        GradientClipping(wrong("adaptiv"))
    with pytest.raises(CallbackError, match="must be positive"):
        GradientClipping(threshold=0.0)
    with pytest.raises(CallbackError, match="must be positive"):
        GradientClipping(norm_type=float("nan"))
