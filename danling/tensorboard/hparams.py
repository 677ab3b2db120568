"""TensorBoard's HParams: a table of the values that runs were started with, and what came of them.

The messages are those of the plugin's `plugin_data.proto`. No `Experiment` is written: TensorBoard
takes the first one that it meets among all runs, with its columns, and shows nothing that is not in
it. Without one it takes the columns of all runs, with their types, and every scalar as a metric.
`tensorboard.plugins.hparams.summary` imports TensorFlow, and `add_hparams` of torch writes a run
of its own; neither is used.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from danling.files.json import canonical_json, dumps
from danling.identity.redaction import mask_values
from danling.tensorboard.event_file import event_files, find_values

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

    from danling.config.config import Config

__all__ = [
    "START_TAG",
    "TAG_PREFIX",
    "flatten",
    "group_of",
    "has_succeeded",
    "of_config",
    "session_end",
    "session_start",
]


TAG_PREFIX: Final = "_hparams_/"
"""Start of the tags of all these messages."""

START_TAG: Final = f"{TAG_PREFIX}session_start_info"
"""Tag of the message that a run has begun."""

_END_TAG: Final = f"{TAG_PREFIX}session_end_info"
_HEAD_BYTES: Final = 1 << 18  # in which the first message of a file is

_GOING_ON: Final = ("running", "preempted", None)
_SUCCESSFUL: Final = ("finished", "stopped")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """Values by dotted keys, as the table can show them: booleans, numbers and strings.

    A list becomes its JSON, a number that is not finite a string; None and empty mappings are
    left out.

    Example:
        >>> flatten({"optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "amp": True, "monitor": None})
        {'optim.lr': 0.1, 'optim.betas': '[0.9, 0.99]', 'amp': True}
    """
    flat: dict[str, bool | float | str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, (bool, str)):
            flat[name] = value
        elif isinstance(value, (int, float)):
            flat[name] = value if math.isfinite(value) else str(value)
        elif value is not None:
            flat[name] = dumps(value)
    return flat


def of_config(config: Config, experiment_id: str) -> tuple[dict[str, bool | float | str], str]:
    """What the table shows of a configuration, and the name of its row.

    Shown is what was set and is part of the run's identity, so that there are no columns of paths
    and untouched defaults; secrets are masked. Runs of the same code and configuration but for the
    seed are one row; as it shows the values of only one of them, the seed is not among them.

    Args:
        config: The configuration.
        experiment_id: Identity of the code.

    Example:
        >>> from danling.config import Config
        >>> values, group = of_config(Config(lr=0.1, seed=0, run_name="a"), "1f")
        >>> values, group == of_config(Config(lr=0.1, seed=1, run_name="b"), "1f")[1]
        ({'lr': 0.1}, True)
    """
    semantic = {key: value for key, value in config.semantic().items() if key != "seed"}
    were_set = flatten(config.to_dict())
    shown = flatten(mask_values(semantic))
    values = {key: value for key, value in shown.items() if key in were_set}
    group = sha256(canonical_json([experiment_id, semantic]).encode()).hexdigest()
    return values, group[:12]


def session_start(
    values: Mapping[str, bool | float | str],
    group: str,
    started: float,
) -> Summary.Value:
    """The message that a run has begun.

    Args:
        values: As `flatten` gives them. A row of several runs shows those of one of them, so that
            the seed has no place here.
        group: The row of the table.
        started: Time in seconds since the epoch.

    Example:
        >>> session_start({"lr": 0.1}, "a", 0.0).tag
        '_hparams_/session_start_info'
    """
    from google.protobuf.struct_pb2 import Value
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    info = SessionStartInfo(
        group_name=group, start_time_secs=started, model_uri="checkpoints/best.pth"
    )
    for name, value in values.items():
        info.hparams[name].CopyFrom(_proto(Value, value))
    return _value(START_TAG, HParamsPluginData(session_start_info=info))


def session_end(status: str | None, ended: float) -> list[Summary.Value]:
    """The message that a run has ended, with success or failure; none for one that may go on.

    TensorBoard's servers, both of them, keep the first of these messages that they read, whatever
    becomes of the file (`plugin_event_accumulator.py`: "We only store the first instance of the
    metadata"). So a run that goes on, or can, has none, and is shown as "unknown" until it has
    ended: a page opened during the run would show "running" for ever. For the same reason a page
    opened after a failure shows the failure until the server is started anew, when the run goes on.

    Args:
        status: Of the run: "finished" and "stopped" are a success, "running" and "preempted" runs
            may go on, and all others are a failure.
        ended: Time in seconds since the epoch.

    Example:
        >>> [value.tag for value in session_end("failed", 0.0)]
        ['_hparams_/session_end_info']
        >>> session_end("preempted", 0.0)
        []
    """
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    if status in _GOING_ON:
        return []
    success, failure = api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE
    shown = success if status in _SUCCESSFUL else failure
    info = SessionEndInfo(status=shown, end_time_secs=ended)
    return [_value(_END_TAG, HParamsPluginData(session_end_info=info))]


def group_of(run: str | os.PathLike[str]) -> str | None:
    """The row of a run in the table, from the start of its newest event file; None without one.

    Raises:
        OSError: The file cannot be read.
    """
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    for path in event_files(run)[-1:]:
        start = find_values(path, START_TAG, _HEAD_BYTES).get(START_TAG)
        if start is not None:
            content = start.metadata.plugin_data.content
            return str(parse_session_start_info_plugin_data(content).group_name)
    return None


def has_succeeded(run: str | os.PathLike[str]) -> bool:
    """Whether a run has ended with success, by its newest event file.

    Raises:
        OSError: The file cannot be read.
    """
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.metadata import parse_session_end_info_plugin_data

    for path in event_files(run)[-1:]:
        end = find_values(path, _END_TAG).get(_END_TAG)
        if end is not None:
            info = parse_session_end_info_plugin_data(end.metadata.plugin_data.content)
            return bool(info.status == api_pb2.STATUS_SUCCESS)
    return False


def _proto(make: Any, value: bool | float | str) -> Any:
    if isinstance(value, bool):  # first: it is a number, too
        return make(bool_value=value)
    return make(string_value=value) if isinstance(value, str) else make(number_value=value)


def _value(tag: str, data: Any) -> Summary.Value:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.metadata import NULL_TENSOR, create_summary_metadata

    return Summary.Value(tag=tag, metadata=create_summary_metadata(data), tensor=NULL_TENSOR)
