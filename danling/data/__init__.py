"""Data: how the batches of a split are made, in an order that is a function of seed and epoch.

Begin with `splits`, then `loader`. It may import `distributed`, `config`, `seed`, `transfer`
and `errors`.

- `splits`: the data of a runner by split, and the loaders made of it.
- `prepare`: how the loader of a split is made: of a dataset, or of what the user made of one.
- `loader`: `Loader`, batches as a pure function of (seed, epoch, position).
- `combined`: several splits that are read together, in one of four modes.
- `limits`: how much of a split is read: limits, endless streams, a training without data.
- `sources`: where batches come from: a dataset read by index, a list of batches, a stream.
- `sampling`: which samples a batch is made of, and each process's share of them.
- `permutation`: number i of a shuffled order, without the others.
- `readers`: how a dataset is read, with what it draws keyed by (seed, epoch, position).
- `randomness`: whether reading drew from a generator, and reading under a key.
- `generators`: the random generators that a dataset or a sampler keeps for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from danling import lazy_names

if TYPE_CHECKING:
    from danling.data.loader import Loader

__all__ = ["Loader"]

__getattr__ = lazy_names(__name__, {"Loader": "loader"})
