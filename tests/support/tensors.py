"""Comparison of tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def are_identical(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    """Whether there are as many tensors, at least one, and each is bit for bit its counterpart."""
    pairs = [*zip(one, other, strict=True)]
    return bool(pairs) and all(torch.equal(*pair) for pair in pairs)
