"""TensorBoard's HParams: a table of the values that runs were started with, and of their results.

A row is one run, or all finished runs that differ only in the seed. A run that goes on or has
failed is a row of its own, so that the means of a row are over finished runs alone.

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

from danling.config.settings import SETTINGS
from danling.files.json import canonical_json, dumps
from danling.identity.redaction import mask_values
from danling.tensorboard.event_file import event_files, find_values, replace_value

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

    from danling.config.config import Config

__all__ = [
    "START_TAG",
    "SUCCESSFUL",
    "TAG_PREFIX",
    "group_of",
    "has_succeeded",
    "join_group",
    "of_config",
    "session_end",
    "session_start",
    "table_values",
]


TAG_PREFIX: Final = "_hparams_/"
"""The start of the tags of all these messages."""

START_TAG: Final = f"{TAG_PREFIX}session_start_info"
"""The tag of the message that a run has begun."""

_END_TAG: Final = f"{TAG_PREFIX}session_end_info"
_HEAD_BYTES: Final = 1 << 18  # the first message of a file is within these
_SEEDS: Final = "-seeds-"

_GOING_ON: Final = ("running", "preempted", None)
SUCCESSFUL: Final = ("finished", "stopped")
"""The statuses of runs that have ended with success."""


def table_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """Values by dotted keys, as the table can show them: booleans, numbers and strings.

    A list becomes its JSON, a number that is not finite a string; None and empty mappings are
    left out.

    Example:
        >>> table_values({"optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "amp": True, "monitor": None})
        {'optim.lr': 0.1, 'optim.betas': '[0.9, 0.99]', 'amp': True}
    """
    flat: dict[str, bool | float | str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= table_values(value, f"{name}.")
        elif isinstance(value, (bool, str)):
            flat[name] = value
        elif isinstance(value, (int, float)):
            flat[name] = value if math.isfinite(value) else str(value)
        elif value is not None:
            flat[name] = dumps(value)
    return flat


def of_config(config: Config, experiment_id: str) -> tuple[dict[str, bool | float | str], str]:
    """The columns of the table for a configuration, and the row of its finished runs.

    The table shows what was set and is part of the run's identity, so that there are no columns of
    paths and untouched defaults; secrets are masked. TensorBoard sorts columns by name, those whose
    values differ before constants: the library's own settings begin with `~`, which puts them
    behind the user's. A row of several runs shows the values of one of them, so that the seed is
    not among them.

    Args:
        config: The configuration.
        experiment_id: The identity of the code.

    Returns:
        The values, and the name of the row, `{digest}-seeds-{experiment_id:.8}`. It is as long as
        the id of a run, which `join_group` makes use of.

    Example:
        >>> from danling.config import Config
        >>> values, group = of_config(Config(lr=0.1, max_epochs=9, seed=0), "1f0c8a42")
        >>> sorted(values), group == of_config(Config(lr=0.1, max_epochs=9, seed=1), "1f0c8a42")[1]
        (['lr', '~max_epochs'], True)
        >>> len(group) == len("1f0c8a42-2e44c3f8-9b1d0c55")
        True
    """
    semantic = {key: value for key, value in config.semantic().items() if key != "seed"}
    were_set = table_values(config.to_dict())
    shown = table_values(mask_values(semantic))
    values = {_column(key): value for key, value in shown.items() if key in were_set}
    digest = sha256(canonical_json([experiment_id, semantic]).encode()).hexdigest()
    return values, f"{digest[:11]}{_SEEDS}{experiment_id[:8]:0<8}"


def session_start(
    values: Mapping[str, bool | float | str],
    group: str,
    started: float,
) -> Summary.Value:
    """The message that a run has begun.

    Args:
        values: The values of the columns, as `of_config` gives them.
        group: The row of the table: the id of the run, until it has finished.
        started: The time in seconds since 1970.

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
    opened after a failure shows the failure, when the run goes on, until the server is restarted.

    Args:
        status: The status of the run: "finished" and "stopped" are a success, "running" and
            "preempted" runs may go on, and all others are a failure.
        ended: The time in seconds since 1970.

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
    shown = success if status in SUCCESSFUL else failure
    info = SessionEndInfo(status=shown, end_time_secs=ended)
    return [_value(_END_TAG, HParamsPluginData(session_end_info=info))]


def join_group(run: str | os.PathLike[str], group: str) -> None:
    """Move a run that has finished from its own row into that of its seeds.

    A server that has read the file before shows the run in its own row until it is restarted.

    Args:
        run: The directory of the run, whose event file is closed.
        group: The name of the row, as `of_config` gives it.

    Raises:
        OSError: The file cannot be read or written.
    """
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    for path in event_files(run)[-1:]:
        start = find_values(path, START_TAG, _HEAD_BYTES).get(START_TAG)
        if start is not None:
            info = parse_session_start_info_plugin_data(start.metadata.plugin_data.content)
            values = {name: _plain(value) for name, value in info.hparams.items()}
            replace_value(path, session_start(values, group, info.start_time_secs))


def group_of(run: str | os.PathLike[str]) -> str | None:
    """The row of a run in the table, by its newest event file; None where it has no row.

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
    """Whether its newest event file says that a run has ended with success.

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


def _plain(value: Any) -> bool | float | str:
    kind = value.WhichOneof("kind")
    plain: bool | float | str = getattr(value, kind)
    return plain


def _column(key: str) -> str:
    return f"~{key}" if key.partition(".")[0] in SETTINGS else key


def _value(tag: str, data: Any) -> Summary.Value:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.metadata import NULL_TENSOR, create_summary_metadata

    return Summary.Value(tag=tag, metadata=create_summary_metadata(data), tensor=NULL_TENSOR)
