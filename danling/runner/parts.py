"""What a runner trains with: model, optimizers, data, metrics; Accelerate places them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.optim import Optimizer

from danling.callback import Callback
from danling.data.loader import Loader
from danling.data.prepare import Placement, prepare_loader, split_settings
from danling.distributed.launch import forget_accelerate_state, join_after_restart, make_world
from danling.distributed.sharding import check_engine
from danling.distributed.world import World
from danling.errors import ConfigError, DataError, did_you_mean
from danling.metrics.metric import check_mergeable, own_copies
from danling.optimization.optimization import Optimization
from danling.runner.base import BaseRunner
from danling.seed import seed_everything

__all__ = ["PartsRunner"]


class PartsRunner(BaseRunner):
    """A runner with a model, optimizers, data and metrics: see `AccelerateRunner`."""

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        model: nn.Module | None = None,
        criterion: Any = None,
        optimizer: Any = None,
        scheduler: Any = None,
        datasets: Mapping[str, Any] | None = None,
        dataloaders: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        callbacks: Iterable[Callback] = (),
        default_callbacks: bool = True,
        resume: str | bool | None = None,
    ) -> None:
        super().__init__(config, callbacks=callbacks, default_callbacks=default_callbacks)
        if resume is not None:
            self.config.resume = resume if isinstance(resume, bool) else str(resume)
        self._settle_seed()
        if self.distributed:
            _ = self.uuid  # agreed now, so that any process may read it alone
        self.model: Any = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.datasets: dict[str, Any] = dict(datasets or {})
        self.dataloaders: dict[str, Any] = dict(dataloaders or {})
        self.metrics: dict[str, Any] = dict(metrics or {})
        self.optimization: Optimization = Optimization(self.accelerator, {}, {})
        self._loaders: dict[tuple[str, bool], Loader] = {}
        self._split_metrics: dict[tuple[str, bool], dict[str, Any]] = {}
        self.evaluating: str | None = None  # the split that is evaluated
        self._prepared = False
        self._planned: int | None = None  # total steps of the open run, as the epoch began

    def _make_world(self) -> World:
        join_after_restart()
        self.accelerator: Accelerator = self.make_accelerator()
        return make_world(self.accelerator)

    def make_accelerator(self) -> Accelerator:
        """Make the accelerator from `config.accelerate`; override it for plug-in objects."""
        options = dict(self.config.accelerate)
        options.pop(
            "gradient_accumulation_steps", None
        )  # counted by the runner, over the real number of batches
        try:
            try:
                return Accelerator(**options)
            except ValueError as error:
                if "already been initialized" not in str(error):
                    raise
                forget_accelerate_state()
                return Accelerator(**options)
        except TypeError as error:
            raise ConfigError(
                f"config.accelerate does not fit accelerate.Accelerator: {error}"
            ) from error

    def _settle_seed(self) -> None:
        """Give all processes one seed: the one that is set, or the one that rank 0 drew."""
        drawn = seed_everything(self.config)
        if self.distributed and self.config.drawn_seed:
            seed = self.world.broadcast(drawn)
            self.config.record_drawn_seed(seed)
            seed_everything(seed)

    def prepare(self) -> None:
        """Place and wrap model and optimizers; called when the run opens, and done once."""
        if self._prepared:
            return
        check_engine(self.accelerator, self.model)
        optimizers = by_name(self.optimizer)
        schedulers = by_name(self.scheduler)
        if unknown := set(schedulers) - set(optimizers):
            raise ConfigError(
                f"the scheduler {unknown.pop()!r} has no optimizer of that name: "
                f"name schedulers as their optimizers, {list(optimizers)}"
            )
        self.optimization = self._optimization_kind()(
            self.accelerator,
            optimizers,
            schedulers,
            max_norm=self.config.max_grad_norm,
            max_value=self.config.max_grad_value,
            interval=self.config.scheduler_interval,
        )
        if self.distributed:
            check_mergeable(self.metrics)
        self.model = self.optimization.prepare(self.model)
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(self.device)
        self._prepared = True

    def _optimization_kind(self) -> type[Optimization]:
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            return Optimization
        from danling.optimization.deepspeed import EngineOptimization, fill_config

        batch_size = self.batch_size if "train" in self.splits else None
        fill_config(self.accelerator, self.config, batch_size=batch_size)
        return EngineOptimization

    # Model

    @property
    def unwrapped_model(self) -> Any:
        """The model without what Accelerate and `torch.compile` wrapped around it."""
        if self.model is None:
            return None
        model = (
            self.model if self.optimization.direct else self.accelerator.unwrap_model(self.model)
        )
        return getattr(model, "_orig_mod", model)

    @property
    def optimizers(self) -> list[Optimizer]:
        return list(by_name(self.optimizer).values())

    @property
    def device(self) -> torch.device:
        return self.accelerator.device  # type: ignore[no-any-return]  # Accelerate is not annotated

    @property
    def local_rank(self) -> int:
        return int(self.accelerator.local_process_index)

    @property
    def is_local_main_process(self) -> bool:
        return self.local_rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision as configured, for a forward outside the model."""
        return self.accelerator.autocast()  # type: ignore[no-any-return]  # Accelerate is not annotated

    @property
    def accum_steps(self) -> int:
        """Micro-batches of one optimizer step."""
        return self.accum_steps_in(self.epoch)

    def accum_steps_in(self, epoch: int) -> int:
        """Micro-batches of one optimizer step in an epoch: a callback may have a schedule."""
        options = self.config.accelerate
        key = "gradient_accumulation_steps"
        steps = int(options[key]) if key in options else 1  # get() composes an error and drops it
        for callback in self.callbacks:
            if (scheduled := getattr(callback, "accum_steps_in", None)) is not None:
                steps = scheduled(epoch, steps)
        return steps

    # Data

    @property
    def splits(self) -> list[str]:
        """The splits that there is data for."""
        return [
            *self.datasets,
            *(split for split in self.dataloaders if split not in self.datasets),
        ]

    @property
    def evaluation_splits(self) -> list[str]:
        """The splits that a training evaluates: all but `train` and `test`."""
        return [split for split in self.splits if split not in ("train", "test")]

    def loader(self, split: str, *, evaluating: bool = False) -> Loader:
        """The loader of a split, as the loop iterates it; an evaluation has its own, in order.

        Raises:
            DataError: There is no such split.
        """
        if (split, evaluating) not in self._loaders:
            if split not in self.datasets and split not in self.dataloaders:
                raise DataError(
                    f"there is no data for the split {split!r}: {did_you_mean(split, self.splits)}"
                )
            batched = split in self.dataloaders
            training = split == "train" and not evaluating
            self._loaders[split, evaluating] = prepare_loader(
                split,
                self.dataloaders[split] if batched else self.datasets[split],
                batched=batched,
                settings=split_settings(self.config.dataloader, split, self.splits),
                seed=int(self.config.seed or 0),
                shuffle=training,
                training=training,
                placement=Placement(self.device, self.rank, self.world_size),
            )
        return self._loaders[split, evaluating]

    def forget_loaders(self) -> None:
        """Make the loaders anew when they are asked for again."""
        self._loaders = {}

    def metrics_of(self, split: str) -> dict[str, Any]:
        """The metrics of a split: each has its own copies, and so has an evaluation of `train`."""
        key = split, self.evaluating is not None
        if key not in self._split_metrics:
            self._split_metrics[key] = own_copies(self.metrics, self.device)
        return self._split_metrics[key]

    @property
    def batch_size(self) -> int | None:
        """Samples of a batch of training on one process."""
        return self.loader("train").batch_size

    @property
    def batch_size_equivalent(self) -> int | None:
        """Samples of one optimizer step, over all processes and micro-batches."""
        size = self.batch_size
        return None if size is None else size * self.world_size * self.accum_steps

    # Length

    @property
    def batches_per_epoch(self) -> int | None:
        return self.loader("train").length

    @property
    def steps_per_epoch(self) -> int | None:
        batches = self.batches_per_epoch
        return None if batches is None else math.ceil(batches / self.accum_steps)

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole training; None where its length is unknown."""
        limits = [] if self.config.max_steps is None else [int(self.config.max_steps)]
        if (
            self.config.max_epochs is not None
            and "train" in self.splits
            and self.steps_per_epoch is not None
        ):
            batches = self.batches_per_epoch or 0
            windows = (self.accum_steps_in(epoch) for epoch in range(self.config.max_epochs))
            limits.append(sum(math.ceil(batches / size) for size in windows))
        return min(limits, default=None)

    @property
    def progress(self) -> float:
        total = self.total_steps if self._planned is None else self._planned
        return math.nan if not total else min(self.global_step / total, 1.0)

    def _default_monitor(self) -> str:
        return "val/loss" if "val" in self.splits else "train/loss"


def by_name(part: Any) -> dict[str, Any]:
    """Several parts by name; a single one is named `""`."""
    if part is None:
        return {}
    return dict(part) if isinstance(part, Mapping) else {"": part}
