"""The data of a runner by split, and the loaders that are made of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from danling.data.combined import Combined, Reading, reading_of
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
        placement: The device and rank of this process.

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

    def parts(self, split: str) -> list[str]:
        """The names of the loaders of a split: itself, or those of the mapping that it is."""
        source = (self.datasets | self.dataloaders).get(split)
        return [f"{split}/{part}" for part in source] if isinstance(source, Mapping) else [split]

    @property
    def loader_names(self) -> list[str]:
        """The names of all loaders, and of the splits that they are of."""
        return list(dict.fromkeys([*self.names, *(p for s in self.names for p in self.parts(s))]))

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
        """The fingerprints that datasets give of their content, by their names."""
        return {
            f"datasets[{split!r}]": getattr(dataset, "fingerprint", None)
            for split, dataset in self.datasets.items()
        }

    def loader(self, split: str, *, evaluating: bool = False) -> Loader:
        """The loader of a split; an evaluation of `train` has its own, in order.

        Raises:
            DataError: There is no such split, or its data or settings are wrong.
        """
        source, names = self._source(split), self.loader_names
        settings = self._settings(split)
        amount = self._amount(split)
        whole = split.partition("/")[0] if split not in self.names else split
        in_order = evaluating and whole == "train"
        own = own_arguments(vars(self), split, names, in_order=in_order)
        if whole not in self.dataloaders:
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
        training = not evaluating
        loader = prepare_loader(
            split,
            source,
            batched=whole in self.dataloaders,
            settings=settings,
            seed=int(self._config.seed or 0),
            shuffle=(training and whole == "train") or amount.repeats,
            training=training,
            placement=self._placement,
        ).limit(amount, training=training)
        self._loaders[split, evaluating] = source, settings, amount, loader
        return loader

    def _amount(self, split: str) -> Amount:
        """The part of a split that is read: `limit_batches`, `overfit_batches` and `fast_dev_run`.

        Raises:
            DataError: There is a limit for a split that is not there, or of no batches.
        """
        config, names = self._config, [*self.loader_names, "train"]
        for name in config.limit_batches:
            if name not in names:
                raise DataError(f"limit_batches.{name} is of no split: {did_you_mean(name, names)}")
        limit = config.limit_batches.get(split)
        if limit is not None and limit == 0:
            raise DataError(f"limit_batches.{split} is 0: there is nothing to read")
        most = int(config.fast_dev_run) or None
        repeats = bool(config.overfit_batches) and split in {"train", *self.parts("train")}
        if split == "train":
            limit = config.overfit_batches or limit
        return Amount(limit, most, repeats)

    def _settings(self, split: str) -> dict[str, Any]:
        """The settings of a loader: of several under one split each has those of the split too."""
        config, names = self._config.dataloader, self.loader_names
        settings = split_settings(config, split, names)
        if split not in self.names and "/" in split:
            shared = split_settings(config, split.partition("/")[0], names)
            settings = shared | dict(config.get(split) or {})
            settings.pop("mode", None)
        if "mode" in settings:
            raise DataError(
                f"dataloader.mode is for several loaders under one split, and {split!r} is one: "
                "write it in the section of a split that is a mapping"
            )
        return settings

    def whole(self, split: str, mode: str | None = None) -> Loader | Combined:
        """The loader of a split, or several that are read together."""
        parts = self.parts(split)
        if parts == [split]:
            if mode is not None:
                raise DataError(f"mode={mode!r} is for several splits, and {split!r} is one")
            return self.loader(split)
        set_mode = split_settings(self._config.dataloader, split, self.loader_names).get("mode")
        mode = mode or set_mode or "min_size"
        loaders = {part.removeprefix(f"{split}/"): self.loader(part) for part in parts}
        most = self._amount(split).of(Combined(loaders, mode).length, split)
        is_whole = self._amount(split) == Amount()
        return Combined(loaders, mode, None if is_whole else most)

    def read(
        self, splits: Sequence[str], mode: str | None, epoch: int, places: Mapping[str, int]
    ) -> Reading:
        """The batches of an epoch that are left, of one split or of several together.

        Args:
            splits: The splits.
            mode: The way in which several are read together.
            epoch: The epoch.
            places: The number of batches of each split that were used in it before.

        Raises:
            DataError: There is no such split or mode, or processes have other samples of one.
        """
        if len(splits) == 1:
            whole = self.whole(splits[0], mode)
            for part in self.parts(splits[0]):
                self.take_up(part)
            if isinstance(whole, Loader):
                return reading_of(splits[0], whole, epoch, places.get(splits[0], 0))
            return whole.read(epoch, places)
        for split in splits:
            if (parts := self.parts(split)) != [split]:
                raise DataError(f"{split!r} is several loaders: name those to be read, of {parts}")
        loaders = {split: self.take_up(split) for split in splits}
        return Combined(loaders, mode or "min_size").read(epoch, places)

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
        """The places of the loaders that the training has used.

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
            if split in self.loader_names:
                loader = self._in_use[split] = self.loader(split)
                reasons += loader.load_state_dict(state, elastic=elastic)
        return reasons

    def _source(self, split: str) -> Any:
        if (parts := self.parts(split)) != [split]:
            raise DataError(f"{split!r} is several loaders: name one of them, of {parts}")
        if split in self.names:
            return (self.datasets | self.dataloaders)[split]
        if split == "train" and self.trains_without_data:
            return None
        whole, _, part = split.partition("/")
        if part and split in self.parts(whole):
            return (self.datasets | self.dataloaders)[whole][part]
        raise self.no_data(split)

    def no_data(self, split: str) -> DataError:
        """The error where there is no data for a split."""
        without = ""
        if split == "train":
            without = (
                "; a training without data needs a train_step of its own, which gets None as its "
                "batch, and max_steps or limit_batches={'train': n}"
            )
        return DataError(
            f"there is no data for the split {split!r}: "
            f"{did_you_mean(split, self.loader_names)}{without}"
        )
