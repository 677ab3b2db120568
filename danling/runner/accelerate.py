"""The loop: epochs, batches, steps, evaluation; it fires hooks and has no feature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from danling.errors import DataError, RunError
from danling.runner import state
from danling.runner.batches import open_feed
from danling.runner.evaluation import evaluate_splits, evaluation_mode, predict_split
from danling.runner.loop import LoopRunner
from danling.runner.progress import OpenBatch
from danling.runner.resume import resume
from danling.runner.steps import forward, predict, read_output, sample_count

__all__ = ["AccelerateRunner"]


class AccelerateRunner(LoopRunner):
    """Trains, evaluates and predicts with PyTorch on Accelerate; callbacks do everything else.

    Pass the parts in, or subclass and build them in `__init__` after `super().__init__(config)`.
    Override
    `train_step`, `evaluate_step` or `predict_step` for anything that is not
    `criterion(model(input), target)`.

    Args:
        config: The configuration; `danling.config.settings` lists the well-known keys.
        model: A module; a batch that is a mapping is passed to it as keywords.
        criterion: A function of (output, target) that gives a scalar loss.
        optimizer: An optimizer, or several by name.
        scheduler: A scheduler, or several by the names of their optimizers.
        datasets: Datasets by split. `train` is shuffled, the others are not.
        dataloaders: Iterables of batches by split, for data that comes in batches.
        metrics: By name, a function of (output, target) or an object with `update`, `compute` and
            `reset`.
        callbacks: Callbacks besides the default ones; one of the same name takes a default one's
            place.
        default_callbacks: Whether there are default ones: without any callback nothing at all is
            written.
        resume: `"auto"`, `"latest"`, `"best"`, a path or False; in place of `config.resume`.

    Raises:
        ConfigError: A value in the configuration is wrong.
        CallbackError: Something in `callbacks` is not a callback, or two have one name.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.randn(32, 1))
        >>> model = nn.Linear(4, 1)
        >>> runner = AccelerateRunner(
        ...     {"seed": 0, "max_epochs": 2}, model=model, criterion=nn.MSELoss(),
        ...     optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        ...     datasets={"train": data, "val": data}, default_callbacks=False,
        ... )
        >>> runner.train()
        >>> [list(result) for result in runner.results]
        [['epoch', 'global_step', 'train', 'val'], ['epoch', 'global_step', 'train', 'val']]
    """

    def train(self) -> None:
        """Train until `max_epochs` or `max_steps`, or until somebody stops it.

        Raises:
            ConfigError: Neither limit is set.
        """
        self._check_limits()
        with self.world.call("train()"), nullcontext() if self.in_run else self:
            self._train()

    def _train(self) -> None:
        for _ in self.epochs():
            for batch in self.batches("train"):
                self.step(self.train_step(batch))
                self._evaluate_if_due()
            self._evaluate_if_due()

    def epochs(self) -> Iterator[int]:
        """Yield 0, 1, ... until a limit is reached; the hooks of an epoch fire around each.

        Raises:
            RunError: No run is open.
            ConfigError: Neither limit is set.
        """
        self._require_run()
        self._check_limits()
        return self._epochs()

    def _epochs(self) -> Iterator[int]:
        self._require_run()
        token = self._start_training()
        while not self.is_ending:
            self._start_epoch()
            yield self.epoch
            if self._epochs_token is not token:
                raise RunError("these epochs are over: ask runner.epochs() for new ones")
            self._end_epoch()
        self._end_training()

    def batches(self, split: str = "train") -> Iterator[Any]:
        """Yield the batches of the epoch, on the device; the hooks of a batch fire around each.

        Raises:
            RunError: No epoch is open.
            DataError: There is no such split.
        """
        self._require_epoch()
        return self._batches(split)

    def _batches(self, split: str) -> Iterator[Any]:
        self._require_epoch()
        self._settle()
        counters, heard = self.counters, self.callbacks.heard
        feed, length = open_feed(self, split)
        self._restore_rng()  # last of all: making an iterator may draw
        self._batches_token = token = object()
        for batch, window in feed:
            self._batch = OpenBatch(batch, window)
            if not self.optimization.direct:
                self.optimization.synchronise(self.model, window.closes)
            if "on_batch_start" in heard:
                self.callbacks("on_batch_start", self, batch)
            try:
                yield batch
            except GeneratorExit:  # a `break`: the next call closes what it leaves open
                if self._batches_token is token:
                    self._left = True
                raise
            if self._batches_token is not token:
                raise RunError(
                    "these batches are of an epoch that is over: ask runner.batches() for new ones"
                )
            self._end_batch()
            if "on_checkpoint" in heard or self._deferred:
                self._pass_safe_point()
            if window.closes and self._is_cut() and counters.batch_index != length:
                return
        if counters.batch_index == 0:
            raise DataError(f"the split {split!r} has no batches: there is nothing to train on")
        self._exhausted = True

    def step(self, output: Any, optimizer: str | None = None) -> None:
        """Backward, and at the end of an accumulation window the step of the optimizer.

        Args:
            output: Of the train step: a scalar loss, a mapping with `"loss"`, or an object with
                `.loss`.
            optimizer: Which optimizer, where there are several; each of their steps counts in
                `global_step`.

        Raises:
            MetricError: There is no loss in the output, or it is not a scalar tensor.
            RunError: There is no batch in hand, or no optimizer.
        """
        batch = self._require_batch()
        window, optimization = batch.window, self.optimization
        name = optimization.choose(optimizer)
        loss, metrics, samples = read_output(output)
        optimization.backward(loss if window.size == 1 else loss / window.size, name)
        batch.output = output
        if samples is None:
            samples = sample_count(batch.batch) or 1
        kept = loss.detach()  # on CUDA a copy, because a CUDA graph reuses its place
        self._meter.add("train/loss", kept.clone() if kept.is_cuda else kept, samples)
        for key, value in metrics.items():
            self._meter.add(f"train/{key}", value, samples)
        self._accumulated = not window.closes
        if window.closes:
            self._take_step(name, batch)

    def _take_step(self, name: str, batch: OpenBatch) -> None:
        hooks, optimization, counters = self.callbacks, self.optimization, self.counters
        batch.stepped = False  # it may be by another optimizer
        optimization.open(name, batch.window.rescale)
        if "on_before_step" in hooks.heard:
            hooks("on_before_step", self)
        optimization.step()
        counters.global_step += 1
        self.is_log_step |= counters.global_step % self._log_interval == 0
        if "on_step" in hooks.heard:
            hooks("on_step", self)
        if optimization.used_norm is not None:
            self._meter.add("optim/grad_norm", optimization.used_norm)
        optimization.zero_grad()
        batch.stepped = True

    # What a model does with a batch: override these

    def train_step(self, batch: Any) -> Any:
        """Forward and loss: `criterion(model(input), target)`; for a mapping `model(**batch)`."""
        metrics = self.metrics_of(self.evaluating or "train") if self.metrics else {}
        return forward(self.model, self.criterion, batch, metrics)

    def evaluate_step(self, batch: Any) -> Any:
        """The same for evaluation; metrics are updated for the split that is evaluated."""
        return forward(self.model, self.criterion, batch, self.metrics_of(self.evaluating or "val"))

    def predict_step(self, batch: Any) -> Any:
        """The model's output for a batch, with or without a target in it."""
        return predict(self.model, batch)

    # Evaluation

    def evaluate(self, *splits: str) -> dict[str, Any]:
        """Evaluate splits with the current weights, changing nothing of a training.

        Within a run the result becomes part of `results`; without one, no directory is claimed.

        Args:
            splits: Which; without any, all but `train` and `test`.

        Returns:
            `{"loss": 0.04, "accuracy": 0.98}` for one split, `{split: result}` for several.

        Raises:
            DataError: There is no such split, or it is empty.
        """
        with self.world.call("evaluate()"):
            self.close_step()
            before = self._busy
            if self._epochs_token is not None:
                self._busy = "in the middle of an evaluation"
            try:
                results = evaluate_splits(self, splits)
                if self._batches_token is not None:
                    self._add_evaluation(results)
            finally:
                self._busy = before
        return results[splits[0]] if len(splits) == 1 else results

    def predict(self, split: str = "test") -> Any:
        """The outputs of a split, each sample once and in order, on the CPU.

        Returns:
            One tensor where the outputs are tensors, else the list of the outputs of all batches.

        Raises:
            DataError: There is no such split.
        """
        with self.world.call("predict()"):
            self.prepare()
            with evaluation_mode(self.model):
                return predict_split(self, split)

    @property
    def grad_norm(self) -> Tensor:
        """Norm of all gradients of this step, before clipping; computed on first use."""
        return self.optimization.grad_norm

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint holds (of a sharded model, its parts); all must call it."""
        with self.world.call("state_dict()"):
            return state.take(self)

    def save_checkpoint(self, *names: str) -> Path:
        """Commit a checkpoint under the given names, or as `latest`; a collective.

        It is on the disk when this returns, in `on_checkpoint` and in a loop of your own after
        `step()`. Elsewhere in a training it is saved at the next safe point, and `on_save` tells.

        Raises:
            RunError: The run has no directory.
            CheckpointError: It could not be written; what was there before is intact.
        """
        with self.world.call("save_checkpoint()"):
            return state.save(self, names or ("latest",))

    def load_checkpoint(self, path: str | Path, *, strict: bool = True) -> None:
        """Take weights, optimizer, counters and all other state of a checkpoint file.

        Raises:
            CheckpointError: The file is damaged, or does not fit.
            ResumeError: It cannot be continued exactly, and `strict` is set.
        """
        with self.world.call("load_checkpoint()"):
            state.load(self, Path(path), strict=strict)

    @classmethod
    def from_checkpoint(cls, path: str | Path, **parts: Any) -> Self:
        """A runner with configuration and state of a checkpoint, for a new run or evaluation."""
        return state.build(cls, Path(path), parts)

    def _open(self) -> None:
        super()._open()
        resume(self)

    def _restore_rng(self) -> None:
        if self.pending_rng is not None:
            state.restore_rng(self)
