"""The data of a runner by split, and the loaders that are made of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from danling.data.limits import Amount
from danling.data.loader import Loader
from danling.data.prepare import (
    Placement,
    own_arguments,
    own_batch_size,
    prepare_loader,
    split_settings,
    with_arguments,
)
from danling.distributed.world import World
from danling.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from danling.config import Config

__all__ = ["Splits"]

_logger = logging.getLogger(__name__)


class Splits:
    """Datasets and iterables of batches by split, and a loader for each that is asked for.

    What is assigned to `datasets` or `dataloaders`, or changed in them, is used by the next loader
    that is asked for.

    Args:
        config: The configuration; its `dataloader` and `seed` are read when a loader is made.
        world: The processes that share the samples.
        placement: Where this process stands.

    Attributes:
        datasets: The datasets by split.
        dataloaders: The iterables of batches by split.
        collate_fn: The function that makes a batch of samples, or one by split.
        sampler: The sampler of `train`, or one by split.
        batch_sampler: The batch sampler of `train`, or one by split.
        worker_init_fn: The function that a worker calls first, or one by split.
    """

    collate_fn: Any = None
    sampler: Any = None
    batch_sampler: Any = None
    worker_init_fn: Any = None

    def __init__(self, config: Config, world: World, placement: Placement) -> None:
        self.datasets: dict[str, Any] = {}
        self.dataloaders: dict[str, Any] = {}
        self._config = config
        self._world = world
        self._placement = placement
        self._loaders: dict[tuple[str, bool], tuple[Any, Mapping[str, Any], Amount, Loader]] = {}
        self._in_use: dict[str, Loader] = {}
        self._recorded: int | None = None  # the batch size of a loader of the user's

    @property
    def names(self) -> list[str]:
        """The splits that there is data for."""
        return list(self.datasets | self.dataloaders)

    @property
    def evaluation_names(self) -> list[str]:
        """The splits that a training evaluates: all but `train`, `test` and those of no batches."""
        limits = self._config.limit_batches
        named = [split for split in self.names if split not in ("train", "test")]
        return [split for split in named if limits.get(split) != 0]

    @property
    def trains_without_data(self) -> bool:
        """Whether there is no data for `train`, and something else says how long a training is."""
        config, is_limited = self._config, isinstance(self._config.limit_batches.get("train"), int)
        return "train" not in self.names and (is_limited or config.max_steps is not None)

    @property
    def can_train(self) -> bool:
        """Whether there is data for `train`, or a training without data."""
        return "train" in self.names or self.trains_without_data

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """What datasets say of their content, by the name of the part that they are."""
        return {
            f"datasets[{split!r}]": getattr(dataset, "fingerprint", None)
            for split, dataset in self.datasets.items()
        }

    def loader(self, split: str, *, evaluating: bool = False) -> Loader:
        """The loader of a split; an evaluation of `train` has its own, in order.

        Raises:
            DataError: There is no such split, or its data or settings are wrong.
        """
        source = self._source(split)
        settings = split_settings(self._config.dataloader, split, self.names)
        amount = self._amount(split)
        own = own_arguments(vars(self), split, self.names, in_order=evaluating and split == "train")
        if split not in self.dataloaders:
            settings = with_arguments(settings, self._config.dataloader.get(split), own)
        elif named := own.keys() & {name for name in own if isinstance(vars(self)[name], Mapping)}:
            raise DataError(
                f"{named.pop()}[{split!r}] is not used: dataloaders[{split!r}] has its own"
            )
        made = self._loaders.get((split, evaluating))
        if made is not None and made[0] is source and made[1:3] == (settings, amount):
            return made[3]
        if made is not None and made[0] is source:
            _logger.info("the split %r has other loader settings from now on", split)
        training = split == "train" and not evaluating
        loader = prepare_loader(
            split,
            source,
            batched=split in self.dataloaders,
            settings=settings,
            seed=int(self._config.seed or 0),
            shuffle=training or amount.repeats,
            training=training,
            placement=self._placement,
        ).limit(amount, training=training)
        self._loaders[split, evaluating] = source, settings, amount, loader
        return loader

    def _amount(self, split: str) -> Amount:
        """How much of a split is read: `limit_batches`, `overfit_batches` and `fast_dev_run`.

        Raises:
            DataError: There is a limit for a split that is not there, or of no batches.
        """
        config, names = self._config, [*self.names, "train"]
        for name in config.limit_batches:
            if name not in names:
                raise DataError(f"limit_batches.{name} is of no split: {did_you_mean(name, names)}")
        limit = config.limit_batches.get(split)
        if limit is not None and limit == 0:
            raise DataError(f"limit_batches.{split} is 0: there is nothing to read")
        most = int(config.fast_dev_run) or None
        repeats = split == "train" and bool(config.overfit_batches)
        return Amount(config.overfit_batches if repeats else limit, most, repeats)

    def record_batch_size(self) -> None:
        """Write the batch size of the user's own loader of `train` where ours would be set.

        It is part of what a run is, as a batch size in the configuration is.
        """
        if self._config.frozen:
            return
        size, options = own_batch_size(self.dataloaders.get("train")), self._config.dataloader
        section = options.get("train")
        if size is None and self._recorded is not None and isinstance(section, MutableMapping):
            section.pop("batch_size", None)
        elif size is not None and not isinstance(section, MutableMapping):
            options["train"] = {"batch_size": size}
        elif size is not None and section is not None and section.get("batch_size") != size:
            section["batch_size"] = size
        self._recorded = size

    def take_up(self, split: str) -> Loader:
        """The loader of a split for training: checkpoints hold where it is from now on.

        Raises:
            DataError: There is no such split, or processes have other samples of it.
        """
        loader = self._in_use[split] = self.loader(split)
        self.check_samples(loader)
        return loader

    def check_samples(self, loader: Loader) -> None:
        """Refuse data that is not the same on every process, each of which takes its share of it.

        Raises:
            DataError: The number of samples differs.
        """
        samples = self._world.gather(loader.samples)
        if len(set(samples)) > 1:
            found = ", ".join(f"{number} on rank {rank}" for rank, number in enumerate(samples))
            raise DataError(
                f"the samples of {loader.split!r} differ ({found}): hand all of the data to every "
                "process, the runner gives each its share"
            )

    def forget_loaders(self) -> None:
        """Make the loaders anew when they are asked for again, as for another seed."""
        self._loaders = {}

    # State

    def state_dict(self, epoch: int, places: Mapping[str, int]) -> dict[str, Any]:
        """Where the loaders are that the training has used.

        Args:
            epoch: The number of epochs completed.
            places: The number of batches that were used of each split in this epoch.
        """
        return {
            split: self._in_use[split].state_dict(epoch, places.get(split, 0))
            for split in sorted(self._in_use)
        }

    def load_state_dict(self, states: Mapping[str, Any], *, elastic: bool = False) -> list[str]:
        """Set the loaders to where they were.

        Returns:
            Why they are not exactly there; empty where they are.

        Raises:
            ResumeError: The data is not what it was.
        """
        reasons: list[str] = []
        for split, state in states.items():
            if split in self.names:
                loader = self._in_use[split] = self.loader(split)
                reasons += loader.load_state_dict(state, elastic=elastic)
        return reasons

    def _source(self, split: str) -> Any:
        if split in self.dataloaders:
            return self.dataloaders[split]
        if split in self.datasets:
            return self.datasets[split]
        if split == "train" and self.trains_without_data:
            return None
        raise self.no_data(split)

    def no_data(self, split: str) -> DataError:
        """What is raised where there is no data for a split."""
        without = ""
        if split == "train":
            without = (
                "; a training without data needs a train_step of its own, which gets None as its "
                "batch, and max_steps or limit_batches={'train': n}"
            )
        return DataError(
            f"there is no data for the split {split!r}: {did_you_mean(split, self.names)}{without}"
        )
