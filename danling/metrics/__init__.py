"""Metrics and results: values as they come, their means, and which result is the best.

Begin with `logbook`. It may import `distributed`, `transfer` and `errors`.

- `metric`: functions of (output, target), and objects with `update`, `compute` and `reset`.
- `averages`: exact means of values that stay on their device until a number is needed.
- `delayed`: scalars that come to the host some steps later, so that nothing waits for a device.
- `logbook`: what a training logs, and the means of its epochs and log intervals.
- `history`: the results of a run, and which of them is the best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from danling import lazy_names

if TYPE_CHECKING:
    from danling.metrics.history import History, is_better

__all__ = ["History", "is_better"]

__getattr__ = lazy_names(__name__, {"History": "history", "is_better": "history"})
