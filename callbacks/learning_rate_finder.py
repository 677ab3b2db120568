"""A learning rate to begin with, found by trying."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from danling.callback import Callback, Priority
from danling.errors import CallbackError, did_you_mean
from danling.optimization.trial import Undo
from danling.runner.steps import read_output
from danling.seed import isolated_rng

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["LearningRateFinder"]

_SMOOTHING = 0.98


class LearningRateFinder(Callback):
    """Try rising learning rates before the training, and suggest the one where the loss falls most.

    The method is that of "Cyclical Learning Rates for Training Neural Networks" (Smith, 2017), with
    the smoothing and the suggestion of Lightning's callback. Model, optimizer and random streams
    are put back afterwards. A training that is resumed, or that has begun, is left alone. What
    was found is logged as a table, and as the figure `learning_rate_finder` where matplotlib is
    installed.

    It costs `num_training_steps` steps at the start, and nothing per step after that. The
    suggestion is its state.

    Args:
        min_lr: The first learning rate.
        max_lr: The last one.
        num_training_steps: The number of learning rates that are tried.
        mode: Whether they rise by a factor (`"exponential"`) or by a difference (`"linear"`).
        early_stop_threshold: The multiple of the best loss at which the search ends; None: it goes
            on.
        update_attr: Whether the training uses what was suggested.

    Attributes:
        results: The learning rates and smoothed losses, as `{"lr": [...], "loss": [...]}`.

    Raises:
        CallbackError: An argument cannot be meant; or several optimizers or processes train.

    Example:
        >>> finder = LearningRateFinder()
        >>> finder.results = {"lr": [0.01, 0.02, 0.03, 0.04], "loss": [9.0, 8.9, 5.0, 4.9]}
        >>> finder.suggestion(skip_begin=0, skip_end=0)
        0.02
    """

    name = "learning_rate_finder"
    priority = Priority.VERY_HIGH

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1.0,
        num_training_steps: int = 100,
        mode: Literal["exponential", "linear"] = "exponential",
        early_stop_threshold: float | None = 4.0,
        *,
        update_attr: bool = True,
    ) -> None:
        if not 0 < min_lr < max_lr:
            raise CallbackError(
                f"LearningRateFinder(min_lr={min_lr!r}, max_lr={max_lr!r}): 0 < min_lr < max_lr"
            )
        if type(num_training_steps) is not int or num_training_steps < 3:
            raise CallbackError(
                f"LearningRateFinder(num_training_steps={num_training_steps!r}): at least 3"
            )
        if mode not in ("exponential", "linear"):
            near = did_you_mean(str(mode), ["exponential", "linear"])
            raise CallbackError(f"LearningRateFinder(mode={mode!r}): {near}")
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.num_training_steps = num_training_steps
        self.mode = mode
        self.early_stop_threshold = early_stop_threshold
        self.update_attr = update_attr
        self.results: dict[str, list[float]] = {"lr": [], "loss": []}

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """The learning rate at which the loss falls most steeply; None where too few were tried.

        Args:
            skip_begin: How many of the first ones are left out.
            skip_end: How many of the last ones are left out.
        """
        end = len(self.results["lr"]) - skip_end
        pairs = [
            (rate, loss)
            for rate, loss in zip(self.results["lr"], self.results["loss"], strict=True)
        ][skip_begin : max(end, 0)]
        pairs = [(rate, loss) for rate, loss in pairs if math.isfinite(loss)]
        if len(pairs) < 2:
            return None
        rates, losses = (torch.tensor(values) for values in zip(*pairs, strict=True))
        (slopes,) = torch.gradient(losses, spacing=[rates])
        return pairs[int(torch.argmin(slopes))][0]

    def on_train_start(self, runner: Runner) -> None:
        """Search, where the training is at its beginning."""
        if runner.global_step > 0 or runner.should_stop:
            return
        if len(runner.optimizers) != 1 or runner.distributed:
            raise CallbackError("LearningRateFinder needs one optimizer, and one process")
        if runner.optimization.needs_closure:
            kind = type(runner.optimizers[0]).__name__
            raise CallbackError(f"LearningRateFinder tries plain steps; {kind} needs a closure")
        modules = [m for m in (runner.model, runner.criterion) if isinstance(m, nn.Module)]
        undo, logged = Undo(modules, runner.optimizers), runner.logbook.state_dict()
        with isolated_rng():
            try:
                self._search(runner)
            finally:
                undo()
                runner.logbook.load_state_dict(logged)
        found = self.suggestion()
        self._tell(runner, found)
        if found is not None and self.update_attr:
            _use(runner, found)

    def state_dict(self) -> dict[str, Any]:
        """What was tried."""
        return {key: list(values) for key, values in self.results.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.results = {key: list(values) for key, values in state.items()}

    def rate(self, index: int) -> float:
        """The learning rate that is tried as number `index`, from 0."""
        share = (index + 1) / self.num_training_steps
        if index == 0:
            return self.min_lr
        if self.mode == "linear":
            return self.min_lr + share * (self.max_lr - self.min_lr)
        return float(self.min_lr * (self.max_lr / self.min_lr) ** share)

    def _search(self, runner: Runner) -> None:
        self.results = {"lr": [], "loss": []}
        (optimizer,) = runner.optimizers
        average, best = 0.0, math.inf
        for index, batch in enumerate(islice(_batches(runner), self.num_training_steps)):
            rate = self.rate(index)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, _, _ = read_output(runner.train_step(batch))
            runner.accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss.item()
            # one more than the losses so far, as in Lightning, so that both suggest the same rate
            smoothed = average / (1 - _SMOOTHING ** (index + 2))
            self.results["lr"].append(rate)
            self.results["loss"].append(smoothed)
            limit = self.early_stop_threshold
            if limit is not None and index > 0 and not smoothed <= limit * best:
                break
            best = min(best, smoothed)

    def _tell(self, runner: Runner, found: float | None) -> None:
        tried = list(zip(self.results["lr"], self.results["loss"], strict=True))
        rows = [f"  {rate:.3g}  {loss:.4f}" for rate, loss in tried[:: max(len(tried) // 10, 1)]]
        table = "\n".join(["  rate  smoothed loss", *rows])
        if found is None:
            runner.logger.warning("%s: too few losses to suggest a rate\n%s", self.name, table)
            return
        runner.logger.info("%s: the loss falls most at %.3g\n%s", self.name, found, table)
        try:
            figure = import_module("matplotlib.figure").Figure()
        except ImportError:
            return
        axes = figure.subplots()
        axes.plot(self.results["lr"], self.results["loss"])
        axes.axvline(found, linestyle="--")
        axes.set(xlabel="learning rate", ylabel="smoothed loss")
        axes.set_xscale("log" if self.mode == "exponential" else "linear")
        runner.log_figure("learning_rate_finder", figure)


def _batches(runner: Runner) -> Iterator[Any]:
    """The batches of training, from its first on and as often as there are any."""
    while True:
        batch = None
        for batch in runner.loader("train").iterate(0):
            yield batch
        if batch is None:
            return


def _use(runner: Runner, rate: float) -> None:
    """Let the training begin with a learning rate, and its schedules start from it."""
    for group in runner.optimizers[0].param_groups:
        group["lr"] = rate
        if "initial_lr" in group:
            group["initial_lr"] = rate
    for scheduler in runner.optimization.schedulers.values():
        if getattr(scheduler, "base_lrs", None):
            scheduler.base_lrs = [rate] * len(scheduler.base_lrs)
