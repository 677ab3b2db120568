"""Optimizer steps: backward, unscale, clip, optimizer, scheduler.

Begin with `optimization`. It may import `distributed`, `metrics`, `checkpoint` and `errors`.

- `optimization`: `Optimization`, one step after the other for all optimizers of a runner.
- `models`: several models, each placed, wrapped and called by itself.
- `replicas`: processes that each have the whole of what is trained, and keep it equal.
- `together`: optimizers that step together.
- `schedules`: `Schedule`, which scheduler moves when, and the schedules that have a name.
- `movement`: how schedules move with steps, epochs and evaluations.
- `closures`: steps of optimizers that evaluate the model themselves, as often as they like.
- `checks`: what is refused where an optimizer or a scheduler is handed over.
- `deepspeed`: the same where an engine of DeepSpeed holds gradients and weights.
- `hyperparameters`: what optimizers and schedulers were made with, so that new values win.
- `trial`: steps that are tried before a training, and undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from danling import lazy_names

if TYPE_CHECKING:
    from danling.optimization.optimization import Optimization
    from danling.optimization.schedules import Schedule, make_scheduler

__all__ = ["Optimization", "Schedule", "make_scheduler"]

__getattr__ = lazy_names(
    __name__,
    {"Optimization": "optimization", "Schedule": "schedules", "make_scheduler": "schedules"},
)
