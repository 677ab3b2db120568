"""A run in words, for a page that shows Markdown: how it was started, with which code, how it fell.

What could hold a secret is masked.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from danling.identity.redaction import mask, mask_argv, mask_values
from danling.run.record import RunFile
from danling.tensorboard.hparams import flatten

if TYPE_CHECKING:
    from torch import nn

    from danling.run.directory import RunPaths

__all__ = ["code_text", "command_text", "config_text", "crash_text", "model_text", "run_texts"]


_MAX_PATCH: Final = 100_000  # characters: more makes the page slow
_MAX_CHILDREN: Final = 50


def run_texts(
    config: Mapping[str, Any], paths: RunPaths, model: nn.Module | None
) -> dict[str, str]:
    """What there is to say about a run at its start, by the tag under which to show it.

    Args:
        config: The configuration.
        paths: Of the files of the run; run.json tells of code and environment, if it is there.
        model: The model, if it is a module.
    """
    texts = {"run/config": config_text(config), "run/command": command_text(sys.orig_argv)}
    record = RunFile.read(paths.run_json).data if paths.run_json.exists() else {}
    launches, patch = record.get("launches", []), paths.code_patch
    code = record.get("code")
    if launches and launches[-1].get("code"):  # the run goes on with other code
        code = launches[-1]["code"]
        patch = patch.with_name(f"{patch.stem}-{len(launches)}{patch.suffix}")
    if code:
        texts["run/code"] = code_text(code, patch)
    if record.get("environment"):
        texts["run/environment"] = _table(record["environment"])
    if model is not None:
        texts["run/model"] = model_text(model)
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
    """Which code ran: a table of what is known, and the changes that were not committed.

    Args:
        code: As in run.json.
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
    """The parts of a model and how many parameters each has; shared ones count once in a row.

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
    for key, value in flatten(values).items():
        if value not in ("", "[]"):
            cell = " ".join(mask(str(value)).replace("|", "\\|").split())
            lines.append(f"| {key} | {cell} |")
    return "\n".join(lines)
