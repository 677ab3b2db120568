"""Seeds, and the random generators of this process: derive, set, save and put them back."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist

from danling.errors import ConfigError

__all__ = [
    "derive",
    "isolated_rng",
    "rng_state",
    "seed_everything",
    "seed_streams",
    "set_rng_state",
]


class SeededConfig(Protocol):
    """What `seed_everything` needs of a config."""

    @property
    def seed(self) -> Any:
        """The seed, or None."""

    def record_drawn_seed(self, seed: int) -> None:
        """Take note of a seed that the user did not choose."""


def derive(seed: int, *words: int | str) -> int:
    """A number of 63 bits that depends on the seed and on every word, and on nothing else.

    It is the first eight bytes of BLAKE2b over the `repr` of the tuple, so it is the same on every
    machine and in every process, and numbers of neighbouring words have nothing in common.

    Example:
        >>> derive(0, "order", 3)
        8244215730568551301
        >>> derive(0, "order", 3) == derive(0, "order", 4)
        False
    """
    digest = hashlib.blake2b(repr((int(seed), *words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(config: int | SeededConfig, rank: int = 0) -> int:
    """Seed python, numpy and torch on all devices; draw a seed where there is none.

    Args:
        config: A seed, or a config whose `seed` is used. A missing one is drawn and handed to
            `config.record_drawn_seed`. `config.deterministic` asks torch for algorithms that give
            the same bits every time.
        rank: Of this process. Rank 0 is seeded with the seed itself, the others with
            `derive(seed, "rank", rank)`. Leave it out before a model is built: all ranks then
            build the same weights.

    Returns:
        The seed of the run, the same on every rank.

    Raises:
        ConfigError: Several processes would each draw a seed of their own.

    Example:
        >>> seed_everything(7)
        7
        >>> first = torch.rand(1)
        >>> seed_everything(7)
        7
        >>> torch.equal(first, torch.rand(1))
        True
    """
    if isinstance(config, int):
        seed = config
    else:
        seed = _seed_of(config)
        if getattr(config, "deterministic", False):
            _be_deterministic()
    stream = seed if rank == 0 else derive(seed, "rank", rank)
    random.seed(stream)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(stream % 2**32)
    torch.manual_seed(stream)
    return seed


def seed_streams(key: int) -> None:
    """Seed python, numpy where it is imported, and torch on the CPU, in about 6 us.

    Torch and numpy run the same algorithm on 32 bits of their seed, so each gets its own half.
    """
    random.seed(key)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(key >> 32)
    torch.default_generator.manual_seed(key)


def rng_state(*, devices: bool = True) -> dict[str, Any]:
    """The state of every generator of this process, of values that `weights_only` loads.

    Args:
        devices: Whether the generators of CUDA devices are in it.

    Example:
        >>> state = rng_state()
        >>> first = random.random()
        >>> set_rng_state(state)
        []
        >>> first == random.random()
        True
    """
    return {
        "python": random.getstate(),
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if devices and torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> list[str]:
    """Put back what `rng_state` took.

    Returns:
        Why the state of the process is not exactly the saved one; empty when it is.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(state["torch"])
    reasons = _set_numpy_state(state["numpy"])
    devices = torch.cuda.device_count()
    if len(state["cuda"]) != devices:
        reasons.append(
            f"random state of {len(state['cuda'])} CUDA devices was saved, now there are {devices}"
        )
    for device, saved in zip(range(devices), state["cuda"], strict=False):
        torch.cuda.set_rng_state(saved, device)
    return reasons


@contextmanager
def isolated_rng(*, devices: bool = True) -> Iterator[None]:
    """Put every generator of this process back when the block ends, however it ends.

    It costs about 50 us, nearly all of it for numpy's state.

    Args:
        devices: Whether the generators of CUDA devices are put back as well.

    Example:
        >>> state = random.getstate()
        >>> with isolated_rng():
        ...     _ = random.random()
        >>> random.getstate() == state
        True
    """
    python, cpu = random.getstate(), torch.default_generator.get_state()
    numpy = sys.modules.get("numpy")
    legacy = None if numpy is None else numpy.random.get_state(legacy=False)
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no types here
    cuda = torch.cuda.get_rng_state_all() if devices and in_use else []
    try:
        yield
    finally:
        random.setstate(python)
        torch.default_generator.set_state(cpu)
        if numpy is not None and legacy is not None:
            legacy["state"]["key"] = legacy["state"]["key"].tolist()  # a list is set 20x faster
            numpy.random.set_state(legacy)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _seed_of(config: SeededConfig) -> int:
    if config.seed is not None:
        return int(config.seed)
    drawn = [secrets.randbits(31)]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(drawn, src=0)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "config.seed is missing, and each of the "
            f"{os.environ['WORLD_SIZE']} processes would draw a different one: set config.seed, "
            "or call seed_everything after the process group exists (a runner makes it)"
        )
    config.record_drawn_seed(drawn[0])
    return drawn[0]


def _be_deterministic() -> None:
    # cuBLAS reads it when its first handle is made, so it only helps before the first CUDA matmul.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def _numpy_state() -> dict[str, Any] | None:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    state = numpy.random.get_state(legacy=False)
    return {
        "algorithm": str(state["bit_generator"]),
        "key": torch.tensor(state["state"]["key"].tolist(), dtype=torch.int64),
        "pos": int(state["state"]["pos"]),
        "has_gauss": int(state["has_gauss"]),
        "cached_gaussian": float(state["gauss"]),
    }


def _set_numpy_state(state: Mapping[str, Any] | None) -> list[str]:
    if state is None:
        return []
    try:
        import numpy
    except ImportError:
        return ["numpy's random state was saved, and numpy is not installed here"]
    numpy.random.set_state(
        {
            "bit_generator": state["algorithm"],
            "state": {"key": state["key"].tolist(), "pos": state["pos"]},
            "has_gauss": state["has_gauss"],
            "gauss": state["cached_gaussian"],
        }
    )
    return []
