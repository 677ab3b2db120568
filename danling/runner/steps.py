"""What a step returns and what a batch holds: loss, metrics and number of samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from danling.errors import DataError, MetricError, RunError
from danling.metrics.metric import RESERVED, measure

__all__ = ["Output", "forward", "predict", "read_output", "sample_count"]


Output = tuple[Tensor, Mapping[str, Any], Tensor | int | None]
"""What a train or evaluate step returned, taken apart: loss, metrics, number of samples."""

_NOTHING: Mapping[str, Any] = {}


def read_output(output: Any) -> Output:
    """Take apart a scalar loss, a mapping with `"loss"`, or an object with `.loss`.

    Raises:
        MetricError: There is no loss in it, or the loss is not a scalar tensor.
    """
    if isinstance(output, Tensor):
        return scalar(output) if output.ndim else output, _NOTHING, None
    if isinstance(output, Mapping):
        if output.get("loss") is None:
            keys = ", ".join(repr(key) for key in output)
            raise MetricError(
                f"the step returned a mapping without a 'loss' (it has {keys or 'nothing'})"
            )
        metrics = {
            name: value.detach().clone() if isinstance(value, Tensor) else value  # no alias
            for name, value in output.items()
            if name not in RESERVED and is_scalar(value)
        }
        return scalar(output["loss"]), metrics, count_of(output.get("n"))
    loss = getattr(output, "loss", None)
    if loss is None:
        raise MetricError(
            f"the step returned {type(output).__name__}: return a scalar loss, a mapping "
            "with 'loss', or an object with a .loss"
        )
    return scalar(loss), _NOTHING, None


def scalar(loss: Any) -> Tensor:
    """The loss, if it is a tensor of one element."""
    if isinstance(loss, Tensor) and loss.ndim == 0:
        return loss
    if not isinstance(loss, Tensor):
        raise MetricError(
            f"the loss is a {type(loss).__name__}, not a tensor: keep it a tensor, without .item()"
        )
    if loss.numel() != 1:
        raise MetricError(
            f"the loss has shape {tuple(loss.shape)}: reduce it to a scalar, as with .mean()"
        )
    return loss.reshape(())


def count_of(samples: Any) -> Tensor | int | None:
    """The `"n"` of a step: on its device if it is there, so that nothing waits for it."""
    if samples is None:
        return None
    if not is_scalar(samples):
        raise MetricError(f"'n' is the number of samples, not a {type(samples).__name__}")
    return samples.detach() if isinstance(samples, Tensor) else int(samples)


def is_scalar(value: Any) -> bool:
    """Whether a value of a step's output can be averaged."""
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)


def sample_count(batch: Any) -> int:
    """How many samples a batch holds: the size 0 of the first tensor in it that has one."""
    if isinstance(batch, (list, tuple)):
        parts: Iterable[Any] = batch
        if batch and isinstance(batch[0], Tensor) and batch[0].ndim and batch[0].size(0):
            return batch[0].size(0)  # so it mostly is, and every step asks
    elif isinstance(batch, Tensor):
        return batch.size(0) if batch.ndim else 0
    else:
        parts = batch.values() if isinstance(batch, Mapping) else ()
    for part in parts:
        if count := sample_count(part):
            return count
    return 0


def no_pair(batch: Any) -> DataError:
    """What is raised for a batch that is not (input, target): it needs an own `train_step`."""
    size = f" of {len(batch)}" if isinstance(batch, (list, tuple)) else ""
    return DataError(
        f"the batch is a {type(batch).__name__}{size}, not (input, target) and not a mapping: "
        "override train_step and evaluate_step"
    )


def forward(model: Any, criterion: Any, batch: Any, metrics: Mapping[str, Any]) -> Any:
    """The default step: forward, loss and metrics of a batch."""
    if model is None:
        raise no_model()
    if isinstance(batch, (list, tuple)) or not isinstance(batch, Mapping):
        if not isinstance(batch, (list, tuple)) or len(batch) != 2:
            raise no_pair(batch)
        input, target = batch
        output = model(input)
        if criterion is None:
            raise MetricError("there is no criterion: pass `criterion=` or override train_step")
        loss = criterion(output, target)
        return {"loss": loss} | measure(metrics, output, target) if metrics else loss
    result = model(**batch)
    if not metrics:
        return result
    loss, _, _ = read_output(result)
    return {"loss": loss} | measure(metrics, logits_of(result), batch.get("labels"))


def no_model() -> RunError:
    """What is raised where there is none."""
    return RunError("there is no model: pass `model=` to the runner or override its steps")


def logits_of(result: Any) -> Any:
    """The output proper of a model that returns an object or a mapping."""
    if isinstance(result, Mapping):
        return result.get("logits", result)
    return getattr(result, "logits", result)


def predict(model: Any, batch: Any) -> Any:
    """The output of a model for a batch, with or without a target in it."""
    if model is None:
        raise no_model()
    if isinstance(batch, Mapping):
        return logits_of(model(**batch))
    return model(batch[0] if isinstance(batch, (list, tuple)) else batch)
