"""Seeds and random generators: seeds are derived and set, states are taken and put back.

The state of a generator is taken and put back often: around every batch of a dataset that draws,
and around whatever must leave no trace. The public functions of python and numpy build lists of 625
numbers for it, which takes 7 and 23 us. So the 2500 bytes of a Mersenne Twister are copied where
they lie. Where they lie is found by looking for a known state, and where it is not found (another
implementation of Python or numpy) the public functions are used.
"""

from __future__ import annotations

import _random
import ctypes
import hashlib
import os
import random
import secrets
import struct
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Protocol

import torch
import torch.distributed as dist

from danling.errors import ConfigError

__all__ = [
    "Flags",
    "GeneratorState",
    "ask_for_determinism",
    "derive",
    "generator_state",
    "has_seeded",
    "isolated_rng",
    "noted_flags",
    "process_generators",
    "put_flags_back",
    "rng_state",
    "seed_everything",
    "seed_streams",
    "set_rng_state",
]


class SeededConfig(Protocol):
    """The keys of a config that `seed_everything` needs."""

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
        rank: The rank of this process. Rank 0 is seeded with the seed itself, the others with
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
    global _last_seeding
    _last_seeding = None
    if isinstance(config, int):
        seed = config
    else:
        seed = _seed_of(config)
        put_flags_back()
        ask_for_determinism(config)
        with suppress(TypeError):  # of an object that cannot be referred to nobody will ask
            _last_seeding = weakref.ref(config), seed
    stream = seed if rank == 0 else derive(seed, "rank", rank)
    random.seed(stream)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(stream % 2**32)
    torch.manual_seed(stream)
    return seed


_last_seeding: tuple[weakref.ref[Any], int] | None = None
"""The config that `seed_everything` was called with last, and the seed that it had."""


def has_seeded(config: Any) -> bool:
    """Whether the streams go on from a seeding by this very config; it is told once.

    A runner that is made with it need not seed again, which would give its dropout the numbers that
    have made the weights. The next one does.

    Example:
        >>> from danling import Config
        >>> config = Config(seed=3)
        >>> seed_everything(config)
        3
        >>> has_seeded(config), has_seeded(config)
        (True, False)
    """
    global _last_seeding
    last, _last_seeding = _last_seeding, None
    if last is None or config is None:
        return False
    seeded, seed = last[0](), last[1]
    return seeded is not None and seeded is config and bool(seed == seeded.seed)


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

    It costs about 3 us where no device is in use.

    Args:
        devices: Whether the generators of CUDA devices are put back as well.

    Example:
        >>> state = random.getstate()
        >>> with isolated_rng():
        ...     _ = random.random()
        >>> random.getstate() == state
        True
    """
    generators = process_generators()
    states = [generator.state() for generator in generators]
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no types here
    cuda = torch.cuda.get_rng_state_all() if devices and in_use else []
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.put_back(state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


# The state of one generator


class GeneratorState(Protocol):
    """The state of one generator, whatever its library.

    Attributes:
        library: The library that the generator is of: `"python"`, `"numpy"` or `"torch"`.
    """

    library: str

    def state(self) -> Any:
        """The state as it is now."""

    def moved(self, state: Any) -> bool:
        """Whether the state is another one than this: then something was drawn."""

    def put_back(self, state: Any) -> None:
        """Set the state of the generator to this one."""

    def seed(self, seed: int) -> None:
        """Seed the generator with a number of 63 bits."""


def generator_state(generator: Any) -> GeneratorState:
    """The object that takes, compares, puts back and seeds the state of a generator.

    Args:
        generator: A `random.Random`, `torch.Generator`, `numpy.random.Generator` or
            `numpy.random.RandomState`.

    Example:
        >>> mine = random.Random(3)
        >>> handle = generator_state(mine)
        >>> before = handle.state()
        >>> first = mine.random()
        >>> handle.moved(before)
        True
        >>> handle.put_back(before)
        >>> mine.random() == first
        True
    """
    if isinstance(generator, torch.Generator):
        return _Torch(generator)
    if not isinstance(generator, random.Random):
        return _RandomState(generator) if hasattr(generator, "seed") else _NumpyGenerator(generator)
    is_plain = type(generator).getstate is random.Random.getstate
    if is_plain and _index_in_random() is not None:
        return _PythonInPlace(generator)
    return _Python(generator)


def process_generators() -> tuple[GeneratorState, ...]:
    """The generators of this process: of python, of torch on the CPU, and of numpy if imported.

    The same tuple is returned until numpy is imported.
    """
    return _process_generators("numpy" in sys.modules)


@cache
def _process_generators(with_numpy: bool) -> tuple[GeneratorState, ...]:
    python: random.Random = random._inst
    generators = [generator_state(python), generator_state(torch.default_generator)]
    if with_numpy:
        import numpy

        generators.append(generator_state(numpy.random.mtrand._rand))
    return tuple(generators)


class _Python:
    """A `random.Random` by its public methods."""

    library = "python"

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator

    def state(self) -> Any:
        return self._generator.getstate()

    def moved(self, state: Any) -> bool:
        return bool(self.state() != state)

    def put_back(self, state: Any) -> None:
        self._generator.setstate(state)

    def seed(self, seed: int) -> None:
        self._generator.seed(seed)


class _PythonInPlace(_Python):
    """A `random.Random` whose state is copied where it lies."""

    def __init__(self, generator: random.Random) -> None:
        super().__init__(generator)
        self._memory = _memory(id(generator) + (_index_in_random() or 0), _TWISTER)

    def state(self) -> Any:
        generator: Any = self._generator  # the second number of gauss() waits beside the state
        return self._memory.tobytes(), generator.gauss_next

    def moved(self, state: Any) -> bool:
        generator: Any = self._generator
        return bool(self._memory.tobytes() != state[0] or generator.gauss_next != state[1])

    def put_back(self, state: Any) -> None:
        generator: Any = self._generator
        self._memory[:], generator.gauss_next = state


class _Torch:
    """A `torch.Generator`."""

    library = "torch"

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._bytes = ctypes.c_char * generator.get_state().numel()

    def state(self) -> Any:
        return self._generator.get_state()

    def moved(self, state: Any) -> bool:
        now = self._generator.get_state()
        bytes_at = self._bytes.from_address  # torch.equal() takes 2 us
        return bool(bytes_at(now.data_ptr()).raw != bytes_at(state.data_ptr()).raw)

    def put_back(self, state: Any) -> None:
        self._generator.set_state(state)

    def seed(self, seed: int) -> None:
        self._generator.manual_seed(seed)


class _NumpyGenerator:
    """A `numpy.random.Generator`."""

    library = "numpy"

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def state(self) -> Any:
        return _without_arrays(self._generator.bit_generator.state)

    def moved(self, state: Any) -> bool:
        return bool(self.state() != state)

    def put_back(self, state: Any) -> None:
        self._generator.bit_generator.state = state

    def seed(self, seed: int) -> None:
        bits = self._generator.bit_generator
        bits.state = type(bits)(seed).state


class _RandomState:
    """A `numpy.random.RandomState`, such as the global generator of numpy."""

    library = "numpy"

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._open()

    def _open(self) -> None:
        """Find the state in memory; numpy.random.set_bit_generator() takes another place."""
        self._bits = bits = self._generator._bit_generator
        span = _gauss_in_random_state()
        self._memory: list[memoryview] | None = None
        if span is not None and type(bits).__name__ == "MT19937":
            twister = _memory(bits.ctypes.state_address, _TWISTER)
            self._memory = [twister, _memory(id(self._generator) + span[0], span[1])]

    def state(self) -> Any:
        if self._generator._bit_generator is not self._bits:
            self._open()
        if self._memory is None:
            return _without_arrays(self._generator.get_state(legacy=False))
        twister, gauss = self._memory
        return twister.tobytes(), gauss.tobytes()

    def moved(self, state: Any) -> bool:
        return bool(self.state() != state)

    def put_back(self, state: Any) -> None:
        if isinstance(state, dict):
            self._generator.set_state(state)
        elif self._memory is not None:
            for memory, part in zip(self._memory, state, strict=True):
                memory[:] = part

    def seed(self, seed: int) -> None:
        self._generator.seed([seed & 0xFFFFFFFF, seed >> 32])


def _without_arrays(state: Any) -> Any:
    """A state with lists in place of arrays: `==` compares it, and numpy sets it 20x faster."""
    if isinstance(state, dict):
        return {key: _without_arrays(value) for key, value in state.items()}
    return state.tolist() if hasattr(state, "tolist") else state


_TWISTER = 4 * 625  # bytes of a Mersenne Twister: 624 words and the number of those that are used


def _memory(address: int, size: int) -> memoryview:
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


@cache
def _index_in_random() -> int | None:
    """The place of the Mersenne Twister in a `random.Random`; None where it is not found."""
    if sys.implementation.name != "cpython":
        return None
    probe = random.Random(1)
    *words, index = probe.getstate()[1]
    image = ctypes.string_at(id(probe), _random.Random.__basicsize__)
    found = image.find(struct.pack("=i624I", index, *words))
    return found if found > 0 else None


@cache
def _gauss_in_random_state() -> tuple[int, int] | None:
    """The offset of a gaussian pair's second number in a `RandomState`, and the state's size.

    It is a flag and a double. None where they are not found.
    """
    if sys.implementation.name != "cpython":
        return None
    import numpy

    probe = numpy.random.RandomState(1)
    state = probe.get_state(legacy=False)
    images = []
    for flag, gauss in ((0, 0.0), (1, 1.1)):
        probe.set_state(state | {"has_gauss": flag, "gauss": gauss})
        images.append(ctypes.string_at(id(probe), type(probe).__basicsize__))
    changed = [at for at, (one, two) in enumerate(zip(*images, strict=True)) if one != two]
    double = images[1].find(struct.pack("=d", 1.1))
    start, end = min(changed, default=0), max(changed, default=0) + 1
    is_found = 0 < start < double < end <= start + 16 and double + 8 <= start + 16
    return (start, double + 8 - start) if is_found else None


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


def ask_for_determinism(config: SeededConfig) -> None:
    """Ask torch for algorithms that give the same bits every time, if the config says so."""
    if getattr(config, "deterministic", False):
        with noted_flags():
            _be_deterministic()


def _be_deterministic() -> None:
    # cuBLAS reads it when its first handle is made, so it only helps before the first CUDA matmul.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


# The flags of torch that a configuration changes, and the next one would inherit


_CHANGED: dict[str, tuple[Any, Any]] = {}
"""The flags that a configuration has changed: the value of before, and the one that it set."""


def torch_flags() -> dict[str, Any]:
    """The flags of this process that decide how exactly, and how fast, torch computes."""
    flags = {
        "algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
    }
    with suppress(RuntimeError):  # it was set by torch's newer names, and these are the user's own
        flags["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return flags


def set_torch_flags(flags: Mapping[str, Any]) -> None:
    """Set the flags whose values are different now."""
    now = torch_flags()
    for name in now.keys() & flags.keys():
        if now[name] == flags[name]:
            continue
        if name == "algorithms":
            mode, warn_only = flags[name]
            torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        elif name == "tf32":
            torch.backends.cuda.matmul.allow_tf32 = flags[name]
        else:
            setattr(torch.backends.cudnn, name.partition(".")[2], flags[name])


@contextmanager
def noted_flags() -> Iterator[None]:
    """Take note of the flags that change in the block, so that they can be put back."""
    before = torch_flags()
    try:
        yield
    finally:
        now = torch_flags()
        for name in (name for name in now.keys() & before.keys() if now[name] != before[name]):
            _CHANGED[name] = (_CHANGED.get(name, (before[name],))[0], now[name])


def put_flags_back() -> None:
    """Undo what a configuration of before has changed, and nobody has changed again since.

    Example:
        >>> with noted_flags():
        ...     torch.backends.cudnn.benchmark = True
        >>> put_flags_back()
        >>> torch.backends.cudnn.benchmark
        False
    """
    if (last := Flags.in_force()) is not None:
        last.leave()
    now = torch_flags()
    set_torch_flags(
        {name: before for name, (before, ours) in _CHANGED.items() if now[name] == ours}
    )
    _CHANGED.clear()


class Flags:
    """The flags of torch under which one runner computes, whichever other one came between.

    Example:
        >>> first = Flags()
        >>> put_flags_back()
        >>> torch.backends.cudnn.benchmark = True
        >>> second = Flags()
        >>> first.enter()
        >>> torch.backends.cudnn.benchmark
        False
    """

    _last: weakref.ref[Flags] | None = None

    def __init__(self) -> None:
        self._values: dict[str, Any] | None = None  # while others are in force
        Flags._last = weakref.ref(self)

    @staticmethod
    def in_force() -> Flags | None:
        """The flags of the runner that was made, or has worked, last."""
        return None if Flags._last is None else Flags._last()

    def leave(self) -> None:
        """Keep the flags as they are now, for when they are in force again."""
        self._values, Flags._last = torch_flags(), None

    def enter(self) -> None:
        """Put them in force, where others are."""
        last = Flags.in_force()
        if last is self:
            return
        if last is not None:
            last.leave()
        set_torch_flags(self._values or {})
        Flags._last = weakref.ref(self)


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
