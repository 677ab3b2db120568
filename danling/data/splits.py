"""The data of a runner by split, and the loaders that are made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from danling.data.loader import Loader
from danling.distributed.world import World
from danling.errors import DataError

if TYPE_CHECKING:
    pass

__all__ = ["check_samples"]


def check_samples(world: World, loader: Loader) -> None:
    """Refuse data that is not the same on every process, each of which takes its share of it.

    Raises:
        DataError: The number of samples differs.
    """
    samples = world.gather(loader.samples)
    if len(set(samples)) > 1:
        found = ", ".join(f"{number} on rank {rank}" for rank, number in enumerate(samples))
        raise DataError(
            f"the samples of {loader.split!r} differ ({found}): hand all of the data to every "
            "process, the runner gives each its share"
        )
