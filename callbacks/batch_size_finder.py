"""The largest batch that fits into memory, found by trying."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from danling.callback import Callback, Priority
from danling.data.prepare import Placement
from danling.data.splits import Splits
from danling.errors import CallbackError, did_you_mean
from danling.optimization.trial import Undo
from danling.runner.steps import read_output
from danling.seed import isolated_rng

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["BatchSizeFinder"]

_MODES = ("power", "binsearch")


class _Trial(NamedTuple):
    """What came of one size."""

    batch_size: int
    fits: bool
    samples_per_second: float
    peak_memory: int
    """The bytes that the device had in use at most; 0 where the device does not tell."""


class BatchSizeFinder(Callback):
    """Try growing batches before the training, and tell the largest that fits into memory.

    The modes are those of Lightning's callback: `"power"` doubles the size until it does not fit,
    `"binsearch"` looks between the last two sizes as well. A size fits if the steps with it do not
    run out of memory; the data must have as many samples.

    What was found is logged as a table, and as the figure `batch_size_finder` where matplotlib is
    installed. The run is left as it was found, its batch size too: that belongs to the
    configuration that the run is named after. Put the size that was found into
    `config.dataloader`, or train with `max_epochs=0` to search alone.

    It costs the steps that are tried at the start, and nothing per step after that. The sizes, and
    whether they fit, are its state. A training that is resumed, or that has begun, is left alone.

    Args:
        mode: The way of the search, `"power"` or `"binsearch"`.
        steps_per_trial: The number of steps with each size.
        init_val: The first size.
        max_trials: The number of sizes that are tried at most.
        max_val: The largest size that is tried.
        margin: The share of the size found that is taken off it in the suggestion, as a reserve.

    Attributes:
        results: The trials, each with its size, whether it fits, its speed and its memory.

    Raises:
        CallbackError: An argument cannot be meant; or several optimizers or processes train; or not
            even the first size fits.

    Example:
        >>> finder = BatchSizeFinder(mode="binsearch", margin=0.05)
        >>> finder.results = [_Trial(64, True, 900.0, 0), _Trial(128, False, 0.0, 0)]
        >>> finder.suggestion()
        60
    """

    name = "batch_size_finder"
    priority = Priority.VERY_HIGH

    def __init__(
        self,
        mode: Literal["power", "binsearch"] = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        *,
        max_val: int = 8192,
        margin: float = 0.0,
    ) -> None:
        if mode not in _MODES:
            raise CallbackError(
                f"BatchSizeFinder(mode={mode!r}): {did_you_mean(str(mode), _MODES)}"
            )
        counts = {
            "steps_per_trial": steps_per_trial,
            "init_val": init_val,
            "max_trials": max_trials,
            "max_val": max_val,
        }
        for argument, value in counts.items():
            if type(value) is not int or value < 1:
                raise CallbackError(f"BatchSizeFinder({argument}={value!r}): at least 1")
        if not 0 <= margin < 1:
            raise CallbackError(f"BatchSizeFinder(margin={margin!r}): from 0 to less than 1")
        self.mode = mode
        self.steps_per_trial = steps_per_trial
        self.init_val = init_val
        self.max_trials = max_trials
        self.max_val = max_val
        self.margin = margin
        self.results: list[_Trial] = []

    def suggestion(self) -> int | None:
        """The largest size that fits, less the margin; None before a search."""
        fitting = [trial.batch_size for trial in self.results if trial.fits]
        return max(int(max(fitting) * (1 - self.margin)), 1) if fitting else None

    def on_train_start(self, runner: Runner) -> None:
        """Search, where the training is at its beginning."""
        if runner.global_step > 0:
            return
        if len(runner.optimizers) != 1 or runner.distributed:
            raise CallbackError("BatchSizeFinder needs one optimizer, and one process")
        if runner.optimization.needs_closure:
            kind = type(runner.optimizers[0]).__name__
            raise CallbackError(f"BatchSizeFinder tries plain steps; {kind} needs a closure")
        if "train" not in runner.datasets:
            raise CallbackError("BatchSizeFinder needs runner.datasets['train'] to make batches of")
        self.results = []
        undo = Undo(modules_of(runner), runner.optimizers)
        logged = runner.logbook.state_dict()
        with isolated_rng():
            try:
                for size in self._sizes():
                    self.results.append(self._try(runner, size))
            finally:
                undo()
                runner.logbook.load_state_dict(logged)
                clear_device_cache(garbage_collection=True)
        self._tell(runner)

    def state_dict(self) -> dict[str, Any]:
        """The sizes and whether they fit; what was measured is of this machine."""
        return {"results": [[trial.batch_size, trial.fits] for trial in self.results]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.results = [_Trial(size, fits, 0.0, 0) for size, fits in state["results"]]

    # The search

    def _sizes(self) -> Iterator[int]:
        """The sizes to try, given the results so far."""
        size, fits, fails = min(self.init_val, self.max_val), 0, self.max_val + 1
        for _ in range(self.max_trials):
            yield size
            if self.results[-1].fits:
                fits = size
            else:
                fails = size
            doubling = fails > self.max_val
            if fits + 1 >= fails or fits == self.max_val or (self.mode == "power" and not doubling):
                return
            size = min(fits * 2, self.max_val) if doubling else (fits + fails) // 2

    def _try(self, runner: Runner, size: int) -> _Trial:
        """Train some steps with a size, from wherever the weights are by now."""
        cuda = runner.device.type == "cuda"
        if cuda:
            clear_device_cache(garbage_collection=True)
            torch.cuda.reset_peak_memory_stats(runner.device)
        batch = batch_of(runner, size)
        if batch is None:
            return _Trial(size, False, 0.0, 0)
        begin = time.perf_counter()
        try:
            for _ in range(self.steps_per_trial):
                step(runner, batch)
            if cuda:
                torch.cuda.synchronize(runner.device)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            for optimizer in runner.optimizers:
                optimizer.zero_grad()
            return _Trial(size, False, 0.0, 0)
        seconds = max(time.perf_counter() - begin, 1e-9)
        peak = torch.cuda.max_memory_allocated(runner.device) if cuda else 0
        return _Trial(size, True, self.steps_per_trial * size / seconds, peak)

    def _tell(self, runner: Runner) -> None:
        found, rows = self.suggestion(), sorted(self.results)
        lines = [
            f"  {trial.batch_size:>6}  {trial.samples_per_second:>9.4g}/s"
            f"  {trial.peak_memory / 1e6:>9.1f} MB"
            if trial.fits
            else f"  {trial.batch_size:>6}  does not fit"
            for trial in rows
        ]
        table = "\n".join(["  size    samples        memory", *lines])
        if found is None:
            raise CallbackError(f"BatchSizeFinder: not even {self.init_val} samples fit\n{table}")
        runner.logger.info(
            "%s: %d fits; the training uses %s\n%s", self.name, found, runner.batch_size, table
        )
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        fitting = [trial for trial in rows if trial.fits]
        figure = Figure()
        axes = figure.subplots()
        sizes = [trial.batch_size for trial in fitting]
        axes.plot(sizes, [trial.samples_per_second for trial in fitting], marker="o")
        axes.axvline(found, linestyle="--")
        axes.set(xlabel="batch size", ylabel="samples per second", xscale="log")
        runner.log_figure("batch_size_finder", figure)


def step(runner: Runner, batch: Any) -> None:
    """Train a step with a batch."""
    loss, _, _ = read_output(runner.train_step(batch))
    runner.accelerator.backward(loss)
    for optimizer in runner.optimizers:
        optimizer.step()
        optimizer.zero_grad()


def batch_of(runner: Runner, size: int) -> Any:
    """The first batch of training with another number of samples; None if there are not as many."""
    config = runner.config.copy()
    own = {**config.dataloader.get("train", {}), "batch_size": size, "num_workers": 0}
    config.dataloader = {**config.dataloader, "train": own}
    data = Splits(config, runner.world, Placement(runner.device, runner.rank, runner.world_size))
    data.datasets = dict(runner.datasets)
    loader = data.loader("train")
    for batch in islice(loader.iterate(0), 1):
        if loader.samples_of(0) == size:
            return batch
    return None


def modules_of(runner: Runner) -> list[torch.nn.Module]:
    """The modules that a step may change."""
    parts = [runner.model, runner.criterion]
    return [part for part in parts if isinstance(part, torch.nn.Module)]
