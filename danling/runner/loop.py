"""What is open in a training: the training, an epoch, a batch; and how each of them ends."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from danling.errors import ConfigError, MetricError, RunError, did_you_mean
from danling.metrics.metric import reset
from danling.runner.logbook import LogbookRunner
from danling.runner.progress import OpenBatch
from danling.seed import seed_everything
from danling.triggers import Every, Moment

__all__ = ["LoopRunner"]


class LoopRunner(LogbookRunner):
    """The state of the loop: `AccelerateRunner` drives it; a loop left early is closed here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pending_rng: dict[str, Any] | None = None  # of a checkpoint, until the first batch
        self.foreign_state: dict[str, Any] = {}  # of callbacks that only the checkpoint has
        self.given: dict[str, Any] | None = None  # to the optimizers and schedulers when made
        self._epochs_token: object | None = None  # of the valid iterator, in an open training
        self._batches_token: object | None = None  # likewise, while an epoch is open
        self._batch: OpenBatch | None = None
        self._exhausted = False  # every batch of the epoch was used
        self._left = False  # a `break` ended the batches
        self._at_safe_point = False
        self._leaving = False  # the training ends by a `break`
        self._busy: str | None = None  # where it is, on the way to a safe point
        self._deferred: dict[tuple[str, ...], Callable[[], object]] = {}  # saves, until there
        self._accumulated = False  # the open window has gradients
        self._evaluated: dict[str, dict[str, float]] = {}  # of the epoch that ends
        self._within: dict[str, Any] | None = None  # the last result within the open epoch
        self.last_evaluation = Moment()
        self._log_interval, self._poll_interval = 50, 10
        self._max_epochs = self._max_steps = math.inf
        self._evaluate_every: Every | None = None

    # The run

    def _open(self) -> None:
        config = self.config
        self._log_interval, self._poll_interval = config.log_interval, config.poll_interval
        self._max_epochs = math.inf if config.max_epochs is None else config.max_epochs
        self._max_steps = math.inf if config.max_steps is None else config.max_steps
        every = config.evaluate_every
        self._evaluate_every = None if every is None else Every(every)
        self.prepare()
        super()._open()

    def _finish(self) -> None:
        self._end_training()

    def _unwind(self, error: BaseException | None) -> None:
        self._busy = "while the run failed" if error and self._epochs_token is not None else None
        self._epochs_token = self._batches_token = self._batch = self._planned = None
        for names in self._deferred:
            self.logger.warning("%s was not saved: the run ended before a safe point", names[0])
        super()._unwind(error)
        self._busy, self._deferred = None, {}

    # The training

    def _check_limits(self) -> None:
        if self.config.max_epochs is None and self.config.max_steps is None:
            raise ConfigError(
                "nothing says when training ends: set max_epochs or max_steps in the configuration"
            )

    @property
    def is_ending(self) -> bool:
        """Whether the training ends at this point: a limit is reached or a stop was asked for."""
        return self._leaving or self._is_cut() or self.counters.epoch >= self._max_epochs

    def _is_cut(self) -> bool:
        """Whether the training ends even within an epoch."""
        return self.stop_reason is not None or self.counters.global_step >= self._max_steps

    def _check_monitor(self) -> None:
        split = self.monitor.partition("/")[0]
        if split not in ("train", *self.splits):
            known = [f"{known}/loss" for known in ("train", *self.evaluation_splits)]
            raise MetricError(
                f"the monitor {self.monitor!r} is of no split: {did_you_mean(self.monitor, known)}"
            )

    def _start_training(self) -> object:
        self._check_limits()
        self._check_monitor()
        self._end_training()
        self._epochs_token = token = object()
        self.optimization.discard()  # what an exception left behind
        self._accumulated = self._at_safe_point = self.is_log_step = False
        if self.model is not None and not self.model.training:
            self.model.train()  # else modules in evaluation mode are there on purpose: frozen
        if self.rank > 0 and self.global_step == self.batch_index == 0:
            seed_everything(int(self.config.seed or 0), self.rank)  # each its own dropout
        self._planned = self.total_steps
        self.callbacks("on_train_start", self)
        self.clock.start()
        self.agree()  # on what was asked for until now: a stop, the time
        if self.is_ending:
            limit = f"epoch {self.epoch}, global step {self.global_step} is the limit of this run"
            self.logger.warning("nothing to do: %s", self.stop_reason or limit)
        return token

    def _end_training(self) -> None:
        """Close what is open, innermost first, and fire the hooks of its end."""
        if self._epochs_token is None:
            return
        if self._batches_token is not None:  # left by a `break`: the last chance to save
            self._leaving = True
            self._at_safe_point |= self.counters.global_step > 0
            self._end_epoch(cut=True)
            self._leaving = False
        if self._meter or self.distributed:  # what other processes have is not known here
            self._log_window()
        self._epochs_token = None
        self.clock.stop()
        self.callbacks("on_train_end", self)

    # The epoch

    def _start_epoch(self) -> None:
        self._batches_token = object()
        self._exhausted = self._left = self.epoch_complete = False
        self._evaluated, self._busy = {}, None
        self._within = self.latest_result if self.batch_index else None
        self._planned = self.total_steps
        if self.counters.batch_index == 0:  # else the run is resumed within it
            self._meter.start_epoch()
            reset(self.metrics_of("train"))
            self.callbacks("on_epoch_start", self)

    def _end_epoch(self, *, cut: bool = False) -> None:
        """End the open epoch; one that was cut counts as not completed."""
        self._settle()
        self._busy = "at the end of an epoch"
        self.epoch_complete = self._exhausted or not (cut or self._is_cut())
        self._batches_token = None
        if self.epoch_complete:
            self.counters.epoch += 1
            self.counters.batch_index = 0
            self.optimization.end_epoch()
            if self._within is not None and self._within["global_step"] == self.global_step:
                self._within["epoch"] = self.epoch  # an evaluation at its last step is its own
        self._add_result(self._epoch_result(), scored=self.epoch_complete)
        self.callbacks("on_epoch_end", self)
        self.agree()
        self._busy, self._evaluated = None, {}
        if self.epoch_complete:
            self.callbacks("on_checkpoint", self)
        self._save_deferred()

    def _epoch_result(self) -> dict[str, Any]:
        train = self._training_result()
        result: dict[str, Any] = {"epoch": self.epoch, "global_step": self.global_step}
        return result | ({"train": train} if train else {}) | self._evaluated

    # Evaluation within a training

    @abstractmethod
    def evaluate(self, *splits: str) -> dict[str, Any]:
        """Evaluate splits; what drives the loop says how."""

    def _evaluate_if_due(self) -> None:
        """Evaluate when `evaluate_every` says so; the end of an epoch counts it as completed."""
        every = self._evaluate_every
        if every is None or (every.unit == "epochs" and not self._exhausted):
            return
        if not self.evaluation_splits:
            return
        now = self.now()
        if self._exhausted:
            now = replace(now, epoch=now.epoch + 1)
        elif self._batch is None or not self._batch.stepped:
            return
        if every.is_due(now, self.last_evaluation):
            self.last_evaluation = now
            self.evaluate()

    def _add_evaluation(self, results: Mapping[str, dict[str, float]]) -> None:
        """Keep results for the epoch that ends, or as a result of their own within one."""
        self.evaluations += 1
        if self._exhausted or self._left:
            self._evaluated |= results
        else:
            self._add_result(
                {"epoch": self.epoch, "global_step": self.global_step, **results}, scored=True
            )
            self._within = self.latest_result
        metrics = {
            f"{split}/{name}": value
            for split, result in results.items()
            for name, value in result.items()
        }
        self.callbacks("on_log", self, metrics)
        self.agree()

    def _add_result(self, result: dict[str, Any], *, scored: bool) -> None:
        self.history.add(result, scored=scored)
        is_news = self.monitor.partition("/")[0] in result
        if scored and is_news and self.latest_score is not None:
            self.optimization.end_evaluation(self.latest_score)

    # The batch

    def _require_run(self) -> None:
        if not self.in_run:
            raise RunError("epochs() needs an open run: write `with runner:` around it")

    def _require_epoch(self) -> None:
        if self._batches_token is None:
            raise RunError(
                "batches() needs an open epoch: write `for epoch in runner.epochs():` around it"
            )

    def _require_batch(self) -> OpenBatch:
        if self._batch is None:
            raise RunError("step() needs a batch in hand: call it in the body of runner.batches()")
        return self._batch

    def _end_batch(self) -> None:
        """Close the batch in hand; evaluation within it closes it early, before it starts."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        counters, hooks = self.counters, self.callbacks
        counters.batch_index += 1
        if "on_batch_end" in hooks.heard:
            self._busy = "in the middle of a step"
            hooks("on_batch_end", self, batch.batch, batch.output)
            self._busy = None
        if batch.stepped:
            self._at_safe_point = True
            if self.is_log_step:
                self._log_window()
                self.is_log_step = False
            if counters.global_step % self._poll_interval == 0:
                self.agree()
        elif batch.window.closes:
            self._drop_window()

    def _pass_safe_point(self) -> None:
        """Fire `on_checkpoint` for the step that was taken, after the evaluation due at it."""
        if self._at_safe_point:
            self._at_safe_point = False
            if "on_checkpoint" in self.callbacks.heard:
                self.callbacks("on_checkpoint", self)
            if self._deferred:
                self._save_deferred()

    @property
    def unsafe(self) -> str | None:
        """Why a run could not go on exactly from here; None at a safe point."""
        if self._accumulated:
            return "in the middle of an accumulation window"
        if self.is_log_step or (self._batch is not None and not self._batch.stepped):
            return "in the middle of a step"
        return self._busy or ("at the end of an epoch" if self._evaluated else None)

    def close_step(self) -> None:
        """Close the batch in hand early, if its step was taken: in the body of a loop."""
        if self._batch is not None and self._batch.stepped:
            self._end_batch()

    def defers(self, names: tuple[str, ...], save: Callable[[], object]) -> bool:
        """Save at the next safe point, once, if one will come."""
        if is_open := self._epochs_token is not None:
            self._deferred[names] = save
        return is_open

    def _save_deferred(self) -> None:
        deferred, self._deferred = self._deferred, {}
        for save in deferred.values():
            save()

    def _settle(self) -> None:
        """Close the batch that a `break` left open."""
        if self._batch is not None and not self._batch.window.closes:
            self._drop_window()
        self._end_batch()
        self._pass_safe_point()

    def _drop_window(self) -> None:
        """Forget the gradients of a window that will not be stepped."""
        if self._accumulated:
            self.logger.warning(
                "an accumulation window ended without a step: its gradients are dropped"
            )
            self.optimization.discard()
            self._accumulated = False
