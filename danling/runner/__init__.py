"""The runners: the loop that fires hooks, and what a runner is on any platform.

Begin with `accelerate`: the loop, in the order in which it is read. It may import every other
package; no other package imports this one, but `danling.testing`.

- `accelerate`: `AccelerateRunner`, the loop on Hugging Face Accelerate.
- `base`: `BaseRunner`, a run without a platform: identity, results, hooks, opening and closing.
- `callbacks`: the list of callbacks, and which of them hears which hook.
- `configured`: the callbacks that a configuration names, with their arguments.
- `assigned`: what is assigned after a runner was prepared, and is used from the next epoch on.
- `progress`: what is open in a training: the training, an epoch, a batch; counters and the clock.
- `limits`: the epochs and steps of a training at most and at least; a run that keeps nothing.
- `stopping`: a stop that any process asks for, and what all of them agree on.
- `batches`: the batches of an epoch with their accumulation windows.
- `steps`: what a step returns, and the default steps.
- `habits`: what is handed over or asked by the habits of another library.
- `evaluation`: the mode of an evaluation, and the outputs of a prediction.
- `members`: modules and objects with a state besides the model, and what training changes of them.
- `state`: what is in a checkpoint, and how a runner takes it back.
- `compatibility`: whether a checkpoint fits a runner, before anything is changed.
- `resume`: which checkpoint a run goes on from, and what is said about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from danling import lazy_names

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner
    from danling.runner.base import BaseRunner

__all__ = ["AccelerateRunner", "BaseRunner"]

__getattr__ = lazy_names(__name__, {"AccelerateRunner": "accelerate", "BaseRunner": "base"})
