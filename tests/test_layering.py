"""Imports point one way, packages say what is in them, and functions are short and flat."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted(
    path
    for path in (ROOT / "danling").rglob("*.py")
    if path.relative_to(ROOT).parts[1] != "callbacks"  # the link, where rglob follows it
)
READY_MADE = sorted((ROOT / "callbacks").glob("*.py"))
SOURCES = CORE + READY_MADE
SHARED_BASES = {"monitor", "weight_averaging"}
PACKAGES = sorted(path.parent for path in CORE if path.name == "__init__.py")[1:]

# A room imports from its own line and those above, under TYPE_CHECKING too.
LAYERS = [
    "errors files",
    "config identity triggers seed logs trackers",
    "distributed run transfer",
    "metrics data tensorboard",
    "checkpoint",
    "optimization",
    "callback",
    "runner",
    "testing experiments cli __main__",
]
DEPTH = {room: depth for depth, layer in enumerate(LAYERS) for room in layer.split()}

# The places where the arrow turns: a hook's signature names the runner that calls it, and so do the
# functions of the runner's own package; `defaults`, which composes the callbacks, is imported by
# the runner that has them.
HOOKS = "danling.callback"
TURN = "danling.defaults"
LOOP = "danling.runner.accelerate"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    """The import name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("danling", *parts) if parts[0] == "callbacks" else parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in SOURCES}


def room_of(module: str) -> str:
    """The package or the single module below `danling` that a module is in."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> set[str]:
    """The modules of this library that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name in MODULES and name != name_of(path)}


@cache
def graph() -> dict[str, set[str]]:
    """Which modules each module of the core imports, but for the two places of the turn.

    The face of a package imports what is below it, which is no circle: nobody in a package imports
    its face, and a lazy face imports nothing when it is imported.
    """
    found = {}
    for path in CORE:
        module, names = name_of(path), imported(path) - {TURN, "danling"}
        if module in (HOOKS, TURN):
            names = {name for name in names if room_of(name) not in ("runner", "callbacks")}
        if room_of(module) == "runner":
            names -= {LOOP}
        if path.name != "__init__.py":
            found[module] = names
    return found


def reachable(start: str) -> set[str]:
    found: set[str] = set()
    pending = list(graph()[start])
    while pending:
        module = pending.pop()
        if module not in found:
            found.add(module)
            pending.extend(graph().get(module, ()))
    return found


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(parse(path)):
        if isinstance(node, Function):
            yield node


def code_lines(function: Function) -> int:
    """Lines from the first statement to the last, without signature, decorators and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body and body[-1].end_lineno else 0


def nesting(node: ast.AST) -> int:
    """How many blocks are inside each other below `node`; an `elif` is no deeper than its `if`."""
    blocks = (ast.For, ast.If, ast.Match, ast.Try, ast.While, ast.With)
    deepest = 0
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, Function | ast.ClassDef):
                continue
            is_elif = isinstance(node, ast.If) and name == "orelse" and isinstance(child, ast.If)
            is_block = isinstance(child, blocks) and not is_elif
            deepest = max(deepest, is_block + nesting(child))
    return deepest


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_layers_name_every_room():
    rooms = {room_of(name_of(path)) for path in CORE} - {"", "defaults"}

    assert rooms == DEPTH.keys() & rooms
    assert {room for room in DEPTH if room not in rooms} <= {"experiments", "cli", "__main__"}


@pytest.mark.parametrize("module", sorted(graph()))
def test_imports_of_the_core_point_one_way(module: str):
    later = {
        name
        for name in graph()[module]
        if DEPTH.get(room_of(name), 0) > DEPTH.get(room_of(module), len(LAYERS))
    }

    assert module not in reachable(module)
    assert later == set()


@pytest.mark.parametrize("path", CORE, ids=ids)
def test_only_the_runner_and_what_tests_callbacks_take_a_runner(path: Path):
    annotations = {
        ast.unparse(argument.annotation)
        for function in functions(path)
        for argument in function.args.args
        if argument.annotation is not None
    }
    takes = {text for text in annotations if re.search(r"\bRunner\b|BaseRunner|AccelerateR", text)}

    assert not takes or room_of(name_of(path)) in ("runner", "testing", "callback")


@pytest.mark.parametrize("path", CORE, ids=ids)
def test_only_the_defaults_know_the_ready_made_callbacks(path: Path):
    ready_made = {name for name in imported(path) if name.startswith("danling.callbacks")}

    named = "danling/__init__.py"  # for type checkers alone; `danling.callbacks` is an attribute
    assert not ready_made or path.name == "defaults.py" or str(path).endswith(named)


@pytest.mark.parametrize("path", READY_MADE, ids=ids)
def test_a_callback_imports_no_other_callback_and_no_platform(path: Path):
    names = imported(path)
    siblings = {name.split(".")[2] for name in names if name.startswith("danling.callbacks.")}
    ready_made = {sibling.stem for sibling in READY_MADE} - SHARED_BASES - {"__init__"}

    if path.name != "__init__.py":
        assert siblings & ready_made == set()
    assert {room_of(name) for name in names} & {"defaults", "testing", "cli"} == set()


@pytest.mark.parametrize("path", READY_MADE, ids=ids)
def test_a_callback_s_file_has_one_public_class(path: Path):
    public = [
        node.name
        for node in parse(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]

    assert len(public) == (path.name != "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_functions_are_short_and_flat(path: Path):
    long_functions = {f.name: code_lines(f) for f in functions(path) if code_lines(f) > 40}
    deep_functions = {f.name: nesting(f) for f in functions(path) if nesting(f) > 3}
    wide_functions = {
        f.name: len(f.args.args) + len(f.args.kwonlyargs)
        for f in functions(path)
        if len(f.args.args) + len(f.args.kwonlyargs) > 8 and f.name != "__init__"
    }

    assert long_functions == {}
    assert deep_functions == {}
    assert wide_functions == {}


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name != "__init__.py"], ids=ids)
def test_every_module_says_what_is_public(path: Path):
    tree = parse(path)
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    assert "__all__" in assigned or path.name == "__main__.py"
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("folder", PACKAGES, ids=ids)
def test_a_package_names_each_of_its_modules_and_where_to_begin(folder: Path):
    text = ast.get_docstring(parse(folder / "__init__.py")) or ""
    named = re.findall(r"^- `(\w+)`:", text, re.MULTILINE)
    modules = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    packages = [path.parent.name for path in folder.glob("*/__init__.py")]

    assert sorted(named) == sorted(modules + packages)
    assert re.search(r"\b[Bb]egin\b", text)
    assert len(modules) <= 14


def test_the_library_is_few_rooms():
    """What can be imported from `danling`, and the link to the callbacks."""
    entries = [
        path
        for path in (ROOT / "danling").iterdir()
        if not path.name.startswith("__") and path.name != "py.typed"
    ]

    assert len(entries) <= 24


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_every_module_has_a_test_file_of_its_name(path: Path):
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if room_of(name_of(path)) == "__main__":
        return  # `python -m danling` is tested with the command: tests/cli/test_main.py
    names = {"__init__": "exports", "__main__": "main"}
    if parts[-1] == "__init__" and parts != ["danling", "__init__"]:
        return  # the face of a package: the test of exports has them all
    folder = parts[:-1] if parts[0] == "callbacks" else parts[1:-1]
    file = f"test_{names.get(parts[-1], parts[-1])}.py"

    assert (ROOT / "tests" / Path(*folder) / file).exists()
