"""The keys that the library itself reads, each declared once: type, default, help, identity."""

from __future__ import annotations

from collections.abc import MutableMapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from danling.config.fields import Field, Minimum, NotInRunId, declare_fields

if TYPE_CHECKING:
    Options: TypeAlias = Any
else:
    Options = MutableMapping[str, Any]

__all__ = ["SETTINGS", "STATE_KEYS", "WORKER_KEYS", "Settings", "near_miss"]


STATE_KEYS = (
    "epoch",
    "global_step",
    "experiment_id",
    "experiment_uuid",
    "run_id",
    "run_uuid",
    "uuid",
    "id",
    "name",
)
"""Keys that tell the state of a run: the runner binds them, nobody sets them."""

_ON_DEVICES = NotInRunId("cpu", "device_placement", "log_with", "project_dir")
WORKER_KEYS = (
    "multiprocessing_context",
    "num_workers",
    "persistent_workers",
    "pin_memory",
    "pin_memory_device",
    "prefetch_factor",
    "timeout",
)
"""Keys of `dataloader` that say how batches are read, and change nothing in them."""


class Settings:
    """The well-known keys; a comment beside or above a key is its text in `--help`."""

    # folder that holds the directories of all runs
    project_root: Annotated[str, NotInRunId] = "experiments"
    experiment_name: Annotated[str, NotInRunId] = "danling"  # first part of the run's name
    run_name: Annotated[str, NotInRunId] = "run"  # second part of the run's name
    # folder of the checkpoints in the run's directory
    checkpoint_dir_name: Annotated[str, NotInRunId] = "checkpoints"
    # seed of all random numbers; one is drawn and recorded where none is given
    seed: Annotated[int | None, Minimum(0)] = None
    deterministic: bool = False  # only algorithms that give the same bits every time
    max_epochs: Annotated[int | None, Minimum(0)] = None  # epochs to train for
    max_steps: Annotated[int | None, Minimum(0)] = None  # optimizer steps to train for
    # result that tells the best checkpoint, such as val/accuracy (default: val/loss)
    monitor: str | None = None
    monitor_mode: Literal["min", "max"] = "min"  # whether a smaller or a larger result is better
    # optimizer steps between two rows of the log
    log_interval: Annotated[int, NotInRunId, Minimum(1)] = 50
    # optimizer steps between two agreements of the processes, on stopping for example
    poll_interval: Annotated[int, NotInRunId, Minimum(1)] = 10
    evaluate_every: str | None = "1 epoch"  # how often train() evaluates, such as 500 steps
    scheduler_interval: Literal["step", "epoch"] = "step"  # when the scheduler steps
    max_grad_norm: Annotated[float | None, Minimum(0)] = None  # clips the norm of the gradients
    max_grad_value: Annotated[float | None, Minimum(0)] = None  # clips each gradient value
    # checkpoints of a model that is sharded: files of each process, or one (default: Accelerate's)
    state_dict_type: Annotated[Literal["sharded", "full"] | None, NotInRunId] = None
    # arguments of accelerate.Accelerator
    accelerate: Annotated[Options, _ON_DEVICES] = {}  # noqa: RUF012
    # arguments of the data loaders; a mapping under a split's name is for that split
    dataloader: Annotated[Options, NotInRunId(*WORKER_KEYS)] = {}  # noqa: RUF012
    # auto, latest, best or a checkpoint: the run to go on with
    resume: Annotated[bool | str, NotInRunId] = False
    # whether a run may go on with another number of processes
    elastic: Annotated[bool, NotInRunId] = False


SETTINGS: dict[str, Field] = declare_fields(Settings, {}, ())
"""The fields of the well-known keys by name."""

# `epochs` and `grad_norm` are what people write for `max_epochs` and `max_grad_norm`
_NEAR = {name: name for name in SETTINGS} | {name.removeprefix("max_"): name for name in SETTINGS}


def near_miss(key: str) -> str | None:
    """The well-known key that a key was probably meant to be.

    Example:
        >>> near_miss("log_intervall"), near_miss("epochs"), near_miss("hidden_size")
        ('log_interval', 'max_epochs', None)
    """
    close = get_close_matches(key, _NEAR, n=1, cutoff=0.8)
    return _NEAR[close[0]] if close else None
