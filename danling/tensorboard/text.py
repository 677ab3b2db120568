"""The texts of a run as Markdown: its configuration, its command, its code, and how it failed.

Secrets are masked in all of them.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from danling.config.config import Config
from danling.config.mapping import ABSENT
from danling.errors import ConfigError
from danling.identity.redaction import MASK, mask, mask_argv, mask_values
from danling.run.record import RunFile
from danling.tensorboard.hparams import table_values

if TYPE_CHECKING:
    from torch import nn

    from danling.run.directory import RunPaths

__all__ = [
    "CRASH_TAG",
    "changes_text",
    "code_text",
    "command_text",
    "config_text",
    "crash_text",
    "model_text",
    "run_texts",
]


CRASH_TAG: Final = "run/0_exception"
"""The tag of a crash, which comes first: TensorBoard sorts texts by their tags."""

_MAX_PATCH: Final = 100_000  # characters: more makes the page slow
_MAX_CHILDREN: Final = 50


def run_texts(config: Config, paths: RunPaths, model: nn.Module | None) -> dict[str, str]:
    """The texts of a run at its start, by their tags, whose numbers give the order on the page.

    Args:
        config: The configuration.
        paths: The files of the run; run.json has the code and the environment, if it is there.
        model: The model, if it is a module.
    """
    texts = {
        "run/1_config": config_text(config.to_dict()),
        "run/2_changed_from_defaults": changes_text(config),
        "run/3_command": command_text(sys.orig_argv),
    }
    record = RunFile.read(paths.run_json).data if paths.run_json.exists() else {}
    launches, patch = record.get("launches", []), paths.code_patch
    code = record.get("code")
    if launches and launches[-1].get("code"):  # the run goes on with other code
        code = launches[-1]["code"]
        patch = patch.with_name(f"{patch.stem}-{len(launches)}{patch.suffix}")
    if model is not None:
        texts["run/4_model"] = model_text(model)
    if record.get("environment"):
        texts["run/5_environment"] = _table(record["environment"])
    if code:
        texts["run/6_code"] = code_text(code, patch)
    return texts


def config_text(values: Mapping[str, Any]) -> str:
    """The configuration as YAML.

    Example:
        >>> print(config_text({"optim": {"lr": 0.1}}))
        ```yaml
        optim:
          lr: 0.1
        ```
    """
    from danling.config.yaml import dump_yaml

    return _fenced(mask(dump_yaml(mask_values(values))), "yaml")


def changes_text(config: Config) -> str:
    """A table of the values that differ from the defaults; keys without a default come first.

    Example:
        >>> print(changes_text(Config(lr=0.1, seed=3)))
        | key | value | default |
        |---|---|---|
        | lr | 0.1 |  |
        | seed | 3 | None |
    """
    try:
        defaults = type(config)()
    except ConfigError:  # a field of the class has no default
        defaults = Config()
    changes = config.diff(defaults)
    shown = mask_values({key: values[0] for key, values in changes.items()})
    lines = ["| key | value | default |", "|---|---|---|"]
    for key in sorted(changes, key=lambda key: (changes[key][1] is not ABSENT, key)):
        default = changes[key][1]
        shown_default = "" if default is ABSENT else MASK if shown[key] == MASK else _cell(default)
        lines.append(f"| {key} | {_cell(shown[key])} | {shown_default} |")
    return "\n".join(lines)


def command_text(argv: Sequence[str]) -> str:
    """The command line.

    Example:
        >>> print(command_text(["train.py", "--optim.lr", "0.1"]))
        ```sh
        train.py --optim.lr 0.1
        ```
    """
    return _fenced(shlex.join(mask_argv(argv)), "sh")


def code_text(code: Mapping[str, Any], patch: Path | None = None) -> str:
    """A table of the code that ran, and the changes that were not committed.

    Args:
        code: The code as run.json has it.
        patch: The file of the changes, where there is one.

    Example:
        >>> print(code_text({"commit": "1f0c8a42", "dirty": False}))
        | | |
        |---|---|
        | commit | 1f0c8a42 |
        | dirty | False |
    """
    changes = ""
    if patch is not None and patch.is_file():
        changes = mask(patch.read_text(encoding="utf-8", errors="replace"))
        if len(changes) > _MAX_PATCH:
            changes = f"{changes[:_MAX_PATCH]}\n... the rest is in {patch.name}"
        changes = f"\n\n{_fenced(changes, 'diff')}"
    return _table(code) + changes


def model_text(model: nn.Module) -> str:
    """A table of the parts of a model and their parameters; shared ones count once in each row.

    Example:
        >>> from torch import nn
        >>> print(model_text(nn.Sequential(nn.Linear(4, 8), nn.ReLU())))
        | module | type | parameters | trainable |
        |---|---|--:|--:|
        | **all** | Sequential | 40 | 40 |
        | 0 | Linear | 40 | 40 |
        | 1 | ReLU | 0 | 0 |
    """
    children = list(model.named_children())
    rows = [("**all**", model), *children[:_MAX_CHILDREN]]
    lines = ["| module | type | parameters | trainable |", "|---|---|--:|--:|"]
    for name, module in rows:
        sizes = [(part.numel(), part.requires_grad) for part in module.parameters()]
        total = sum(size for size, _ in sizes)
        trainable = sum(size for size, is_trainable in sizes if is_trainable)
        lines.append(f"| {name} | {type(module).__name__} | {total:,} | {trainable:,} |")
    if len(children) > _MAX_CHILDREN:
        lines.append(f"| ... | {len(children) - _MAX_CHILDREN} more | | |")
    return "\n".join(lines)


def crash_text(error: BaseException) -> str:
    """The traceback of an error.

    Example:
        >>> print(crash_text(ValueError("no such digit")))
        ```
        ValueError: no such digit
        ```
    """
    return _fenced(mask("".join(traceback.format_exception(error))))


def _fenced(text: str, language: str = "") -> str:
    fence = "```"
    while fence in text:  # a docstring with an example in Markdown, in a patch
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _table(values: Mapping[str, Any]) -> str:
    lines = ["| | |", "|---|---|"]
    for key, value in table_values(mask_values(values)).items():
        if value not in ("", "[]"):
            lines.append(f"| {key} | {_cell(value)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return " ".join(mask(str(value)).replace("|", "\\|").split())
