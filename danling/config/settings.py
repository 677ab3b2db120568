"""The keys that the library itself reads, each declared once: type, default, help, identity."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from danling.config.fields import (
    Checked,
    Declared,
    Field,
    Minimum,
    NewDefault,
    NotInRunId,
    Shorthand,
    declare_fields,
    first_argument,
)
from danling.errors import ConfigError
from danling.files.json import short_repr

if TYPE_CHECKING:
    Options: TypeAlias = Any
else:
    Options = MutableMapping[str, Any]

__all__ = [
    "OPTIONS",
    "SETTINGS",
    "STATE_KEYS",
    "WORKER_KEYS",
    "Settings",
    "key_of_other_libraries",
    "near_miss",
]


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


def local_folder(value: str, path: str) -> str:
    """The folder with `~` and `$VARIABLES` replaced.

    Raises:
        ConfigError: It is empty, a URL, or uses a variable or a user that does not exist.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", value):
        raise ConfigError(
            f"{path}: {value!r} is a URL, and a run is written to a local folder; train into a "
            "local one, and mount or copy the bucket there"
        )
    folder = os.path.expanduser(os.path.expandvars(value))
    unknown = re.search(r"\$\w+|\$\{[^}]*\}", folder)
    if unknown:
        raise ConfigError(f"{path}: {value!r} uses {unknown[0]}, which is not set")
    if not folder or folder.startswith("~") or "\0" in folder:
        raise ConfigError(f"{path}: {value!r} is not a folder")
    return folder


def folder_name(value: str, path: str) -> str:
    """The name of a folder within the run's directory.

    Raises:
        ConfigError: It is empty or leads elsewhere.
    """
    if value in ("", ".", "..") or re.search(r"[/\\\0]", value):
        raise ConfigError(
            f"{path}: {value!r} is not the name of a folder in the run's directory; "
            "use one such as 'checkpoints', without / and not . or .."
        )
    return value


def amount(value: float | None, path: str) -> float | None:
    """A number of batches as an int, or a share of them as a float from 0 to 1.

    Raises:
        ConfigError: The value is neither.
    """
    if value is None or (isinstance(value, int) and value >= 0):
        return value
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    raise ConfigError(
        f"{path}: expected a number of batches or a share from 0.0 to 1.0, got {value}"
    )


def each_amount(values: Mapping[str, float], path: str) -> Mapping[str, float]:
    """Amounts of batches by split; see `amount`."""
    for split, value in values.items():
        amount(value, f"{path}.{split}")
    return values


def dev_run(value: int, path: str) -> int:
    """Whether only a few batches are run, or how many.

    Raises:
        ConfigError: The number is negative.
    """
    if value < 0:
        raise ConfigError(f"{path}: expected true, false or a number of batches, got {value}")
    return value


def callbacks_by_name(value: Any, path: str) -> Any:
    """Callbacks as one mapping of names to arguments, in whichever way they are written.

    Raises:
        ConfigError: An item of a list is no name and no name with arguments, or a name is there
            twice.

    Example:
        >>> callbacks_by_name(["timer", {"early_stopping": {"patience": 3}}], "callbacks")
        {'timer': {}, 'early_stopping': {'patience': 3}}
    """
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        items = [_named(item, f"{path}[{index}]") for index, item in enumerate(value)]
        names = [name for name, _ in items]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"{path}: {name!r} is there twice; give the second a name of its own, as "
                    f"{{second: {{callback: {name}, ...}}}}"
                )
        value = dict(items)
    if not isinstance(value, Mapping):
        return {} if value is None else value
    return {
        name: {} if options is None or options is True else options
        for name, options in value.items()
    }


def _named(item: Any, path: str) -> tuple[str, Any]:
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        return next(iter(item.items()))
    if isinstance(item, Mapping) and item:
        name, *others = map(str, item)
        raise ConfigError(
            f"{path}: {name!r} and {', '.join(map(repr, others))} are in one item; indent the "
            f"arguments of {name!r} below it, as {{{name}: {{{others[0]}: ...}}}}"
        )
    raise ConfigError(
        f"{path}: expected the name of a callback or {{name: {{argument: value}}}}, got "
        f"{short_repr(item)}"
    )


class Settings(Declared):
    """The well-known keys; a comment beside or above a key is its text in `--help`."""

    if TYPE_CHECKING:
        _mapping: Mapping[str, Any] | None = first_argument(default=None, kw_only=False)

    # folder that holds the directories of all runs
    project_root: Annotated[str, NotInRunId, Checked(local_folder)] = "experiments"
    experiment_name: Annotated[str, NotInRunId] = "danling"  # first part of the run's name
    run_name: Annotated[str, NotInRunId] = "run"  # second part of the run's name
    # folder of the checkpoints in the run's directory
    checkpoint_dir_name: Annotated[str, NotInRunId, Checked(folder_name)] = "checkpoints"
    # seed of all random numbers; one is drawn and recorded where none is given
    seed: Annotated[int | None, Minimum(0)] = None
    deterministic: bool = False  # only algorithms that give the same bits every time
    max_epochs: Annotated[int | None, Minimum(0)] = None  # epochs to train for
    max_steps: Annotated[int | None, Minimum(0)] = None  # optimizer steps to train for
    # epochs that are trained before anything may stop the training early
    min_epochs: Annotated[int | None, Minimum(0), NewDefault] = None
    # optimizer steps that are trained before anything may stop the training early
    min_steps: Annotated[int | None, Minimum(0), NewDefault] = None
    # batches of a split that are used, by the split's name: a number, or a share such as 0.1
    limit_batches: Annotated[dict[str, int | float], NewDefault, Checked(each_amount)] = {}  # noqa: RUF012
    # trains on so many batches of train again and again, or on such a share of them
    overfit_batches: Annotated[int | float | None, NewDefault, Checked(amount)] = None
    # runs so many batches of every split (true: one) to see whether a script works
    fast_dev_run: Annotated[bool | int, NewDefault, Checked(dev_run)] = False
    evaluate_at_start: Annotated[bool, NewDefault] = False  # evaluates before the first epoch
    # what gradients are averaged over in an accumulation window: its batches, or its samples
    accumulate: Annotated[Literal["batches", "samples"], NewDefault] = "batches"
    # seconds that reading the code of a run may take
    code_timeout: Annotated[float, NotInRunId, Minimum(0)] = 60.0
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
    # callbacks by name, each with its arguments; false leaves one out that would be there
    callbacks: Annotated[Options, NewDefault, Shorthand(callbacks_by_name)] = {}  # noqa: RUF012
    # auto, latest, best or a checkpoint: the run to go on with
    resume: Annotated[bool | str, NotInRunId] = False
    # whether a run may go on with another number of processes
    elastic: Annotated[bool, NotInRunId] = False


SETTINGS: dict[str, Field] = declare_fields(Settings, {}, ())
"""The fields of the well-known keys by name."""

OPTIONS: dict[str, Field] = {
    "config.accelerate.gradient_accumulation_steps": Field(
        "gradient_accumulation_steps", int, default=1, minimum=1
    ),
}
"""Fields of keys in the sections of well-known keys, by path."""

# `epochs` and `grad_norm` are what people write for `max_epochs` and `max_grad_norm`
_NEAR = {name: name for name in SETTINGS} | {name.removeprefix("max_"): name for name in SETTINGS}


_ELSEWHERE = {
    "accelerate.gradient_accumulation_steps": (
        "accumulate_grad_batches accumulation_steps grad_accum gradient_accumulation_steps"
    ),
    "accelerate.mixed_precision": "amp bf16 dtype fp16 mixed_precision precision use_amp",
    "dataloader.batch_size": (
        "batch_size per_device_train_batch_size train_batch_size train_micro_batch_size_per_gpu"
    ),
    "dataloader.drop_last": "dataloader_drop_last drop_last",
    "dataloader.num_workers": "dataloader_num_workers num_workers workers",
    "dataloader.pin_memory": "dataloader_pin_memory pin_memory",
    "evaluate_every": (
        "check_val_every_n_epoch eval_every eval_interval eval_steps eval_strategy "
        "val_check_interval val_interval"
    ),
    "log_interval": "log_every log_every_n_steps log_freq logging_steps print_freq",
    "max_epochs": "epochs max_epoch n_epochs nb_epochs num_epochs num_train_epochs",
    "max_grad_norm": "clip_grad clip_grad_norm grad_clip gradient_clip_val gradient_clipping",
    "max_grad_value": "clip_grad_value clipvalue",
    "max_steps": "iterations max_iters max_iterations num_steps total_steps train_steps",
    "monitor": "metric_for_best_model",
    "monitor_mode": "greater_is_better",
    "project_root": "default_root_dir log_dir logdir output_dir save_dir work_dir",
    "resume": "ckpt_path resume_from resume_from_checkpoint",
    "seed": "data_seed manual_seed random_seed random_state",
}
_MEANT = {word: key for key, words in _ELSEWHERE.items() for word in words.split()}


def key_of_other_libraries(word: str) -> str | None:
    """The well-known key for what another library, or a habit, calls so.

    Example:
        >>> key_of_other_libraries("batch_size"), key_of_other_libraries("hidden_size")
        ('dataloader.batch_size', None)
    """
    return _MEANT.get(word)


def near_miss(key: str) -> str | None:
    """The well-known key that a key was probably meant to be.

    Example:
        >>> near_miss("log_intervall"), near_miss("epochs"), near_miss("hidden_size")
        ('log_interval', 'max_epochs', None)
    """
    meant = _MEANT.get(key)
    if meant in SETTINGS and get_close_matches(key, [meant, meant.removeprefix("max_")]):
        return meant
    close = get_close_matches(key, _NEAR, n=1, cutoff=0.8)
    return _NEAR[close[0]] if close else None
