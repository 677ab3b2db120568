# ruff: noqa: RUF012 - a config copies its defaults
# mypy: disable-error-code="misc"
"""A config of every kind of field."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

from danling import Config
from danling.config import NotInRunId


class Act(Enum):
    RELU = "relu"
    GELU = "gelu"


class Optim(Config):
    name: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


class Training(Config):
    optim: Optim
    layers: list[int] = [64, 64]
    weights: dict[str, float] = {}
    act: Act = Act.RELU
    data: Path = Path("data")
    note: Annotated[str, NotInRunId] = ""
