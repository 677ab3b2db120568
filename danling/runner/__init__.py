"""The runners: the loop that fires hooks, and what a runner is on any platform.

Begin with `accelerate`: the loop, in the order in which it is read. It may import every other
package; no other package imports this one, but `danling.testing`.

- `accelerate`: `AccelerateRunner`, the loop on Hugging Face Accelerate.
- `base`: `BaseRunner`, a run without a platform: identity, results, hooks, opening and closing.
- `parts`: how model and optimizers are placed, and what is assigned after that.
- `members`: modules and objects with a state besides the model, and what training changes of them.
- `callbacks`: the callbacks of a runner, which hooks each overrides, and those of the config.
- `progress`: what is open in a training: the training, an epoch, a batch; counters and the clock.
- `length`: how long a training is, in batches, steps and epochs.
- `stopping`: when a training ends: its limits, and a stop that all processes agree on.
- `batches`: the batches of an epoch with their accumulation windows.
- `steps`: what a step returns, and the default steps.
- `evaluation`: when an evaluation is due, and what happens in it and in a prediction.
- `state`: what is in a checkpoint, and how a runner takes it back.
- `resume`: which checkpoint a run goes on from, whether it fits, and what is said about it.
- `habits`: what is handed over or asked by the habits of another library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from danling import lazy_names

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner
    from danling.runner.base import BaseRunner

__all__ = ["AccelerateRunner", "BaseRunner"]

__getattr__ = lazy_names(__name__, {"AccelerateRunner": "accelerate", "BaseRunner": "base"})
