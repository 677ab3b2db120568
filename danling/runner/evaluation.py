"""Evaluation and prediction: no gradients, nothing drawn from training's randomness."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from danling.data.loader import Loader
from danling.data.splits import Splits
from danling.distributed.sharding import in_lockstep
from danling.distributed.world import World
from danling.errors import DataError, MetricError, did_you_mean
from danling.metrics.history import split_of
from danling.metrics.logbook import Logbook
from danling.optimization.optimization import Optimization
from danling.runner.callbacks import Callbacks
from danling.runner.progress import OpenEpoch
from danling.runner.steps import SampleCounter, read_evaluation, samples_read
from danling.seed import isolated_rng
from danling.triggers import Every, Moment

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner
    from danling.runner.progress import OpenTraining

__all__ = ["evaluate_split", "evaluation_mode", "joined", "predict_split", "to_host"]


class Evaluating(Protocol):
    """The attributes of a runner that an evaluation uses."""

    callbacks: Callbacks
    count_samples: SampleCounter
    data: Splits
    device: Any
    logbook: Logbook
    logger: logging.Logger
    optimization: Optimization
    world: World

    def loader(self, split: str, *, evaluating: bool = False) -> Loader:
        """The loader of a split."""

    def evaluate_step(self, batch: Any) -> Any:
        """Run the model on a batch of an evaluation."""

    def predict_step(self, batch: Any) -> Any:
        """Run the model on a batch of a prediction."""


def evaluate_split(runner: Evaluating, split: str) -> dict[str, float]:
    """The means and metrics of a split on the host, over all processes; its hooks fire.

    Raises:
        DataError: There is no such split, or it is empty.
    """
    hooks, active, logbook = runner.callbacks, runner.callbacks.active, runner.logbook
    loader = runner.loader(split, evaluating=True)
    with logbook.evaluation(split) as averages:
        runner.data.check_samples(loader)
        hooks("on_evaluate_start", runner, split)
        batches = _evaluation_batches(runner, loader)
        read = samples_read(loader, loader.length)
        is_known = True
        index = -1
        for index, batch in enumerate(batches):
            if "on_evaluate_batch_start" in active:
                hooks("on_evaluate_batch_start", runner, batch)
            output = runner.evaluate_step(batch)
            values, samples = read_evaluation(output)
            if samples is not None:
                count = samples
            elif read is not None:
                count = read.of(index)
            else:
                known = loader.samples_of(index) if is_known else None
                is_known = known is not None  # else the user made the batches
                count = known or runner.count_samples(batch, runner.logger)
            for name, value in values.items():
                averages.add(f"{split}/{name}", value, count)
            if "on_evaluate_batch_end" in active:
                hooks("on_evaluate_batch_end", runner, batch, output)
        result = logbook.evaluation_result(split, averages, batches=index + 1)
        if result is None:
            raise DataError(f"the split {split!r} has no batches: there is nothing to evaluate")
        hooks("on_evaluate_end", runner, split, result)
        result |= logbook.means_of(split, averages)  # what the hook has logged
    return result


def predict_split(runner: Evaluating, split: str) -> Any:
    """The outputs of a split, each sample once and in order, on the CPU; its hooks fire.

    Raises:
        DataError: There is no such split, or it is empty.
    """
    hooks, loader = runner.callbacks, runner.loader(split, evaluating=True)
    runner.data.check_samples(loader)
    hooks("on_predict_start", runner, split)
    outputs: list[tuple[int, Any]] = []
    for index, batch in enumerate(_evaluation_batches(runner, loader)):
        output = runner.predict_step(batch)
        hooks("on_predict_batch_end", runner, batch, output)
        outputs.append((loader.positions(index)[0], to_host(output)))
    parts = runner.world.gather(outputs)
    if not any(parts):
        raise DataError(f"the split {split!r} has no batches: there is nothing to predict")
    hooks("on_predict_end", runner, split)
    return joined(parts)


def _evaluation_batches(runner: Evaluating, loader: Loader) -> Iterator[Any]:
    """The batches of an evaluation, as many on each process as the model needs."""
    batches = loader.iterate(0)
    if not runner.optimization.model_state.gathers:
        return batches
    return in_lockstep(runner.world, batches, runner.predict_step, runner.device)


@contextmanager
def evaluation_mode(model: nn.Module | None, *others: Any, partial: bool = False) -> Iterator[None]:
    """Evaluation mode without gradients; random streams and modes of modules are put back.

    Args:
        model: The model.
        *others: Modules besides it, as the criterion; what is no module is left out.
        partial: Whether a process holds only a part of it.
    """
    wholes = [module for module in (model, *others) if isinstance(module, nn.Module)]
    modes = [[(part, part.training) for part in module.modules()] for module in wholes]
    with isolated_rng(), torch.no_grad(), without_collectives(model, partial):
        for module in wholes:
            module.eval()
        try:
            yield
        finally:
            for own in modes:
                put_modes_back(own)


def put_modes_back(modes: list[tuple[nn.Module, bool]]) -> None:
    """Let the parts of a module be in the modes that they were in, the whole of it first."""
    whole, mode = modes[0]
    whole.train(mode)  # what a module does besides, as merging its adapters
    for part, mode in modes:
        part.training = mode


@contextmanager
def without_collectives(model: Any, partial: bool) -> Iterator[None]:
    """Let each process evaluate as many batches as it has: buffers are those of rank 0 until then.

    The forward of a `DistributedDataParallel` broadcasts them, and waits for all processes.
    """
    if partial:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    parts = model.modules() if isinstance(model, nn.Module) else ()
    wrappers = [part for part in parts if isinstance(part, DistributedDataParallel)]
    before = [wrapper.require_forward_param_sync for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper.require_forward_param_sync = False
        for buffer in wrapper.modules_buffers if wrapper.broadcast_buffers else ():
            dist.broadcast(buffer, group=wrapper.process_group, group_src=0)
    try:
        yield
    finally:
        for wrapper, synchronises in zip(wrappers, before, strict=True):
            wrapper.require_forward_param_sync = synchronises


def joined(parts: list[list[tuple[int, Any]]]) -> Any:
    """The outputs of all processes in the order of the samples.

    Args:
        parts: The outputs of each process, each with the position of its first sample.

    Returns:
        One tensor where the outputs are tensors, else the list of the outputs of all batches.
    """
    pairs = [pair for part in parts for pair in part]
    ordered = [output for _, output in sorted(pairs, key=itemgetter(0))]
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


def evaluate_if_due(runner: AccelerateRunner) -> None:
    """Evaluate when `evaluate_every` says so; the end of an epoch counts it as completed.

    A training that `max_steps` or time ends is evaluated at its end, if it never was; when its
    time is up, what it has is saved before.
    """
    every, epoch = runner._evaluate_every, runner._epoch
    if every is None or epoch is None:
        return
    is_last = runner.counters.global_step >= runner._limits.max_steps
    if every.is_of_epochs and epoch.ended_by is None and not (is_last or runner.stopping.evaluates):
        return  # as after most steps
    timed = runner.stopping.evaluates and runner.should_stop
    never = (timed or is_last) and not runner.evaluations and runner.last_evaluation == Moment()
    if not runner.evaluation_splits or not evaluates_here(runner, every, epoch, timed, never):
        return
    now = runner.now()
    if epoch.ended_by == "last batch":
        now = replace(now, epoch=now.epoch + 1, fraction=0.0)
    if never or every.is_due(now, runner.last_evaluation):
        runner.last_evaluation = now
        runner.evaluate()
        if timed and runner._training is not None:
            runner._training.at_safe_point = True  # for the best, after what was saved before


def evaluates_here(
    runner: AccelerateRunner, every: Every, epoch: OpenEpoch, timed: bool, never: bool
) -> bool:
    """Whether this is a point at which a training evaluates: one at the last step is the epoch's.

    Args:
        runner: The runner.
        every: The period of evaluations.
        epoch: The epoch that is open.
        timed: Whether the time of the training is up.
        never: Whether it ends here, and nothing was evaluated.
    """
    if epoch.ended_by == "last batch":
        return True
    if epoch.ended_by is None and every.is_of_epochs and not never:
        return False
    if runner._batch is None:
        return timed and never
    return not timed and runner._batch.stepped and not epoch.is_last(runner.batch_index)


def evaluate_at_start(runner: AccelerateRunner, training: OpenTraining) -> None:
    """Evaluate before the first step, where it is asked for; a point that can be gone on from.

    It does not count as an evaluation of the training.
    """
    if not runner.config.evaluate_at_start or not runner.evaluation_splits or runner.results:
        return
    if runner.is_ending or runner.epoch or runner.global_step or runner.batch_index:
        return
    with runner.world.call("evaluate()"):
        training.busy = "in the middle of an evaluation"
        add_evaluation(runner, OpenEpoch({}), runner._evaluate(()))
        training.busy = None
    runner.evaluations = 0
    runner.callbacks("on_checkpoint", runner)
    runner._save_deferred(training)


def add_evaluation(
    runner: AccelerateRunner, epoch: OpenEpoch, results: Mapping[str, dict[str, float]]
) -> None:
    """Keep results for the epoch that ends, or as a result of their own within one."""
    runner.evaluations += 1
    if epoch.ended_by is not None:
        epoch.results |= results
    else:
        result = {"epoch": runner.epoch, "global_step": runner.global_step, **results}
        runner._add_result(result, scored=True)
        epoch.within = runner.latest_result
    metrics = {
        f"{split}/{name}": value
        for split, result in results.items()
        for name, value in result.items()
    }
    if runner.evaluations == 1 and runner.config.monitor is None and metrics:
        warn_of_no_score(runner, results, metrics)
    runner.callbacks("on_log", runner, metrics)
    runner.agree()


def warn_of_no_score(
    runner: AccelerateRunner, results: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
    """Say so where no result is the best, since the evaluation has no loss."""
    if split_of(runner.monitor, results) is not None and runner.monitor not in metrics:
        runner.logger.warning(
            "%s is not in the result, so that none is the best: set monitor to one of %s",
            runner.monitor,
            ", ".join(metrics),
        )


def warn_of_periods(runner: AccelerateRunner) -> None:
    """Say so where training ends before the first evaluation is due."""
    every, steps, total = runner._evaluate_every, runner.steps_per_epoch, runner.total_steps
    if every is None or every.unit != "epochs" or not runner.evaluation_splits:
        return
    if steps is None and not every.is_of_epochs:
        runner.logger.warning(
            "evaluate_every is %s, and nobody knows how long an epoch is: evaluations come at "
            "its end; limit_batches={'train': n} gives it a length",
            every,
        )
    if not steps or total is None or every.value * steps <= total:
        return
    end = " but the one at its end" if total >= runner._limits.max_steps else ""
    runner.logger.warning(
        "evaluate_every is %s, and training ends after %.3g epochs (%d steps, %d an epoch): "
        "there is no evaluation%s; a period in steps comes sooner",
        every,
        total / steps,
        total,
        steps,
        end,
    )


def check_monitor(runner: AccelerateRunner) -> None:
    if split_of(runner.monitor, ("train", *runner.splits)) is None:
        known = [f"{known}/loss" for known in ("train", *runner.evaluation_splits)]
        raise MetricError(
            f"the monitor {runner.monitor!r} is of no split: {did_you_mean(runner.monitor, known)}"
        )
    runner.optimization.check_monitors(("train", *runner.splits))
