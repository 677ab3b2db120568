"""The loop on Hugging Face Accelerate, in the order in which it is read.

`AccelerateRunner` is made, opened, trains, evaluates, saves and goes on. It fires hooks and has no
feature: features are callbacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from accelerate import Accelerator
from torch import Tensor, nn

from danling.callback import Callback
from danling.checkpoint.catalog import checked_names
from danling.checkpoint.reading import read_checkpoint, read_together
from danling.checkpoint.saving import Save
from danling.checkpoint.sharded.state import model_state_of
from danling.config import Config
from danling.config.settings import STATE_KEYS
from danling.data.loader import Loader
from danling.data.prepare import PerSplit, Placement
from danling.data.splits import Splits
from danling.distributed.launch import (
    environment_of_accelerate,
    forget_accelerate_state,
    join_after_restart,
    make_world,
)
from danling.distributed.sharding import check_engine
from danling.distributed.world import World
from danling.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    RunError,
)
from danling.metrics.averages import Averages, Reduction
from danling.metrics.history import split_of
from danling.metrics.logbook import Logbook
from danling.metrics.metric import check_mergeable, check_sections
from danling.optimization.checks import check_optimizers, check_schedulers
from danling.optimization.closures import MISSING
from danling.optimization.models import Models, as_models, begin_training, parts_of
from danling.optimization.movement import make_schedulers, read_schedules
from danling.optimization.optimization import Optimization
from danling.optimization.together import by_name
from danling.optimization.windows import Tally
from danling.run.directory import Scratch
from danling.runner.base import BaseRunner
from danling.runner.batches import (
    no_longer_in_use,
    nothing_to_train_on,
    step_with,
    windows_of,
)
from danling.runner.evaluation import (
    add_evaluation,
    check_monitor,
    evaluate_at_start,
    evaluate_if_due,
    evaluate_split,
    evaluation_mode,
    predict_split,
    warn_of_periods,
)
from danling.runner.habits import check_mappings, check_steps, tell_unread
from danling.runner.length import accum_steps_in, count_steps, moves_of_schedules, progress_of
from danling.runner.members import tell_what_is_saved, warn_of_lost, watch_members, with_names
from danling.runner.parts import (
    Assigned,
    OfData,
    Part,
    check_own_steps,
    optimization_class,
    parts_of_runner,
    saves_one_file,
    take_assigned,
)
from danling.runner.progress import (
    DISPLACED,
    OPEN,
    OpenBatch,
    OpenEpoch,
    OpenTraining,
    put_back_streams,
    set_streams_aside,
)
from danling.runner.resume import (
    file_of,
    restore,
    resume,
)
from danling.runner.state import Contents
from danling.runner.steps import (
    SampleCounter,
    forward,
    forward_with_output,
    loss_tags,
    no_batch,
    predict,
    read_output,
    shared_size,
)
from danling.runner.stopping import Limits
from danling.seed import Flags, ask_for_determinism, has_seeded, seed_everything
from danling.triggers import Every

__all__ = ["AccelerateRunner"]


class AccelerateRunner(BaseRunner):
    """Trains, evaluates and predicts with PyTorch on Accelerate; callbacks do everything else.

    Pass the parts in, or subclass and build them in `__init__` after `super().__init__(config)`.
    Override `train_step`, `evaluate_step` or `predict_step` for anything that is not
    `criterion(model(input), target)`.

    Args:
        config: The configuration; `danling.config.settings` lists the well-known keys.
        model: A module; a batch that is a mapping is passed to it as keywords. Several by name are
            each placed and wrapped, and `runner.model["critic"]` is called in `train_step`.
        criterion: A function of (output, target) that gives a scalar loss.
        optimizer: An optimizer; several by name step apart, and those in a list step together.
        scheduler: A scheduler, `(scheduler, "epoch")`, a `Schedule`, or the name of one; a list of
            them; several by the names of their optimizers.
        datasets: The datasets by split. `train` is shuffled, the others are not.
        dataloaders: Iterables of batches by split, for data that comes in batches.
        collate_fn: The function that makes a batch of a list of samples, or one by split.
        sampler: The iterable of the indices of `train`, or one by split.
        batch_sampler: The iterable of the lists of indices of `train`, or one by split.
        worker_init_fn: The function that each worker of a loader calls first, or one by split.
        metrics: Functions of (output, target), or objects with `update`, `compute` and
            `reset`, by name; under the name of a split, a mapping of the metrics of it alone.
        callbacks: The callbacks besides the default ones; one of the same name takes a default
            one's place.
        default_callbacks: Whether there are default ones: without any callback nothing at all is
            written.
        resume: `"auto"`, `"latest"`, `"best"`, a path or False; in place of `config.resume`.

    Raises:
        ConfigError: A value in the configuration, an optimizer or a scheduler is wrong.
        DataError: `datasets` or `dataloaders` is not a mapping of splits.
        MetricError: `metrics` is not a mapping.
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

    accelerator: Accelerator
    model: Any = Part()
    criterion: Any = Part()
    optimizer: Any = Part()
    scheduler: Any = Part()
    collate_fn: Any = OfData()
    sampler: Any = OfData()
    batch_sampler: Any = OfData()
    worker_init_fn: Any = OfData()
    not_saved: tuple[str, ...] = ()
    """Names of attributes that have a state and are in no checkpoint."""
    _warned_unread: frozenset[str] = frozenset()
    _training: OpenTraining | None
    _epoch: OpenEpoch | None
    _batch: OpenBatch | None
    _tallied: Tally | None
    _scratch: Scratch | None

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        model: nn.Module | Mapping[str, nn.Module] | None = None,
        criterion: Callable[..., Any] | None = None,
        optimizer: Any = None,
        scheduler: Any = None,
        datasets: Mapping[str, Any] | None = None,
        dataloaders: Mapping[str, Any] | None = None,
        collate_fn: PerSplit[Callable[[list[Any]], Any]] = None,
        sampler: PerSplit[Iterable[Any]] = None,
        batch_sampler: PerSplit[Iterable[Any]] = None,
        worker_init_fn: PerSplit[Callable[[int], Any]] = None,
        metrics: Mapping[str, Any] | None = None,
        callbacks: Iterable[Callback] = (),
        default_callbacks: bool = True,
        resume: str | Path | bool | None = None,
    ) -> None:
        check_mappings(datasets, dataloaders, metrics)
        check_optimizers(by_name(optimizer))
        check_schedulers(read_schedules(scheduler), by_name(optimizer))
        before = set(vars(self))  # a subclass may have set some already
        super().__init__(config, callbacks=callbacks, default_callbacks=default_callbacks)
        if resume is not None:
            self.config.resume = resume if isinstance(resume, bool) else str(resume)
        self._agree_on_seed(config)
        if self.distributed:
            _ = self.uuid  # agreed now, so that any process may read it alone
        self.model, self.criterion = as_models(model), criterion
        self.optimizer, self.scheduler = optimizer, scheduler
        self.data = Splits(
            self.config, self.world, Placement(self.device, self.rank, self.world_size)
        )
        self.datasets = dict(datasets or {})
        self.dataloaders = dict(dataloaders or {})
        self.collate_fn, self.worker_init_fn = collate_fn, worker_init_fn
        self.sampler, self.batch_sampler = sampler, batch_sampler
        self.logbook = Logbook(self.world, self.device)
        self.metrics = dict(metrics or {})
        self.optimization = Optimization(self.accelerator, {}, {})
        self._contents = Contents(
            self.config, self.world, self.accelerator, self.data, self.logbook
        )
        self._prepared = False
        self._training = self._epoch = self._batch = self._tallied = self._scratch = None
        self._places: dict[str, int] = {}  # batches of each split used in an epoch that was cut
        self._loaded_rng: dict[str, Any] | None = None  # set before the first batch
        self.count_samples = SampleCounter()
        self._log_interval, self._poll_interval = 50, 10
        self._limits = Limits()
        self._evaluate_every: Every | None = None
        self._registered: dict[str, Any] = {}
        self._loss_tags: dict[str, str] = {}
        self._assigned = Assigned()
        self._unprepared_model: Any = None
        self._modes_are_loaded = False  # the next training leaves the modes of modules alone
        self._own_names = frozenset(vars(self)) - before  # other attributes may be members

    # How it is made

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        check_steps(cls)

    def _make_world(self) -> World:
        join_after_restart()
        self.accelerator = self.make_accelerator()
        self.device = self.accelerator.device
        self.precision = str(self.accelerator.mixed_precision)
        self.distributed_type = str(self.accelerator.distributed_type.value)
        return make_world(self.accelerator)

    def make_accelerator(self) -> Accelerator:
        """Make the accelerator from `config.accelerate`; override it for plug-in objects."""
        options = dict(self.config.accelerate)
        options.pop("gradient_accumulation_steps", None)  # the runner counts real micro-batches
        forget_accelerate_state()
        try:
            with environment_of_accelerate():
                return Accelerator(**options)
        except TypeError as error:
            raise ConfigError(
                f"config.accelerate does not fit accelerate.Accelerator: {error}"
            ) from error

    def _agree_on_seed(self, given: Any) -> None:
        """Give all processes one seed: the one that is set, or the one that rank 0 drew.

        What `seed_everything(config)` has seeded with the same config is not seeded again.
        """
        set_streams_aside()
        if has_seeded(given):
            ask_for_determinism(self.config)
            self._flags = Flags()
            return
        drawn = seed_everything(self.config)
        self._flags = Flags()
        if self.distributed and self.config.drawn_seed:
            seed = self.world.broadcast(drawn)
            self.config.record_drawn_seed(seed)
            seed_everything(seed)

    def prepare(self) -> None:
        """Place and wrap model and optimizers; called when the run opens, and done once.

        Parts that were assigned since are taken up, at the beginning of an epoch if one is open.
        """
        self._flags.enter()
        if self._prepared:
            if self._training is None:
                take_assigned(self)
            return
        self.model = as_models(self.model)
        check_engine(self.accelerator, parts_of(self.model))
        optimizers, interval = by_name(self.optimizer), self.config.scheduler_interval
        check_optimizers(optimizers)
        self.scheduler = make_schedulers(
            self.scheduler, optimizers, partial(moves_of_schedules, self), interval
        )
        self.optimization = optimization_class(self)(
            self.accelerator,
            optimizers,
            by_name(self.scheduler),
            max_norm=self.config.max_grad_norm,
            max_value=self.config.max_grad_value,
            interval=interval,
        )
        check_sections(self.metrics, self.splits)
        if self.distributed:
            check_mergeable(self.metrics)
        self._unprepared_model = self.model
        self.model = self.optimization.prepare(self.model)
        self.optimization.model_state = model_state_of(
            self.model, self.unwrapped_model, whole=saves_one_file(self)
        )
        watch_members(self)
        self._loss_tags = loss_tags(optimizers)
        self._prepared = True
        self._assigned.take(parts_of_runner(self), self.epoch)

    def register_for_checkpointing(self, **objects: Any) -> None:
        """Save objects with every checkpoint under the given names, and restore them by name.

        Modules and objects that are attributes of the runner are saved without it, but for those
        that the class names in `not_saved`.

        Args:
            **objects: The objects, each with `state_dict()` and `load_state_dict()`.

        Raises:
            ConfigError: An object has no such methods, or its name is taken.

        Example:
            >>> runner.register_for_checkpointing(queue=queue)  # doctest: +SKIP
        """
        self._registered |= with_names(objects, self._registered)
        if self._prepared:
            watch_members(self)

    # What it has: model and optimizers, data and metrics

    @property
    def unwrapped_model(self) -> Any:
        """The model without what Accelerate and `torch.compile` wrapped around it."""
        if self.model is None:
            return None
        if isinstance(self.model, Models | Mapping):
            return as_models(self.model).plain
        model = (
            self.model if self.optimization.direct else self.accelerator.unwrap_model(self.model)
        )
        return getattr(model, "_orig_mod", model)

    @property
    def local_rank(self) -> int:
        """The rank of this process on its machine."""
        return int(self.accelerator.local_process_index)

    @property
    def grad_norm(self) -> Tensor:
        """The norm of all gradients of this step, before clipping; computed on first use.

        Raises:
            RunError: No step is open.
        """
        return self.optimization.grad_norm

    @property
    def gradients_are_readable(self) -> bool:
        """Whether `.grad` of the parameters can be read before a step: not under DeepSpeed."""
        return self.optimization.readable

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision as configured, for a forward outside the model."""
        return self.accelerator.autocast()  # type: ignore[no-any-return]  # Accelerate is not annotated

    @property
    def accum_steps(self) -> int:  # type: ignore[override]  # it is a constant of the base
        """The micro-batches of one optimizer step in this epoch."""
        return accum_steps_in(self, self.epoch)

    def accum_steps_in(self, epoch: int) -> int:
        """The micro-batches of one optimizer step in an epoch: a callback may have a schedule."""
        return accum_steps_in(self, epoch)

    @property
    def datasets(self) -> dict[str, Any]:
        """The datasets by split; what is assigned is used from the next epoch on."""
        return self.data.datasets

    @datasets.setter
    def datasets(self, datasets: Mapping[str, Any]) -> None:
        check_mappings(datasets=datasets)
        self.data.datasets = dict(datasets)

    @property
    def dataloaders(self) -> dict[str, Any]:
        """The iterables of batches by split; what is assigned is used from the next epoch on."""
        return self.data.dataloaders

    @dataloaders.setter
    def dataloaders(self, dataloaders: Mapping[str, Any]) -> None:
        check_mappings(dataloaders=dataloaders)
        self.data.dataloaders = dict(dataloaders)
        self.data.record_batch_size()

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics by name, of which each split has copies."""
        return self.logbook.metrics

    @metrics.setter
    def metrics(self, metrics: Mapping[str, Any]) -> None:
        check_mappings(metrics=metrics)
        self.logbook.metrics = dict(metrics)

    @property
    def splits(self) -> list[str]:
        """The splits that there is data for."""
        return self.data.names

    @property
    def evaluation_splits(self) -> list[str]:
        """The splits that a training evaluates: all but `train`, `test` and those limited to 0."""
        return self.data.evaluation_names

    def loader(self, split: str, *, evaluating: bool = False) -> Loader:
        """The loader of a split, as the loop iterates it; an evaluation has its own, in order.

        Raises:
            DataError: There is no such split.
        """
        return self.data.loader(split, evaluating=evaluating)

    def batches_of(self, split: str) -> int | None:
        """The number of batches of a split on this process; None where it is unknown."""
        if split == "train":
            return self.data.whole(split).length
        return self.loader(split, evaluating=True).length

    def metrics_of(self, split: str) -> dict[str, Any]:
        """The metrics of a split: each has its own copies, and so has an evaluation of `train`."""
        return self.logbook.metrics_of(split)

    @property
    def evaluating(self) -> str | None:
        """The split that is evaluated; None while nothing is."""
        return self.logbook.evaluating

    @property
    def batch_size(self) -> int | None:
        """The samples of a training batch of one process; None where several loaders make it."""
        return self.data.whole("train").batch_size if self.data.can_train else None

    # How long it trains

    @property
    def batches_per_epoch(self) -> int | None:
        """The batches of this epoch on this process; None where they are unknown."""
        if not self.data.can_train:
            return None
        epoch, loader = self._epoch, self.data.whole("train")
        if epoch is not None and epoch.loader is loader:
            return epoch.length
        return loader.batches_in(self.epoch)

    @property
    def steps_per_epoch(self) -> int | None:
        """The optimizer steps of this epoch; None where they are unknown."""
        batches = self.batches_per_epoch
        return None if batches is None else math.ceil(batches / self.accum_steps)

    @property
    def total_steps(self) -> int | None:
        """The optimizer steps of the whole training; None where its length is unknown.

        They are counted when an epoch begins: those that were taken, and those that are left.
        """
        training = self._training
        if training is None or (self._epoch is None and not training.failed):
            return count_steps(self)
        return training.total_steps

    @property
    def progress(self) -> float:
        """The share of the training that is done, from 0 to 1; NaN where its length is unknown.

        Where several optimizers step apart, it is the share of the batches.
        """
        return progress_of(self)

    @property
    def epoch_fraction(self) -> float:
        """The share of the open epoch that is done, less than 1; 0 where that is unknown."""
        epoch, batch, done = self._epoch, self._batch, self.counters.batch_index
        if epoch is None:
            return 0.0
        return epoch.fraction(done if batch is None or not batch.stepped else done + 1)

    @property
    def is_ending(self) -> bool:
        """Whether the training ends at this point: a limit is reached or a stop was asked for."""
        leaving = self._training is not None and self._training.is_leaving
        return leaving or self._is_cut() or self.counters.epoch >= self._limits.max_epochs

    def _is_cut(self) -> bool:
        """Whether the training ends even within an epoch."""
        return (
            self.stopping.reason is not None or self.counters.global_step >= self._limits.max_steps
        )

    # How the run opens and closes

    def _open(self) -> None:
        config = self.config
        self._log_interval, self._poll_interval = config.log_interval, config.poll_interval
        self._limits = Limits.of(config)
        every = config.evaluate_every
        if config.fast_dev_run:
            self._scratch, self._log_interval = Scratch(config, self.world), 1
            every = None if every is None else "1 epoch"
        self._evaluate_every = None if every is None else Every(every)
        self.data.record_batch_size()  # before the run has its identity
        self.prepare()
        self.optimization.configure(
            config.max_grad_norm,
            config.max_grad_value,
            config.scheduler_interval,
            partial(moves_of_schedules, self),
        )
        super()._open()
        take_assigned(self)  # callbacks may have given it some
        watch_members(self)
        warn_of_lost(self)
        resume(self)
        self.optimization.replicas.begin()

    def _finish(self) -> None:
        self._end_training()

    def _unwind(self, error: BaseException | None) -> None:
        self._places = self._places_now()  # where another train() goes on
        training, self._epoch, self._batch = self._training, None, None
        if training is not None:
            training.failed = True
            for names in training.deferred:
                self.logger.warning("%s was not saved: the run ended before a safe point", names[0])
        try:
            super()._unwind(error)
        finally:
            if self._scratch is not None:
                self._scratch.remove()
                self._scratch = None
        if training is not None:
            OPEN.discard(training)
        self._training = None

    # The loop

    def train(self) -> None:
        """Train until `max_epochs` or `max_steps`, or until somebody stops it.

            with runner:                                  on_setup
                for epoch in runner.epochs():             on_train_start, on_epoch_start
                    for batch in runner.batches():        on_fetch_start/end, on_batch_start
                        output = runner.train_step(batch)
                        runner.step(output)               on_before_step, on_step
                        evaluate, if it is due            on_evaluate_start ... on_evaluate_end
                                                          on_batch_end, on_checkpoint
                    evaluate, if it is due
                                                          on_epoch_end, on_checkpoint
                                                          on_train_end
                                                          on_teardown

        Raises:
            ConfigError: Neither limit is set.
        """
        Limits.of(self.config).check()
        if self.data.trains_without_data and is_default_step(self.train_step):
            raise self.data.no_data("train")
        with self.world.call("train()"), nullcontext() if self.in_run else self:
            warn_of_periods(self)
            check_own_steps(self, AccelerateRunner)
            needs_closure = self.optimization.needs_closure  # as torch.optim.LBFGS does
            for _ in self.epochs():
                for batch in self.batches("train"):
                    train_step = partial(self.train_step, batch)
                    self.step(closure=train_step) if needs_closure else self.step(train_step())
                    evaluate_if_due(self)
                evaluate_if_due(self)

    def epochs(self) -> Iterator[int]:
        """Yield 0, 1, ... until a limit is reached; the hooks of an epoch fire around each.

        Raises:
            RunError: No run is open.
            ConfigError: Neither limit is set.
        """
        self._require_run()
        Limits.of(self.config).check()
        return self._epochs()

    def _epochs(self) -> Iterator[int]:
        self._require_run()  # the run may have closed since `epochs()` was called
        self._end_training()
        training = self._open_training()
        self.callbacks("on_train_start", self)
        self._start_clock()
        evaluate_at_start(self, training)
        while not self.is_ending:
            self._open_epoch(training)
            if self.counters.batch_index == 0:  # else the run is resumed within it
                self.logbook.start_epoch()
                self.callbacks("on_epoch_start", self)
            yield self.epoch
            if self._training is not training:
                raise RunError("these epochs are over: ask runner.epochs() for new ones")
            self._complete_epoch()  # as in `_end_training`: a hook is four frames deep
            with self.logbook.ending() as averages:
                self.callbacks("on_epoch_end", self)
            self._add_to_result(averages)
            self._leave_epoch(training)
            if self.epoch_complete:
                self.callbacks("on_checkpoint", self)
            self._save_deferred(training)
        self._end_training()

    def batches(self, *splits: str, mode: str | None = None) -> Iterator[Any]:
        """Yield the batches of the epoch, on the device; the hooks of a batch fire around each.

        Several splits are read together, and a batch is a mapping of theirs by split. Each split
        has its own place in the epoch and in checkpoints.

        Args:
            splits: The splits; by default `train`, which may be a mapping of several loaders.
            mode: The order of several: `"min_size"` (the default) ends with the first that ends,
                `"max_size"` goes on to the last, with None for those that have ended,
                `"max_size_cycle"` lets these begin anew, and `"sequential"` gives the batches of
                one split after those of another. The words are those of Lightning's
                `CombinedLoader`.

        Raises:
            RunError: No epoch is open.
            DataError: There is no such split or mode.

        Example:
            >>> for batch in runner.batches("labelled", "unlabelled"):      # doctest: +SKIP
            ...     runner.step(consistency(batch["labelled"], batch["unlabelled"]))
        """
        _, epoch = self._require_epoch()
        if epoch.iterator is None:
            take_assigned(self)
        return self._batches(splits or ("train",), mode)

    def _batches(  # noqa: C901  # it is read in one piece
        self, splits: Sequence[str], mode: str | None
    ) -> Iterator[Any]:
        training, epoch = self._require_epoch()
        self._pass_safe_point(training)
        hooks, active, optimization = self.callbacks, self.callbacks.active, self.optimization
        epoch.iterator = iterator = object()
        for data, window in windows_of(self, splits, mode, epoch):
            self._batch = batch = OpenBatch(data, window)
            if not optimization.direct:
                optimization.synchronise(self.model, window.closes)
            if DISPLACED:  # another runner has seeded or drawn since
                put_back_streams(training)
            if "on_batch_start" in active:
                hooks("on_batch_start", self, data)
                put_back_streams(training)
            try:
                yield data
            except GeneratorExit:  # a `break`: the next call closes what it leaves open
                if epoch.iterator is iterator:
                    epoch.ended_by = "break"
                raise
            if epoch.iterator is not iterator:
                raise RunError(no_longer_in_use(splits, is_open=self._epoch is epoch))
            if self._batch is batch:  # else an evaluation has closed it
                self._batch = None
                self.counters.batch_index += 1
                if "on_batch_end" in active:
                    training.busy = "in the middle of a step"
                    hooks("on_batch_end", self, data, batch.output)
                    training.busy = None
                self._leave_batch(training, batch)
            if training.at_safe_point:
                training.at_safe_point = False
                if "on_checkpoint" in active:
                    hooks("on_checkpoint", self)
                if training.deferred:
                    self._save_deferred(training)
            if window.closes and self._is_cut() and epoch.place(self.batch_index) != epoch.length:
                return  # a limit or a stop ends the epoch before its last batch
        if epoch.place(self.batch_index) == 0:
            raise nothing_to_train_on(splits)
        epoch.ended_by = "last batch"

    def step(  # noqa: C901  # a call more in every step would be dear
        self,
        output: Any = MISSING,
        optimizer: str | None = None,
        *,
        closure: Callable[[], Any] | None = None,
    ) -> None:
        """Backward, and at the end of an accumulation window the step of the optimizer.

        A window is the mean over the batches that were not skipped, or over their samples with
        `accumulate="samples"`; `n` of a mapping is the number of samples. Where nothing is left of
        one, its step moves nothing, as one that was vetoed.

        Args:
            output: The train step's output: a scalar loss, a mapping with `"loss"`, or an object
                with `.loss`; None skips the batch.
            optimizer: The name of the optimizer, where there are several; each of their steps
                counts in `global_step`.
            closure: The function that gives the output, for an optimizer that evaluates the
                model itself, as `torch.optim.LBFGS`: `lambda: runner.train_step(batch)`. All
                batches of the window are evaluated each time.

        Raises:
            MetricError: There is no loss in the output, or it is not a scalar tensor.
            RunError: There is no batch in hand, or no optimizer.
        """
        batch = self._batch or no_batch()
        if closure is not None:
            step_with(self, batch, output, closure, optimizer)
            return
        window, optimization, hooks = batch.window, self.optimization, self.callbacks
        tally, add, name = window.tally, self.logbook.meter.add, optimization.choose(optimizer)
        batch.output, batch.stepped = output, False  # another optimizer may have stepped before
        if output is not None:
            loss, metrics, samples = read_output(output)
            samples = self._samples_in(batch.batch) if samples is None else samples
            if tally is None:
                optimization.backward(loss, name)
            else:
                tally.backward(loss, samples, window, name)
            kept, tag = loss.detach(), self._loss_tags[name]
            add(tag, kept.clone() if kept.is_cuda else kept, samples)  # CUDA graphs reuse memory
            for key, value in metrics.items():
                add(f"train/{key}", value, samples)
            batch.has_gradients = True
        elif tally is not None:
            tally.backward(None, 0, window, name)
        if not window.closes:
            return
        if tally is not None:
            tally.open(name, window)
        else:  # a window of this batch alone, which may have been skipped
            (optimization.open_empty if output is None else optimization.open)(name)
        if "on_before_step" in hooks.active:
            hooks("on_before_step", self)
        optimization.step()
        self.counters.global_step += 1
        self.is_log_step |= self.counters.global_step % self._log_interval == 0
        if "on_step" in hooks.active:
            hooks("on_step", self)
        if optimization.used_norm is not None:
            add("optim/grad_norm", optimization.used_norm)
        optimization.zero_grad()
        batch.stepped, batch.has_gradients = True, False
        if DISPLACED and self._training is not None:
            put_back_streams(self._training)

    def skip_step(self) -> None:
        """Veto the optimizer step of the open window: nothing moves, and its gradients are dropped.

        Weights, momentum, decay and schedule stay as they are. The step counts in `global_step`,
        with its hooks, as one that the gradient scaler skips: all periods and totals hold. With
        several processes any of them may call it before `step()`; in `on_before_step`, where all
        have the same gradients, all of them must.

        Raises:
            RunError: There is no batch in hand.

        Example:
            >>> class Guard(dl.Callback):                         # doctest: +SKIP
            ...     def on_before_step(self, runner):
            ...         if runner.grad_norm > 100:
            ...             runner.skip_step()
        """
        if self._batch is None or self._batch.stepped:
            raise RunError(
                "skip_step() vetoes the step of the window in hand, and none is open: call it in "
                "the body of runner.batches() before step(), or in on_before_step"
            )
        self.optimization.vetoed = True

    def _samples_in(self, batch: Any) -> int:
        """The samples of the batch in hand: as many as were read, or as it says itself."""
        epoch = self._epoch
        if epoch is None or epoch.loader is None:
            return shared_size(batch) or self.count_samples(batch, self.logger)
        index = epoch.place(self.counters.batch_index)
        read = epoch.read
        if read is not None:
            return read.size if index < read.last else read.rest  # every step asks
        return epoch.loader.samples_of(index) or self.count_samples(batch, self.logger)

    # What a model does with a batch: override these

    def train_step(self, batch: Any) -> Any:
        """Forward and loss: `criterion(model(input), target)`; for a mapping `model(**batch)`.

        Returns:
            A scalar loss, a mapping with `"loss"`, or an object with `.loss`.
        """
        metrics = self.metrics_of(self.evaluating or "train") if self.metrics else {}
        return forward(self.model, self.criterion, batch, metrics)

    def evaluate_step(self, batch: Any) -> Any:
        """Forward and loss in an evaluation; metrics are updated for the split that is evaluated.

        Returns:
            The output of a train step with `"output"` for hooks. One of your own may return
            a mapping without a loss, or None where all there is to know is in the metrics.
        """
        metrics = self.logbook.metrics_of(self.logbook.evaluating or "val")
        return forward_with_output(self.model, self.criterion, batch, metrics)

    def predict_step(self, batch: Any) -> Any:
        """The model's output for a batch, with or without a target in it."""
        return predict(self.model, batch)

    # Evaluation and prediction

    def evaluate(self, *splits: str) -> dict[str, Any]:
        """Evaluate splits with the current weights, changing nothing of a training.

        Within a run the result becomes part of `results`; without one, no directory is claimed.

        Args:
            splits: The splits to evaluate; without any, all but `train` and `test`.

        Returns:
            `{"loss": 0.04, "accuracy": 0.98}` for one split, `{split: result}` for several.

        Raises:
            DataError: There is no such split, or it is empty.
        """
        with self.world.call("evaluate()"):
            training, batch = self._training, self._batch
            if training is not None and batch is not None and batch.stepped:
                self._close_batch(training, batch)
            before = None if training is None else training.busy
            if training is not None:
                training.busy = "in the middle of an evaluation"
            try:
                results = self._evaluate(splits)
                if training is not None and self._epoch is not None:
                    add_evaluation(self, self._epoch, results)
            finally:
                if training is not None:
                    training.busy = before
        return results[splits[0]] if len(splits) == 1 else results

    def _evaluate(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """The results of splits, by default of all but `train` and `test`."""
        self.prepare()
        names = names or self.evaluation_splits
        if not names:
            raise DataError(f"no split to evaluate: without names it skips some of {self.splits}")
        with self._evaluation_mode():
            return {split: evaluate_split(self, split) for split in names}

    def predict(self, split: str = "test") -> Any:
        """The outputs of a split, each sample once and in order, on the CPU.

        Returns:
            One tensor where the outputs are tensors, else the list of the outputs of all batches.

        Raises:
            DataError: There is no such split, or it is empty.
        """
        with self.world.call("predict()"):
            self.prepare()
            with self._evaluation_mode():
                return predict_split(self, split)

    def _evaluation_mode(self) -> AbstractContextManager[None]:
        others = self._contents.members.values()
        partial_model = self.optimization.model_state.is_partial
        return evaluation_mode(self.model, *others, partial=partial_model)

    def _add_result(self, result: dict[str, Any], *, scored: bool) -> None:
        self.history.add(result, scored=scored)
        has_score = split_of(self.monitor, result) is not None
        if scored:
            self.optimization.end_evaluation(self.latest_score if has_score else None, result)

    # What is logged

    def log(
        self,
        name: str | Mapping[str, Any],
        value: Any = None,
        *,
        n: Any = None,
        reduce: Reduction = "mean",
        on: Literal["step", "epoch"] = "step",
    ) -> None:
        """Average a value until the log interval; it stays on its device until then.

        Within an evaluation it becomes part of the split's result, and in a hook of an end of the
        result that ends. A name without a split gets that of what runs.

        Args:
            name: The name, or several values by name.
            value: A scalar of this process; what is logged is of all of them.
            n: The number of samples that the value is the mean of: it weighs so much.
            reduce: The reduction of the values of steps and processes: `"mean"`, `"sum"`, `"max"`,
                `"min"` or `"last"`, which is that of the lowest rank that has logged.
            on: `"step"`: with the steps, and in the result of the epoch. `"epoch"`: at the end of
                the epoch alone.

        Raises:
            MetricError: The value is no scalar, or `reduce` was another one before.

        Example:
            >>> runner.log("aux", aux_loss)             # doctest: +SKIP
            >>> runner.log({"optim/temperature": 0.5})  # doctest: +SKIP
            >>> runner.log("tokens", mask.sum(), reduce="sum", on="epoch")  # doctest: +SKIP
        """
        values = name if isinstance(name, Mapping) else {name: value}
        self.logbook.log(values, n=n, reduce=reduce, on=on)

    def _log_means(self) -> None:
        """Give the means since the last log to `on_log`."""
        if not (self.distributed or self.callbacks.is_active("on_log")):
            return  # a callback may be on one process only: what others hear is not known here
        totals = self.logbook.end_interval()
        if not totals:
            return
        metrics = {tag: total.value for tag, total in totals.items()}
        bad = {tag: total.nonfinite for tag, total in totals.items() if total.nonfinite}
        if bad:
            metrics["train/nonfinite"] = float(sum(bad.values()))
            self.logger.warning(
                "values that are not finite by global step %d: %s", self.global_step, bad
            )
        self.callbacks("on_log", self, metrics | self.optimization.learning_rates(used=True))

    # How a training, an epoch and a batch open and close
    #
    # An epoch closes in three steps: `_complete_epoch` counts it and adds its result, its hooks
    # fire, and `_leave_epoch` agrees with the other processes. A batch closes likewise: it is
    # counted, its hook fires, and `_leave_batch` logs and agrees. `_batches` has these lines
    # itself; `_close_batch` does the same early, for what comes between two steps of the loop.
    # `_pass_safe_point` closes whatever is open and lets checkpoints be saved.

    def _require_run(self) -> None:
        if not self.in_run:
            raise RunError("epochs() needs an open run: write `with runner:` around it")

    def _require_epoch(self) -> tuple[OpenTraining, OpenEpoch]:
        if self._training is None or self._epoch is None:
            raise RunError(
                "batches() needs an open epoch: write `for epoch in runner.epochs():` around it"
            )
        return self._training, self._epoch

    def _open_training(self) -> OpenTraining:
        Limits.of(self.config).check()
        check_monitor(self)
        set_streams_aside()
        self._hold_stops()
        self._training = training = OpenTraining(flags=self._flags)
        OPEN.add(training)
        self.optimization.discard()  # what an exception left behind
        self.is_log_step = False
        are_loaded, self._modes_are_loaded = self._modes_are_loaded, False
        if not are_loaded:
            parameters = (p for o in self.optimizers for g in o.param_groups for p in g["params"])
            begin_training(self.model, parameters)
        if self.rank > 0 and self.global_step == self.batch_index == 0:
            seed_everything(int(self.config.seed or 0), self.rank)  # each its own dropout
        training.total_steps = count_steps(self)
        return training

    def _start_clock(self) -> None:
        tell_what_is_saved(self)
        tell_unread(self, meant=True)
        self.clock.start()
        self.agree()  # on what was asked for until now: a stop, the time
        if self.is_ending:
            limit = f"epoch {self.epoch}, global step {self.global_step} is the limit of this run"
            self.logger.warning("nothing to do: %s", self.stop_reason or limit)

    def _end_training(self) -> None:
        """Close what is open, innermost first, and fire the hooks of its end."""
        training = self._training
        if training is None:
            return
        if self._epoch is not None:  # left by a `break`: the last chance to save
            training.is_leaving = True
            training.at_safe_point |= self.counters.global_step > 0
            self._complete_epoch(cut=True)
            with self.logbook.ending() as averages:
                self.callbacks("on_epoch_end", self)
            self._add_to_result(averages)
            self._leave_epoch(training)
            if self.epoch_complete:
                self.callbacks("on_checkpoint", self)
            self._save_deferred(training)
            training.is_leaving = False
        if self.logbook.meter or self.distributed:  # what other processes have is not known here
            self._log_means()
        self._training = None
        OPEN.discard(training)
        self.clock.stop()
        with self.logbook.ending() as averages:
            self.callbacks("on_train_end", self)
        self._add_to_result(averages)

    def _add_to_result(self, averages: Averages) -> None:
        """Make what the hooks of an end logged part of the result that ends."""
        if not (values := self.logbook.means(averages)):
            return
        self.callbacks("on_log", self, values)
        if self.results:
            self.history.complete(values)

    def _open_epoch(self, training: OpenTraining) -> None:
        training.total_steps = count_steps(self)
        self._epoch = OpenEpoch(self._places)
        self._epoch.within = self.latest_result if self.batch_index else None
        self.epoch_complete = False
        training.busy = None

    def _complete_epoch(self, *, cut: bool = False) -> None:
        """Count the open epoch and add its result; one that was cut counts as not completed."""
        training, epoch = self._require_epoch()
        self._pass_safe_point(training)
        training.busy = "at the end of an epoch"
        self.epoch_complete = epoch.ended_by == "last batch" or not (cut or self._is_cut())
        epoch.iterator = self._epoch = None
        self._places = epoch.places(self.batch_index)
        if self.epoch_complete:
            self.counters.epoch += 1
            self.counters.batch_index = 0
            self._places = {}
            if epoch.within is not None and epoch.within["global_step"] == self.global_step:
                epoch.within["epoch"] = self.epoch  # an evaluation at its last step is its own
        result: dict[str, Any] = {"epoch": self.epoch, "global_step": self.global_step}
        means, new = self.logbook.end_epoch()
        if new:  # known when the epoch is over, not before
            self.callbacks("on_log", self, new)
        if means:
            result["train"] = means
        self._add_result(result | epoch.results, scored=self.epoch_complete)
        if self.epoch_complete:
            self.optimization.end_epoch(self.counters.epoch)  # after what its evaluation gave

    def _hold_stops(self) -> None:
        """Let a stop that somebody asks for wait until the training may end."""
        may_stop = self._limits.may_stop(self.epoch, self.global_step)
        if not may_stop:
            self.stopping.held = True
        elif self.stopping.held:
            self.stopping.release()

    def _leave_epoch(self, training: OpenTraining) -> None:
        self._hold_stops()
        self.agree()
        training.busy = None
        tell_unread(self)  # by now a step has read what it needs

    def _leave_batch(self, training: OpenTraining, batch: OpenBatch) -> None:
        """Log and agree after a step, when the batch has ended."""
        if not batch.stepped:
            training.has_gradients |= batch.has_gradients
            if batch.window.closes:
                self._drop_window(training)
            return
        training.has_gradients, training.at_safe_point = False, True
        if self.stopping.held:
            self._hold_stops()
        if self.is_log_step:
            self._log_means()
            self.is_log_step = False
        if self.counters.global_step % self._poll_interval == 0:
            self.agree()

    def _close_batch(self, training: OpenTraining, batch: OpenBatch) -> None:
        """End the batch in hand early, as before an evaluation or a save in the loop's body."""
        self._batch = None
        self.counters.batch_index += 1
        if "on_batch_end" in self.callbacks.active:
            training.busy = "in the middle of a step"
            self.callbacks("on_batch_end", self, batch.batch, batch.output)
            training.busy = None
        self._leave_batch(training, batch)

    def _pass_safe_point(self, training: OpenTraining) -> None:
        """Close the batch that a `break` left open, and pass the safe point after it."""
        if (batch := self._batch) is not None:
            self._close_batch(training, batch)
            if not batch.window.closes:
                self._drop_window(training)
        if training.at_safe_point:
            training.at_safe_point = False
            self.callbacks("on_checkpoint", self)
            self._save_deferred(training)

    def _drop_window(self, training: OpenTraining) -> None:
        """Forget the gradients of a window that will not be stepped."""
        if training.has_gradients:
            self.logger.warning(
                "an accumulation window ended without a step: its gradients are dropped"
            )
            self.optimization.discard()
            training.has_gradients = False
        if self._tallied is not None:
            self._tallied.reset()

    # Checkpoints

    def _places_now(self) -> dict[str, int]:
        """The batches of each split that were used in the epoch that is open, or was cut."""
        return self._places if self._epoch is None else self._epoch.places(self.batch_index)

    @property
    def unsafe(self) -> str | None:
        """Why a run could not go on exactly from here; None at a safe point."""
        training, batch = self._training, self._batch
        if training is None:
            return None
        if training.has_gradients or (batch is not None and batch.has_gradients):
            return "in the middle of an accumulation window"
        if self.is_log_step or (batch is not None and not batch.stepped):
            return "in the middle of a step"
        if training.failed:
            return "while the run failed"
        is_evaluated = self._epoch is not None and self._epoch.results
        return training.busy or ("at the end of an epoch" if is_evaluated else None)

    def save_checkpoint(self, *names: str) -> Path:
        """Commit a checkpoint under the given names, or as `latest`; a collective.

        It is on the disk when this returns, in `on_checkpoint` and in a loop of your own after
        `step()`. Elsewhere in a training it is saved at the next safe point, and `on_save` tells.

        Raises:
            RunError: The run has no directory.
            CheckpointError: It could not be written; what was there before is intact.
        """
        with self.world.call("save_checkpoint()"):
            return self._save(checked_names(names or ("latest",)))

    def _save(self, names: tuple[str, ...]) -> Path:
        training, batch = self._training, self._batch
        if training is not None and batch is not None and batch.stepped:
            self._close_batch(training, batch)
        where, path = self.unsafe, self.checkpoints.directory / f"{names[0]}.pth"
        if where and training is not None and not training.failed:
            training.deferred[names] = partial(self._save, names)
            return path
        if where:  # `latest` stays what a run can go on from
            number = f"step-{self.global_step}"
            names = tuple(dict.fromkeys(number if name == "latest" else name for name in names))
            path = path.with_name(f"{names[0]}.pth")
            self.logger.warning("%s is saved %s: no run goes on exactly from it", path.name, where)
        self.make_save(names, self._state()).commit(self.world, self.checkpoints)
        self.callbacks("on_save", self, path)
        return path

    def _save_deferred(self, training: OpenTraining) -> None:
        deferred, training.deferred = training.deferred, {}
        for save in deferred.values():
            save()

    def make_save(
        self,
        names: tuple[str, ...],
        contents: Mapping[str, Any],
        reasons: Mapping[str, float] | None = None,
    ) -> Save:
        """A save of this point of the run; of a sharded model each process has its part of it."""
        head, parts = self.optimization.model_state.split(contents)
        return replace(super().make_save(names, head, reasons), parts=parts)

    def state_dict(self, *, alone: bool = False) -> dict[str, Any]:
        """Everything that the run needs to go on from here; all processes must call it.

        Of a sharded model each process gets the parts that it has, unless checkpoints are one file.

        Args:
            alone: Whether only this process takes part, as where another one is gone. Replicas have
                the same weights; the others' random streams, averages and places in their data are
                missing then.

        Raises:
            CheckpointError: This process is alone, and has only a part of the weights.
        """
        if not alone:
            with self.world.call("state_dict()"):
                return self._state()
        if self.distributed and self.optimization.model_state.is_partial:
            raise CheckpointError(
                "each process holds a part of the weights, and one of them is gone"
            )
        return self._state(alone=True)

    def _state(self, *, alone: bool = False) -> dict[str, Any]:
        whole = alone or self.optimization.model_state.whole
        weights = self.optimization.model_state.state(whole=whole)
        for callback in self.callbacks:  # what scored is what is saved: an average of the weights
            if (replace_weights := getattr(callback, "weights_to_save", None)) is not None:
                weights = replace_weights(self, weights)
        common = super().state_dict()
        common["run"]["assigned"] = dict(self._assigned.since)
        return self._contents.take(
            self.optimization,
            {"model": weights, **common},
            places=self._places_now(),
            unsafe=self.unsafe,
            alone=alone,
        )

    def load_checkpoint(self, path: str | Path, *, strict: bool = True) -> None:
        """Take weights, optimizer, counters and all other state of a checkpoint file.

        Raises:
            CheckpointError: The file is damaged, or does not fit.
            ResumeError: It cannot be continued exactly, and `strict` is set.
        """
        with self.world.call("load_checkpoint()"):
            checkpoint, path = read_together(
                self.world, lambda: (read_checkpoint(path, whole=False), Path(path))
            )
            restore(self, checkpoint, path, strict=strict)

    @classmethod
    def from_checkpoint(cls, path: str | Path, **parts: Any) -> Self:
        """A runner with configuration and state of a checkpoint, for a new run or evaluation.

        Args:
            path: The file; the directory of a run, or that of its checkpoints, means the latest.
            **parts: Arguments of the constructor; `config` in place of the one of the file.

        Raises:
            CheckpointError: The file is damaged, or does not fit the parts.
        """
        path = file_of(path)
        checkpoint = read_checkpoint(path, whole=False)
        saved = checkpoint["config"]
        own = {key: saved[key] for key in saved if key not in (*STATE_KEYS, "resume")}
        config = parts.get("config") or Config(own)
        runner = cls(config, **{name: part for name, part in parts.items() if name != "config"})
        restore(runner, checkpoint, path)
        return runner


def is_default_step(step: Callable[..., Any]) -> bool:
    """Whether a train step is the one that takes a batch of data through the model."""
    return getattr(step, "__func__", None) is AccelerateRunner.train_step
