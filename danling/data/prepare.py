"""Make the loader of a split: of a dataset, or of a loader that the user made of one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    default_collate,
    default_convert,
)

from danling.config.settings import WORKER_KEYS
from danling.data.limits import Nothing
from danling.data.loader import Loader, Resume
from danling.data.readers import CountingCollate, IterableReader, WorkerInit
from danling.data.sampling import Sharding, is_of_torch, length_of, order_of
from danling.data.sources import IndexedSource, ListSource, Source, StreamSource
from danling.errors import DataError, did_you_mean
from danling.seed import derive

__all__ = [
    "Loader",
    "PerSplit",
    "Placement",
    "own_arguments",
    "own_batch_size",
    "prepare_loader",
    "split_settings",
    "with_arguments",
]


_T = TypeVar("_T")
PerSplit: TypeAlias = _T | Mapping[str, _T] | None
"""One for a split or all of them, or several by split."""

OWN_SETTINGS = {"keyed", "mode", "resume"}
SAMPLING_SETTINGS = {"batch_size", "drop_last", "shuffle"}
ARGUMENTS = ("collate_fn", "sampler", "batch_sampler", "worker_init_fn")
WORKER_SETTINGS = (*WORKER_KEYS, "worker_init_fn")
SETTINGS = OWN_SETTINGS | SAMPLING_SETTINGS | set(WORKER_KEYS)
POLICIES = ("exact", "replay", "epoch")


def split_settings(
    dataloader: Mapping[str, Any], split: str, splits: Collection[str] | None = None
) -> dict[str, Any]:
    """The settings of one split: the common ones, overridden by those under its name.

    Args:
        dataloader: `config.dataloader`: arguments of torch's `DataLoader`, `keyed` and `resume`,
            and a mapping of them under the name of a split.
        split: The split whose settings are wanted.
        splits: The names of all splits, if a section for another one is to be an error.

    Raises:
        DataError: There is no such setting.

    Example:
        >>> split_settings({"batch_size": 32, "train": {"batch_size": 8}}, "train")
        {'batch_size': 8}
        >>> split_settings({"batch_sise": 32}, "train")
        Traceback (most recent call last):
        ...
        danling.errors.DataError: dataloader has no setting 'batch_sise': did you mean 'batch_size'?
    """
    sections = {key: value for key, value in dataloader.items() if isinstance(value, Mapping)}
    for name in sections:
        if splits is not None and name not in {*splits, "train"}:  # it may not be trained here
            near = did_you_mean(name, splits)
            raise DataError(f"dataloader.{name} is of no split: {near}")
    common = {key: value for key, value in dataloader.items() if key not in sections}
    own = dict(sections.get(split, {}))
    for where, settings in (("dataloader", common), (f"dataloader.{split}", own)):
        for key in settings:
            if key in ARGUMENTS:
                raise DataError(
                    f"{where}.{key} is no setting, since a configuration holds no objects: pass "
                    f"{key}= to the runner, beside datasets="
                )
            if key not in SETTINGS:
                near = did_you_mean(str(key), SETTINGS)
                raise DataError(f"{where} has no setting {key!r}: {near}")
    return {**common, **own}


def own_arguments(
    given: Mapping[str, Any], split: str, splits: Collection[str], *, in_order: bool = False
) -> dict[str, Any]:
    """The objects that the user gave for the loader of a split, by the name of their argument.

    A mapping has one for each split. A single sampler is that of `train`; a single function is for
    all splits.

    Args:
        given: The arguments by name: `collate_fn`, `sampler`, `batch_sampler`, `worker_init_fn`.
        split: The split whose loader is made.
        splits: The names of all splits.
        in_order: Whether the samples are wanted in order, so that samplers are left out.

    Raises:
        DataError: A mapping is of another split, or a sampler and a batch sampler are given.

    Example:
        >>> given = {"collate_fn": list, "sampler": [2, 0, 1]}
        >>> own_arguments(given, "train", ["train", "val"])
        {'collate_fn': <class 'list'>, 'sampler': [2, 0, 1]}
        >>> own_arguments(given, "val", ["train", "val"])
        {'collate_fn': <class 'list'>}
    """
    own = {name: _of_split(name, given.get(name), split, splits) for name in ARGUMENTS}
    if in_order:
        own["sampler"] = own["batch_sampler"] = None
    own = {name: value for name, value in own.items() if value is not None}
    if {"sampler", "batch_sampler"} <= own.keys():
        raise DataError(f"the split {split!r} has a sampler and a batch_sampler: pass one of them")
    return own


def _of_split(name: str, value: Any, split: str, splits: Collection[str]) -> Any:
    if not isinstance(value, Mapping):
        return None if name.endswith("sampler") and split != "train" else value
    if unknown := [other for other in value if other not in splits]:
        near = did_you_mean(unknown[0], splits)
        raise DataError(f"{name}[{unknown[0]!r}] is of no split: {near}")
    return value.get(split)


def with_arguments(
    settings: Mapping[str, Any], section: Mapping[str, Any] | None, own: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings with what was given beside them.

    A sampler decides on the order, and a batch sampler on the batches too: what the settings of all
    splits say of these is not for this split.

    Args:
        settings: The settings of the split.
        section: The settings that are for this split alone.
        own: The arguments that were given for this split.
    """
    decided = {"batch_sampler": SAMPLING_SETTINGS, "sampler": {"shuffle"}}
    left_out = {key for name in own for key in decided.get(name, ()) if key not in (section or {})}
    return {key: value for key, value in settings.items() if key not in left_out} | dict(own)


def own_batch_size(source: Any) -> int | None:
    """The batch size that a loader of the user says it has; None where it says none."""
    for part in (source, getattr(source, "batch_sampler", None)):
        size = getattr(part, "batch_size", None)
        if isinstance(size, int) and not isinstance(size, bool):
            return size
    return None


class Placement(NamedTuple):
    """The device and the rank of this process."""

    device: torch.device
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class _Split:
    """The description of a split that all kinds of sources need."""

    name: str
    keyed: bool
    resume: Resume
    seed: int
    training: bool
    placement: Placement

    @property
    def own_seed(self) -> int:
        """The seed of all that is random in this split."""
        return derive(self.seed, self.name)

    def sharding(self, size: int, drop_last: bool) -> Sharding:
        place = self.placement
        return Sharding(size, place.rank, place.world_size, self.training, drop_last)

    def loader(self, source: Source, batch_size: int | None) -> Loader:
        return Loader(
            self.name,
            source,
            batch_size=batch_size,
            seed=self.seed,
            resume=self.resume,
            device=self.placement.device,
        )


def prepare_loader(
    split: str,
    source: Any,
    *,
    batched: bool,
    settings: Mapping[str, Any],
    seed: int,
    shuffle: bool,
    training: bool,
    placement: Placement,
) -> Loader:
    """The loader of a dataset of samples, or of something that gives batches.

    A `DataLoader` is taken apart: its dataset, sampler or batch sampler, `collate_fn` and arguments
    for workers are used; its generator is not, as the seed decides. So is torchdata's over a
    dataset that is read by index. Other subclasses with an `__iter__` of their own are read as
    they are.

    Args:
        split: The name of the split; it is part of the seed of all that is random in it.
        source: A dataset with `__getitem__` and `__len__`, or only with `__iter__`. Or, if batched,
            a `DataLoader`, a list of batches, an iterable, or a function that returns one.
        batched: Whether it gives batches.
        settings: The settings, from `split_settings`. `batch_size` is that of one process. For
            something that gives batches only `keyed` and `resume` matter.
        seed: The seed of the run.
        shuffle: Whether a dataset that is read by index is shuffled, unless the settings say.
        training: Whether all ranks must get equally many batches, so that the last ones are padded.
            Without it every sample is seen once.
        placement: The device and the rank of this process.

    Raises:
        DataError: The source, or a setting, is wrong.

    Example:
        >>> loader = prepare_loader("val", [1.0, 2.0, 3.0], batched=False, training=False,
        ...     settings={"batch_size": 2}, seed=0, shuffle=False,
        ...     placement=Placement(torch.device("cpu")))
        >>> [batch.tolist() for batch in loader.iterate(epoch=0)]
        [[1.0, 2.0], [3.0]]
    """
    resume = settings.get("resume", "exact")
    if resume not in POLICIES:
        near = did_you_mean(str(resume), POLICIES)
        raise DataError(f"dataloader.resume of {split!r} is {resume!r}: {near}")
    keyed = bool(settings.get("keyed", True))
    place = _Split(split, keyed, resume, seed, training, placement)
    if source is None:
        return place.loader(Nothing(place.sharding(1, drop_last=False)), None)
    if not batched and not isinstance(source, DataLoader):
        source = _as_loader(place, source, settings, shuffle)
    if isinstance(source, DataLoader):
        is_plain = type(source).__iter__ is DataLoader.__iter__
        is_indexed = not isinstance(source.dataset, IterableDataset)
        if is_indexed and (is_plain or is_of_torch(source)):
            return _indexed(place, source)
        if is_plain:
            return _iterable(place, source)
    if type(source) in (list, tuple):
        return place.loader(ListSource(source, place.sharding(1, drop_last=False)), None)
    _refuse(split, source)
    return _stream(place, source, length_of(source))


def _refuse(split: str, source: Any) -> None:
    kind = type(source)
    if kind.__module__.startswith("accelerate."):
        raise DataError(
            f"dataloaders[{split!r}] went through accelerate's prepare(), which shards it and "
            "moves its batches, and so does the runner: hand over the loader itself"
        )
    if isinstance(source, Dataset) or not (hasattr(source, "__iter__") or callable(source)):
        raise DataError(
            f"dataloaders[{split!r}] is {kind.__qualname__}, which gives no batches: hand over a "
            "DataLoader, a list of batches or an iterable; datasets belong in datasets="
        )


def _as_loader(
    place: _Split, dataset: Any, settings: Mapping[str, Any], shuffle: bool
) -> DataLoader[Any]:
    """The `DataLoader` that a user would make of it."""
    arguments = {key: value for key, value in settings.items() if key not in OWN_SETTINGS}
    arguments.setdefault("pin_memory", place.placement.device.type == "cuda")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        if not hasattr(dataset, "__iter__"):
            kind = type(dataset).__qualname__
            raise DataError(f"datasets[{place.name!r}] is {kind}, without __getitem__ and __iter__")
        if not isinstance(dataset, IterableDataset):
            dataset = IterableReader(dataset, place.own_seed, place.keyed)
    elif not {"sampler", "batch_sampler"} & arguments.keys():
        arguments.setdefault("shuffle", shuffle)
    try:
        return DataLoader(dataset, **arguments)
    except (TypeError, ValueError) as error:
        raise DataError(f"the dataloader of {place.name!r} cannot be made: {error}") from error


def _indexed(place: _Split, given: DataLoader[Any]) -> Loader:
    sampler: Any = given.sampler if given.batch_sampler is None else given.batch_sampler
    batched, size, drop_last, batch_size = given.batch_sampler is not None, 1, False, None
    samples = isinstance(sampler, BatchSampler) and is_of_torch(sampler)
    if samples:
        size = batch_size = sampler.batch_size
        drop_last, sampler = sampler.drop_last, sampler.sampler
    default = default_collate if batched else default_convert
    source = IndexedSource(
        given.dataset,
        order_of(sampler, place.own_seed),
        place.sharding(size, drop_last),
        batched=None if samples else batched,
        collate_fn=None if given.collate_fn is default else given.collate_fn,
        keyed=place.keyed,
        seed=place.own_seed,
        options=_options(place, given),
    )
    return place.loader(source, batch_size)


def _iterable(place: _Split, given: DataLoader[Any]) -> Loader:
    dataset: Any = given.dataset
    if isinstance(dataset, IterableReader):
        dataset = dataset.dataset
    size, generator = given.batch_size, torch.Generator()
    collate = given.collate_fn
    ours: DataLoader[Any] = DataLoader(
        IterableReader(dataset, place.own_seed, place.keyed),
        batch_size=size,
        drop_last=given.drop_last,
        collate_fn=collate if size is None else CountingCollate(collate),
        generator=generator,
        **_options(place, given),
    )
    length = None if given.num_workers else length_of(dataset)  # workers each have a last batch
    if length is not None and size is not None:
        length = length // size if given.drop_last else -(-length // size)
    return _stream(place, ours, length, dataset, generator)


def _stream(
    place: _Split,
    batches: Any,
    length: int | None,
    dataset: Any = None,
    generator: torch.Generator | None = None,
) -> Loader:
    source = StreamSource(
        batches,
        place.sharding(1, drop_last=place.training),
        keyed=place.keyed,
        replays=place.resume == "replay",
        seed=place.own_seed,
        length=length,
        dataset=dataset,
        generator=generator,
        counted=generator is not None and batches.batch_size is not None,
    )
    return place.loader(source, getattr(batches, "batch_size", None))


def _options(place: _Split, given: DataLoader[Any]) -> dict[str, Any]:
    """The arguments that say how a `DataLoader` reads, but not what."""
    options = {name: getattr(given, name) for name in WORKER_SETTINGS}
    options["pin_memory"] = given.pin_memory and place.placement.device.type == "cuda"
    if given.num_workers:
        options["worker_init_fn"] = WorkerInit(given.worker_init_fn)
    return options
