"""Schedules: which scheduler moves when, and the ones that have a name.

A `Schedule` says how often a scheduler moves, and what it watches. The schedules with a name are
factors by which the learning rate is multiplied, in a `LambdaLR` of torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, get_args

from torch.optim import Optimizer, lr_scheduler

from danling.errors import ConfigError, did_you_mean

__all__ = [
    "Constant",
    "Cosine",
    "Factor",
    "InverseSquareRoot",
    "Linear",
    "Polynomial",
    "Schedule",
    "WarmupStableDecay",
    "check_name",
    "make_scheduler",
]

Interval = Literal["step", "epoch", "evaluation"]


@dataclass(frozen=True)
class Schedule:
    """A scheduler, and when it moves.

    Attributes:
        scheduler: A scheduler of torch, timm or your own; or the name of one, which is made when
            the length of the training is known.
        interval: Whether it moves after a `"step"` of its optimizer, at the end of an `"epoch"` or
            after an `"evaluation"`; without it, as `config.scheduler_interval` says.
        frequency: It moves each time that so many intervals have passed.
        monitor: The value that it watches, as `"val/accuracy"`; without it, the one of the run.
        options: The arguments of a scheduler that has a name: see `make_scheduler`.

    Raises:
        ConfigError: A value cannot be meant.

    Example:
        >>> Schedule("cosine", options={"warmup": 0.1}).interval is None
        True
    """

    scheduler: Any
    interval: Interval | None = None
    frequency: int = 1
    monitor: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.interval is not None and self.interval not in get_args(Interval):
            near = did_you_mean(str(self.interval), get_args(Interval))
            raise ConfigError(f"the interval of a schedule is {self.interval!r}: {near}")
        if type(self.frequency) is not int or self.frequency < 1:
            raise ConfigError(
                f"the frequency of a schedule is {self.frequency!r}: it is a number of intervals, "
                "at least 1"
            )


# The schedules that have a name


@dataclass
class Factor:
    """The factor of the learning rate of an optimizer, after a number of moves.

    The factors are those of the schedules of the same names in Transformers.

    Attributes:
        total: The number of moves of the whole training.
        warmup: The moves in which the factor rises from 0 to 1; a share of `total` if below 1.
        final: The factor at the end, and after it.
        follows: Whether `total` is the length of the training, and changes with it.
    """

    total: int
    warmup: float = 0
    final: float = 0.0
    follows: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= self.total:
            raise ConfigError(
                f"a schedule of {self.total} moves has a warm-up of {self.warmup}: give a number "
                "of moves, or a share of them below 1"
            )

    def __call__(self, moves: int) -> float:
        """The factor after a number of moves."""
        warmup = moves_of(self.warmup, self.total)
        if moves < warmup:
            return moves / warmup
        done = min((moves - warmup) / max(1, self.total - warmup), 1.0)
        return self.final + (1.0 - self.final) * self.falling(done, moves)

    def falling(self, done: float, moves: int) -> float:
        """The way from 1 to 0 after the warm-up.

        Args:
            done: The share of the moves after the warm-up that are done, from 0 to 1.
            moves: The number of moves that are done.
        """
        return 1.0


@dataclass
class Constant(Factor):
    """A constant rate after the warm-up.

    Example:
        >>> [Constant(4, warmup=2)(n) for n in range(4)]
        [0.0, 0.5, 1.0, 1.0]
    """


@dataclass
class Linear(Factor):
    """A straight line to the end.

    Example:
        >>> [Linear(4)(n) for n in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def falling(self, done: float, moves: int) -> float:
        """The share that is left."""
        return 1.0 - done


@dataclass
class Cosine(Factor):
    """Waves of a cosine: by default one half, from 1 to the end (Loshchilov and Hutter, 2017).

    Attributes:
        cycles: The number of waves.

    Example:
        >>> [round(Cosine(4, final=0.1)(n), 3) for n in range(5)]
        [1.0, 0.868, 0.55, 0.232, 0.1]
    """

    cycles: float = 0.5

    def falling(self, done: float, moves: int) -> float:
        """The cosine."""
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * self.cycles * 2.0 * done)))


@dataclass
class Polynomial(Factor):
    """A power of the share that is left.

    Attributes:
        power: The exponent.

    Example:
        >>> [Polynomial(4, power=2.0)(n) for n in range(3)]
        [1.0, 0.5625, 0.25]
    """

    power: float = 1.0

    def falling(self, done: float, moves: int) -> float:
        """The power."""
        return float((1.0 - done) ** self.power)


@dataclass
class InverseSquareRoot(Factor):
    """One over the square root of the moves, from the end of the warm-up on (Vaswani, 2017).

    Attributes:
        timescale: The moves after which the factor is 1; without it the warm-up, or 10000.

    Example:
        >>> [round(InverseSquareRoot(9, warmup=1)(n), 3) for n in (0, 1, 4, 9)]
        [0.0, 1.0, 0.5, 0.333]
    """

    timescale: int | None = None

    def falling(self, done: float, moves: int) -> float:
        """The inverse of the root."""
        warmup = moves_of(self.warmup, self.total)
        scale = self.timescale or warmup or 10_000
        return 1.0 / math.sqrt((moves + scale - warmup) / scale)


@dataclass
class WarmupStableDecay(Factor):
    """A constant rate until the last moves, in which it falls (Hu and others, 2024).

    Attributes:
        decay: The last moves, in which the factor falls; a share of `total` if below 1.
        shape: The shape of the fall: `"linear"`, `"cosine"` or `"1-sqrt"`.

    Example:
        >>> [WarmupStableDecay(8, warmup=2, decay=2)(n) for n in range(9)]
        [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    """

    decay: float = 0.2
    shape: Literal["linear", "cosine", "1-sqrt"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in ("linear", "cosine", "1-sqrt"):
            near = did_you_mean(str(self.shape), ["linear", "cosine", "1-sqrt"])
            raise ConfigError(f"the shape of a decay is {self.shape!r}: {near}")
        used = moves_of(self.warmup, self.total) + moves_of(self.decay, self.total)
        if self.decay < 0 or used > self.total:
            raise ConfigError(
                f"a schedule of {self.total} moves has a warm-up of {self.warmup} and a decay of "
                f"{self.decay}: together they are at most all moves"
            )

    def falling(self, done: float, moves: int) -> float:
        """1 until the decay begins."""
        decay = moves_of(self.decay, self.total)
        share = min((moves - (self.total - decay)) / max(1, decay), 1.0)
        if share <= 0:
            return 1.0
        if self.shape == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * share))
        return 1.0 - (share if self.shape == "linear" else math.sqrt(share))


FACTORS: Final[Mapping[str, type[Factor]]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "polynomial": Polynomial,
    "inverse_sqrt": InverseSquareRoot,
    "warmup_stable_decay": WarmupStableDecay,
}
"""The schedules that have a name here; a class of `torch.optim.lr_scheduler` has its own."""

_LENGTHS = ("total_steps", "T_max")
_TORCH = lr_scheduler.LRScheduler


def moves_of(value: float, total: int) -> int:
    """A number of moves, which may be given as a share of all."""
    return round(value * total) if 0 < value < 1 else int(value)


def make_scheduler(
    optimizer: Optimizer, name: str, total: int | Callable[[], int], **options: Any
) -> Any:
    """A scheduler by its name: one of those here, or a class of `torch.optim.lr_scheduler`.

    Args:
        optimizer: The optimizer whose learning rates it moves.
        name: `"constant"`, `"linear"`, `"cosine"`, `"polynomial"`, `"inverse_sqrt"`,
            `"warmup_stable_decay"`, or the name of a class, as `"OneCycleLR"`.
        total: The number of moves of the training; or what gives it if it is asked for, and again
            when a training is made longer. In torch's classes it is `total_steps` or `T_max`.
        **options: The other arguments.

    Raises:
        ConfigError: There is none of that name, or it has no such argument.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> make_scheduler(optimizer, "cosine", total=100, warmup=10).get_last_lr()
        [0.0]
    """
    check_name(name)
    is_factor = name in FACTORS
    kind: Any = FACTORS[name] if is_factor else getattr(lr_scheduler, name)
    known = [entry.name for entry in fields(kind)] if is_factor else _arguments(kind)
    if unknown := sorted(options.keys() - set(known)):
        near = did_you_mean(unknown[0], known)
        raise ConfigError(f"the schedule {name!r} has no {unknown[0]!r}: {near}")
    length = "total" if is_factor else next((key for key in _LENGTHS if key in known), None)
    if length is not None and length not in options and "epochs" not in options:
        options[length] = total() if callable(total) else total
    if is_factor:
        options.setdefault("follows", callable(total))
    try:
        if is_factor:
            return lr_scheduler.LambdaLR(optimizer, kind(**options))
        return kind(optimizer, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the schedule {name!r} cannot be made: {error}") from error


def check_name(name: str) -> None:
    """Refuse the name of no schedule.

    Raises:
        ConfigError: There is none of that name.
    """
    kind = getattr(lr_scheduler, name, None)
    if name in FACTORS or (isinstance(kind, type) and issubclass(kind, _TORCH)):
        return
    raise ConfigError(
        f"there is no schedule {name!r}: {did_you_mean(name, FACTORS)}, or a class of "
        "torch.optim.lr_scheduler"
    )


def _arguments(kind: type) -> list[str]:
    return list(inspect.signature(kind).parameters)[1:]
