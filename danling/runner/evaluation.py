"""Evaluation and prediction: no gradients, nothing drawn from training's randomness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from danling.data.splits import check_samples
from danling.distributed.sharding import in_step, is_partial
from danling.errors import DataError
from danling.metrics.averages import Averages, reduce_totals
from danling.metrics.metric import compute, reset
from danling.runner.steps import read_output, sample_count
from danling.seed import isolated_rng

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner

__all__ = ["evaluate_split", "evaluate_splits", "evaluation_mode", "predict_split"]


@contextmanager
def evaluation_mode(model: nn.Module | None) -> Iterator[None]:
    """Evaluation mode without gradients; random streams and modes of modules are put back."""
    modes = [] if model is None else [(module, module.training) for module in model.modules()]
    with isolated_rng(), torch.no_grad(), without_collectives(model):
        if model is not None:
            model.eval()
        try:
            yield
        finally:
            if model is not None:
                model.train(modes[0][1])  # what a module does besides, as merging its adapters
            for module, mode in modes:
                module.training = mode


@contextmanager
def without_collectives(model: Any) -> Iterator[None]:
    """Let each process evaluate as many batches as it has: buffers are those of rank 0 until then.

    The forward of a `DistributedDataParallel` broadcasts them, and waits for all processes.
    """
    model = getattr(model, "_orig_mod", model)
    if is_partial(model):
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    before, model.require_forward_param_sync = model.require_forward_param_sync, False
    if model.broadcast_buffers:
        for buffer in model.modules_buffers:
            dist.broadcast(buffer, group=model.process_group, group_src=0)
    try:
        yield
    finally:
        model.require_forward_param_sync = before


def evaluate_splits(runner: AccelerateRunner, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The results of splits, by default of all but `train` and `test`."""
    runner.prepare()
    names = names or runner.evaluation_splits
    if not names:
        known = runner.splits
        raise DataError(f"no split to evaluate: without names it skips some of {known}")
    with evaluation_mode(runner.model):
        return {split: evaluate_split(runner, split) for split in names}


def evaluate_split(runner: AccelerateRunner, split: str) -> dict[str, float]:
    """Means over the samples of a split, on the host, over all processes."""
    hooks, loader, averages = runner.callbacks, runner.loader(split, evaluating=True), Averages()
    with runner.logging_to(averages, split):
        metrics = runner.metrics_of(split)
        reset(metrics)
        check_samples(runner.world, loader)
        hooks("on_evaluate_start", runner, split)
        for batch in in_step(runner, loader.iterate(0)):
            hooks("on_evaluate_batch_start", runner, batch)
            output = runner.evaluate_step(batch)
            loss, values, samples = read_output(output)
            count = samples if samples is not None else sample_count(batch) or 1
            averages.add(f"{split}/loss", loss.detach().clone(), count)
            for name, value in values.items():
                averages.add(f"{split}/{name}", value, count)
            hooks("on_evaluate_batch_end", runner, batch, output)
    totals = reduce_totals(averages.take(), runner.world.gather)
    if not totals:
        raise DataError(f"the split {split!r} has no batches: there is nothing to evaluate")
    result = {tag.removeprefix(f"{split}/"): total.mean for tag, total in totals.items()}
    result |= compute(metrics, runner.world)
    hooks("on_evaluate_end", runner, split, result)
    return result


def predict_split(runner: AccelerateRunner, split: str) -> Any:
    """The outputs of a split, once for each sample and in order."""
    hooks, loader = runner.callbacks, runner.loader(split, evaluating=True)
    check_samples(runner.world, loader)
    hooks("on_predict_start", runner, split)
    outputs: list[tuple[int, Any]] = []
    for index, batch in enumerate(in_step(runner, loader.iterate(0))):
        output = runner.predict_step(batch)
        hooks("on_predict_batch_end", runner, batch, output)
        outputs.append((loader.positions(index)[0], to_host(output)))
    hooks("on_predict_end", runner, split)
    gathered = [pair for part in runner.world.gather(outputs) for pair in part]
    ordered = [output for _, output in sorted(gathered, key=itemgetter(0))]
    return torch.cat(ordered) if are_alike(ordered) else ordered


def are_alike(outputs: list[Any]) -> bool:
    """Whether outputs are tensors that differ in their number of samples alone."""
    if not outputs or not all(isinstance(output, Tensor) and output.ndim for output in outputs):
        return False
    return len({output.shape[1:] for output in outputs}) == 1


def to_host(output: Any) -> Any:
    """Copy the tensors of an output to the CPU."""
    if isinstance(output, Tensor):
        return output.detach().cpu()
    if isinstance(output, Mapping):
        return {key: to_host(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        return [to_host(value) for value in output]
    return output
