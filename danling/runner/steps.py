"""The output of a step and the content of a batch: loss, metrics and number of samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple, NoReturn

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from danling.data.loader import Loader
from danling.errors import DataError, MetricError, RunError
from danling.metrics.metric import RESERVED, measure
from danling.optimization.closures import Evaluation

__all__ = [
    "Output",
    "Read",
    "SampleCounter",
    "evaluation",
    "forward",
    "forward_with_output",
    "predict",
    "read_evaluation",
    "read_output",
    "sample_count",
    "samples_read",
]


Output = tuple[Tensor, Mapping[str, Any], Tensor | int | None]
"""The output of a train or evaluate step, taken apart: loss, metrics, number of samples."""

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
        return scalar(output["loss"]), scalars_of(output), count_of(output.get("n"))
    loss = getattr(output, "loss", None)
    if loss is None:
        raise MetricError(
            f"the step returned {type(output).__name__}: return a scalar loss, a mapping "
            "with 'loss', or an object with a .loss"
        )
    return scalar(loss), _NOTHING, None


def read_evaluation(output: Any) -> tuple[dict[str, Any], Tensor | int | None]:
    """Take apart what an evaluate step returned: values by name, and the number of samples.

    It may be what `read_output` takes, a mapping without a loss, or None: there are no values then.

    Raises:
        MetricError: The output is nothing of these.

    Example:
        >>> read_evaluation({"bleu": 0.25, "n": 4}), read_evaluation(None)
        (({'bleu': 0.25}, 4), ({}, None))
    """
    if type(output) is dict and type(loss := output.get("loss")) is Tensor and not loss.ndim:
        found: dict[str, Any] = {"loss": (loss.detach() if loss.requires_grad else loss).clone()}
        if len(output) == 1 + ("output" in output):  # as the default step returns it
            return found, None
        return found | scalars_of(output), count_of(output.get("n"))
    if output is None:
        return {}, None
    if isinstance(output, Mapping) and output.get("loss") is None:
        return scalars_of(output), count_of(output.get("n"))
    loss, values, samples = read_output(output)
    return {"loss": loss.detach().clone(), **values}, samples


def scalars_of(output: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics in the output of a step."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value  # no alias
        for name, value in output.items()
        if name not in RESERVED and is_scalar(value)
    }


def evaluation(closure: Callable[[], Any], samples: int) -> Evaluation:
    """Evaluate a batch for an optimizer that does so again.

    Args:
        closure: The function that gives the output of the train step.
        samples: The number of its samples, unless the output tells.

    Raises:
        RunError: The batch was skipped.
        MetricError: There is no loss in the output.
    """
    output = closure()
    if output is None:
        raise RunError(
            "a closure returned None: a batch of an optimizer that evaluates again cannot be "
            "skipped; return the loss"
        )
    loss, metrics, told = read_output(output)
    return Evaluation(output, loss, metrics, samples if told is None else told)


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


class SampleCounter:
    """Counts the samples of batches that nobody else knows the number of.

    Where a batch contradicts itself, this says so once: means over such batches may be wrong.
    """

    def __init__(self) -> None:
        self._is_warned = False

    def __call__(self, batch: Any, logger: logging.Logger) -> int:
        """The number of samples of a batch, and at least 1."""
        if size := shared_size(batch):
            return size
        counts = sample_counts(batch)
        if counts is None:
            return 1
        if len(counts) != 1 and not self._is_warned:
            self._is_warned = True
            logger.warning(
                "nobody knows how many samples a batch holds: it is a %s whose parts say %s; means "
                'over batches may be wrong until the step returns the number as "n": '
                '{"loss": loss, "n": samples}',
                type(batch).__name__,
                " or ".join(map(str, sorted(counts))) or "different numbers",
            )
        return sample_count(batch) or 1


class Read(NamedTuple):
    """The samples of the batches of an epoch on this process, where the loader makes them.

    Attributes:
        size: The samples of every batch but the last.
        last: The index of the last batch.
        rest: The samples of the last batch.

    Example:
        >>> Read(4, 2, 3).of(1), Read(4, 2, 3).of(2)
        (4, 3)
    """

    size: int
    last: int
    rest: int

    def of(self, index: int) -> int:
        """The samples of a batch of the epoch."""
        return self.size if index < self.last else self.rest


def samples_read(loader: Loader, length: int | None) -> Read | None:
    """The samples that a loader reads for its batches; None where the user makes the batches.

    Args:
        loader: A loader whose epoch has begun.
        length: The number of batches of the epoch on this process.
    """
    if loader.batch_size is None or loader.kind in ("iterable", "stateful") or not length:
        return None
    return Read(loader.batch_size, length - 1, len(loader.positions(length - 1)))


def shared_size(batch: Any) -> int:
    """The size 0 that the tensors of a tuple or a mapping share; 0 where it is not as simple."""
    kind = type(batch)
    if (kind is tuple or kind is list) and len(batch) == 2:  # as nearly all are, in every step
        first, second = batch
        if type(first) is Tensor and type(second) is Tensor and first.ndim and second.ndim:
            size = int(first.shape[0])
            return size if second.shape[0] == size else 0
    if kind is not dict and not isinstance(batch, (list, tuple)):
        return 0
    parts = batch.values() if kind is dict else batch
    sizes = {part.shape[0] if type(part) is Tensor and part.ndim else 0 for part in parts}
    return sizes.pop() if len(sizes) == 1 else 0


def sample_count(batch: Any) -> int:
    """The number of samples of a batch, as far as it says so; 0 where it does not.

    Of numbers that contradict each other, this is the size 0 of the first tensor.
    """
    counts = sample_counts(batch)
    if counts is None:
        return 0
    if len(counts) == 1:
        return next(iter(counts))
    return first_size(batch) or max(counts, default=0)


def sample_counts(batch: Any) -> frozenset[int] | None:
    """The numbers of samples that a batch may hold; None where nothing in it tells.

    It is what an object says of itself (`batch_size`, or `num_graphs` as in PyTorch Geometric), the
    length of a list of samples, and the size 0 of a tensor. Parts side by side must agree; in a
    list inside a batch each element is a sample, or holds all samples.

    Example:
        >>> import torch
        >>> images = [torch.zeros(3, 8, 8), torch.zeros(3, 6, 9)]
        >>> sample_counts((images, [{"boxes": torch.zeros(5, 4)}, {"boxes": torch.zeros(7, 4)}]))
        frozenset({2})
        >>> sorted(sample_counts({"edges": torch.zeros(2, 9), "labels": torch.zeros(4)}))
        []
    """
    own = said_of_itself(batch)
    if own is not None:
        return frozenset({own})
    if isinstance(batch, Tensor):
        return frozenset({batch.size(0)}) if batch.ndim else None
    if isinstance(batch, Mapping):
        return agreed(map(part_counts, batch.values()))
    if not isinstance(batch, (list, tuple)):
        return None
    samples = isinstance(batch, list) and batch and not isinstance(batch[0], (Tensor, list, tuple))
    if samples and said_of_itself(batch[0]) is None:
        return frozenset({len(batch)})
    return agreed(map(part_counts, batch))


def part_counts(part: Any) -> frozenset[int] | None:
    """The numbers of samples that a part of a batch may hold."""
    if not isinstance(part, (list, tuple)) or said_of_itself(part) is not None:
        return sample_counts(part)
    length = frozenset({len(part)})
    if not all(isinstance(element, Tensor) for element in part):
        return length
    return length | (agreed(map(sample_counts, part)) or frozenset())


def agreed(counts: Iterable[frozenset[int] | None]) -> frozenset[int] | None:
    """The numbers that all parts have in common, of those that tell any."""
    telling = [count for count in counts if count is not None]
    return frozenset.intersection(*telling) if telling else None


def said_of_itself(batch: Any) -> int | None:
    """The number of samples that an object gives as an attribute."""
    if isinstance(batch, Tensor) or type(batch) in (dict, list, tuple):
        return None
    if isinstance(batch, PackedSequence):
        return int(batch.batch_sizes[0])
    for name in ("num_graphs", "batch_size"):
        said = getattr(batch, name, None)
        said = said[0] if isinstance(said, tuple) and said else said  # as of a TensorDict
        if isinstance(said, int) and not isinstance(said, bool):
            return said
    return None


def first_size(batch: Any) -> int:
    """The size 0 of the first tensor in a batch that has one."""
    if isinstance(batch, Tensor):
        return batch.size(0) if batch.ndim else 0
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if not isinstance(batch, (list, tuple, Mapping)):
        return 0
    return next((size for part in parts if (size := first_size(part))), 0)


def no_pair(batch: Any) -> DataError:
    """The error for a batch that is not (input, target): it needs an own `train_step`."""
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
    return own_values(result) | measure(metrics, logits_of(result), batch.get("labels"))


def forward_with_output(
    model: Any, criterion: Any, batch: Any, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """The default step of an evaluation: as `forward`, with the output of the model beside it."""
    if model is None:
        raise no_model()
    if type(batch) is not tuple and isinstance(batch, Mapping):
        result, target = model(**batch), batch.get("labels")
        values, output = own_values(result), logits_of(result)
    elif not isinstance(batch, (list, tuple)) or len(batch) != 2:
        raise no_pair(batch)
    elif criterion is None:
        raise MetricError("there is no criterion: pass `criterion=` or override evaluate_step")
    else:
        input, target = batch
        output = model(input)
        values = {"loss": criterion(output, target)}
    values["output"] = output
    return values | measure(metrics, output, target) if metrics else values


def own_values(result: Any) -> dict[str, Any]:
    """The loss of what a model returned, the metrics beside it, and the number of samples."""
    loss, values, samples = read_output(result)
    return {**values, "loss": loss} | ({} if samples is None else {"n": samples})


def no_model() -> RunError:
    """The error where there is no model."""
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


def no_batch() -> NoReturn:
    """Refuse a step outside of the loop's body."""
    raise RunError("step() needs a batch in hand: call it in the body of runner.batches()")


def loss_tags(optimizers: Collection[str]) -> dict[str, str]:
    """The tag of the loss by optimizer: each of several that step apart has a loss of its own.

    Example:
        >>> loss_tags([""]), loss_tags(["critic", "actor"])["actor"]
        ({'': 'train/loss'}, 'train/actor/loss')
    """
    if len(optimizers) < 2:
        return dict.fromkeys(optimizers, "train/loss")
    return {name: f"train/{name}/loss" for name in optimizers}
