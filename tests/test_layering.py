"""Imports point one way, and files stay small enough to read."""

from __future__ import annotations

import ast
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

# A module reaches, through whatever it imports, none of a later line. `defaults` composes the
# callbacks, which import the core: the one place where the arrow turns, and imported in a call.
LAYERS = [
    "errors git files jsonable filesystem failpoints masking lock crc32c attempts media_log",
    "config identity state triggers distributed seed sampling keyed transfer window averages",
    "encoding record checkpoint sources stream loader data history metrics tfrecord event_file",
    "tensorboard bands",
    "callback",
    "dispatch",
    "ownership owned base_runner",
    "parts logbook feed loop",
    "capture resumption runner",
    "testing cli __main__",
]
DEPTH = {module: depth for depth, layer in enumerate(LAYERS) for module in layer.split()}
TURN = "defaults"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> set[str]:
    """The modules that a file imports when it runs: anywhere but under TYPE_CHECKING."""
    found: set[str] = set()
    pending: list[ast.AST] = [parse(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module if not node.level else f"{package_of(path)}.{node.module or ''}"
            found |= {f"{base}".rstrip("."), *(f"{base}.{alias.name}" for alias in node.names)}
        pending.extend(ast.iter_child_nodes(node))
    return found


def package_of(path: Path) -> str:
    return "danling.callbacks" if path in READY_MADE else "danling"


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "danling").parts[0].removesuffix(".py")


def core_modules(names: set[str]) -> set[str]:
    """The first name below `danling` of each, where it is a module of the core."""
    modules = {module_of(path) for path in CORE}
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "danling" and len(part) > 1} & modules


@cache
def import_graph() -> dict[str, set[str]]:
    """Which modules of the core each of them imports."""
    graph: dict[str, set[str]] = {}
    for path in CORE:
        module = module_of(path)
        graph[module] = graph.get(module, set()) | core_modules(imported(path)) - {module, TURN}
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    pending = list(graph[start])
    while pending:
        module = pending.pop()
        if module not in found:
            found.add(module)
            pending.extend(graph[module])
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


@pytest.mark.parametrize("module", sorted({module_of(path) for path in CORE} - {"__init__"}))
def test_imports_of_the_core_point_one_way(module: str):
    below = reachable(import_graph(), module)

    later = {name for name in below if DEPTH.get(name, -1) > DEPTH.get(module, len(LAYERS))}
    assert module not in below
    assert later == set()


@pytest.mark.parametrize("path", CORE, ids=ids)
def test_only_the_defaults_know_the_ready_made_callbacks(path: Path):
    ready_made = {name for name in imported(path) if name.startswith("danling.callbacks")}

    assert not ready_made or path.name == "defaults.py"


@pytest.mark.parametrize("path", READY_MADE, ids=ids)
def test_a_callback_imports_no_other_callback_and_not_the_runner(path: Path):
    names = imported(path)
    siblings = {name.split(".")[2] for name in names if name.startswith("danling.callbacks.")}
    ready_made = {sibling.stem for sibling in READY_MADE} - SHARED_BASES

    assert siblings & ready_made == set()
    assert core_modules(names) & {"runner", "dispatch", TURN, "testing", "cli"} == set()


@pytest.mark.parametrize("path", READY_MADE, ids=ids)
def test_a_callback_s_file_has_one_public_class(path: Path):
    public = [
        node.name
        for node in parse(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]

    assert len(public) == (path.name != "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_files_and_functions_are_short_and_flat(path: Path):
    long_functions = {f.name: code_lines(f) for f in functions(path) if code_lines(f) > 40}
    deep_functions = {f.name: nesting(f) for f in functions(path) if nesting(f) > 3}
    wide_functions = {
        f.name: len(f.args.args) + len(f.args.kwonlyargs)
        for f in functions(path)
        if len(f.args.args) + len(f.args.kwonlyargs) > 8 and f.name != "__init__"
    }

    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
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


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_every_module_has_a_test_file_of_its_name(path: Path):
    names = {"__init__": "test_exports", "__main__": "test_cli"}
    file = names.get(path.stem, f"test_{path.stem}") + ".py"
    folder = "callbacks/" if path in READY_MADE and path.stem != "__init__" else ""

    assert (ROOT / "tests" / folder / file).exists()
