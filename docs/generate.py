"""The pages of the reference that are made of the code: no list in them is written by hand."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import danling
import danling.callbacks
from danling.callback import HOOKS, Callback
from danling.config.config import Config
from danling.config.description import describe_keys
from danling.data.prepare import SETTINGS as DATALOADER_SETTINGS
from danling.files.json import dumps, to_plain

__all__ = ["public_names", "reference_pages"]

ROOT = Path(__file__).resolve().parent.parent
MAIN = [name for name in danling.__all__ if name not in ("__version__", "callbacks", "errors")]

DATALOADER = {
    "batch_size": "samples of a batch on one process (default: 1)",
    "drop_last": "whether an incomplete last batch of the training is left out",
    "keyed": "whether what a dataset draws at random is a function of (seed, epoch, batch), which "
    "an exact resume needs (default: true)",
    "mode": "how several loaders of one split are read together: min_size (default), max_size, "
    "max_size_cycle or sequential",
    "multiprocessing_context": "how workers are started: fork, spawn or forkserver",
    "num_workers": "processes that read batches ahead (default: 0)",
    "persistent_workers": "whether workers live on from epoch to epoch",
    "pin_memory": "whether batches are read into pinned memory, from which a GPU copies faster",
    "pin_memory_device": "the device that memory is pinned for",
    "prefetch_factor": "batches that each worker reads ahead",
    "resume": 'what happens with data that cannot begin in the middle of an epoch: "exact" is an '
    'error with the ways out (default), "replay" reads what was done once more, "epoch" begins '
    "the epoch anew and reports it",
    "shuffle": "whether the order is drawn anew in each epoch (default: true for train alone)",
    "timeout": "seconds that a worker may take for a batch; 0 means that it may take for ever",
}


def public_names() -> dict[str, str]:
    """The full name of each public object of each module, by `module:name`.

    Private modules and packages that only repeat names of their modules are left out.
    """
    return {
        f"{module}:{name}": f"{module}.{name}"
        for module in modules()
        for name in import_module(module).__all__
        if name in _defined(module) and name != "__version__"
    }


@cache
def _defined(module: str) -> set[str]:
    """The names that a module defines itself, and does not import."""
    found: set[str] = set()
    for node in ast.parse(inspect.getsource(import_module(module))).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def modules() -> list[str]:
    """All modules with a list of public names, packages first."""
    paths = [
        *(path for path in (ROOT / "danling").rglob("*.py") if "callbacks" not in path.parts),
        *(ROOT / "callbacks").glob("*.py"),
    ]
    names = set()
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = ("danling", *parts) if parts[0] == "callbacks" else parts
        if parts[-1] != "__main__" and "\n__all__" in path.read_text(encoding="utf-8"):
            names.add(".".join(parts).removesuffix(".__init__"))
    return sorted(names)


@cache
def reference_pages() -> dict[str, str]:
    """The text of each page by its path below docs/."""
    pages = {
        "reference/index.md": _index(),
        "reference/config.md": _config(),
        "reference/hooks.md": _hooks(),
        "reference/dataloader.md": _dataloader(),
        "reference/callbacks.md": _callbacks(),
    }
    by_package: dict[str, list[str]] = {}
    for module in modules():
        parts = module.split(".")
        if parts[1:2] == ["callbacks"]:
            if len(parts) > 2:
                pages[f"reference/callbacks/{parts[2]}.md"] = _callback(module)
        elif len(parts) > 1:
            by_package.setdefault(parts[1], []).append(module)
    for package, members in by_package.items():
        pages[f"reference/api/{package}.md"] = _package(package, members)
    return pages


def _index() -> str:
    lines = ["# Reference", "", "What `import danling as dl` offers:", "", "| | |", "| --- | --- |"]
    lines += [_row(getattr(danling, name), name) for name in MAIN]
    pages = [
        ("config.md", "every key of a configuration, with type, default and identity"),
        ("hooks.md", "every hook, with its arguments"),
        ("callbacks.md", "every ready-made callback"),
        ("dataloader.md", "every setting of `dataloader=`"),
        ("files.md", "every file of a run"),
    ]
    lines += ["", "Besides:", ""]
    lines += [f"- [{path.removesuffix('.md')}]({path}): {text}" for path, text in pages]
    return "\n".join([*lines, ""])


def _row(value: Any, name: str) -> str:
    target = f"{value.__module__}.{value.__qualname__}"
    return f"| [`{name}`][{target}] | {_summary(value)} |"


def _summary(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _config() -> str:
    lines = [
        "# Keys of a configuration",
        "",
        "The library reads these keys. All of them can be set in code, in a file and on the command"
        " line, where `max_epochs` is `--max-epochs`. Two runs with the same code and the same"
        " values of the keys that are part of the identity have the same `run_id`.",
        "",
        "| key | type | default | part of the identity | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key in describe_keys(Config)[1]:
        default = "" if key.default is None else f"`{dumps(to_plain(key.default))}`"
        identity = "yes" if key.in_run_id else "no"
        if key.not_in_run_id:
            identity += ", but for " + ", ".join(f"`{name}`" for name in key.not_in_run_id)
        cells = [f"`{key.name}`", key.type.replace("|", "\\|"), default, identity, key.help]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Keys of your own are part of the identity, unless a class marks them with"
        " [`NotInRunId`][danling.config.fields.NotInRunId]. A seed that was drawn because none was"
        " given is not part of it.",
        "",
    ]
    return "\n".join(lines)


def _hooks() -> str:
    lines = [
        "# Hooks",
        "",
        "A callback overrides the hooks that it needs. The order is that in which they fire.",
        "",
    ]
    for name in HOOKS:
        hook = getattr(Callback, name)
        names = ", ".join(list(inspect.signature(hook).parameters))
        lines += [f"## `{name}`", "", "```text", f"def {name}({names})", "```", ""]
        lines += [inspect.getdoc(hook) or "", ""]
    return "\n".join(lines)


def _dataloader() -> str:
    lines = [
        "# Settings of `dataloader=`",
        "",
        "They are arguments of `torch.utils.data.DataLoader`, and two of the library's own. Under"
        " the name of a split they are for that split:"
        ' `dataloader={"batch_size": 32, "val": {"batch_size": 256}}`.',
        "",
        "| setting | part of the identity | meaning |",
        "| --- | --- | --- |",
    ]
    outside = next(key for key in describe_keys(Config)[1] if key.name == "dataloader")
    for name in sorted(DATALOADER_SETTINGS):
        identity = "no" if name in outside.not_in_run_id else "yes"
        meaning = DATALOADER.get(name, "")
        lines.append(f"| `{name}` | {identity} | {meaning} |")
    lines += [
        "",
        "`collate_fn`, `sampler`, `batch_sampler` and `worker_init_fn` are no values: they are"
        " arguments of [`AccelerateRunner`][danling.runner.accelerate.AccelerateRunner].",
    ]
    return "\n".join([*lines, ""])


def _callbacks() -> str:
    lines = ["# Callbacks", "", "| | |", "| --- | --- |"]
    lines += [_row(getattr(danling.callbacks, name), name) for name in danling.callbacks.__all__]
    return "\n".join([*lines, ""])


def _callback(module: str) -> str:
    title = ", ".join(import_module(module).__all__)
    return "\n".join([f"# {title}", "", *_directive(module)])


def _package(package: str, members: list[str]) -> str:
    lines = [f"# danling.{package}", ""]
    for module in members:
        lines += [f"## {module}", ""] if len(members) > 1 else []
        lines += _directive(module)
    return "\n".join(lines)


def _directive(module: str) -> Iterator[str]:
    """The lines that have mkdocstrings render the public names of a module."""
    found = import_module(module)
    names = [name for name in found.__all__ if f"{module}:{name}" in public_names()]
    yield from [inspect.getdoc(found) or "", ""]
    for name in names:
        yield from [f"::: {module}.{name}", "    options:", "      heading_level: 3", ""]
