"""Plant one fault at a time, run the tests of its module, and list the faults that no test caught.

    python -m tests.mutation --sample 100                   of all modules
    python -m tests.mutation --changed main                 of the modules that differ from a commit
    python -m tests.mutation danling/checkpoint --jobs 2    of some folders or files

The faults are small: a comparison that is off by one, a removed statement, swapped arguments, a
dropped `not`, another constant. They are planted in a copy of the checkout. The tests of a module
are those with its name and those of its folder; they must pass without a fault first. What survives
is either a test that is missing or a change that changes nothing, and a person has to say which.
The idea is that of DeMillo, Lipton and Sayward, "Hints on Test Data Selection" (1978).
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue

from tests.support.environments import ROOT, copy_checkout

SLACK = 60.0  # seconds that the tests of a fault may take besides three times those without it

OTHER_OPERATOR: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
}
OTHER_NAME = {"min": "max", "max": "min", "any": "all", "all": "any"}
# With swapped arguments they fail wherever they run.
OBVIOUS = {"isinstance", "issubclass", "getattr", "setattr", "hasattr", "delattr", "zip"}


@dataclass(frozen=True)
class Fault:
    """A change of one place in a file.

    Attributes:
        kind: The kind of the mistake.
        line: The line of the file, from 1.
        start: The first byte that is replaced.
        end: The byte behind the last one that is replaced.
        before: The code that is replaced.
        after: The code in its place.
    """

    kind: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def planted(self, source: bytes) -> bytes:
        """Return `source` with the fault in it."""
        return source[: self.start] + self.after.encode() + source[self.end :]


def faults(source: bytes) -> list[Fault]:
    """Return every fault that can be planted in a module, in the order of the file.

    Left alone is what no test should fix: annotations, docstrings, `__all__`, imports for type
    checkers, assertions, and the messages of errors.
    """
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    found = []
    for node in _executed(ast.parse(source)):
        for kind, after in _mistakes(node):
            assert isinstance(node, ast.expr | ast.stmt)
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            start = lines[node.lineno - 1] + node.col_offset
            end = lines[node.end_lineno - 1] + node.end_col_offset
            fault = Fault(kind, node.lineno, start, end, source[start:end].decode(), after)
            if _compiles(fault.planted(source)):
                found.append(fault)
    return sorted(found, key=lambda fault: (fault.start, fault.end, fault.after))


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Each node whose value counts when the module runs."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            continue  # in an f-string of Python 3.11 the positions are wrong
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node.targets[0]):
            continue
        for name, value in ast.iter_fields(node):
            if name not in {"annotation", "returns", "decorator_list", "bases"}:
                values = value if isinstance(value, list) else [value]
                pending.extend(child for child in values if isinstance(child, ast.AST))


def _mistakes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The mistakes that a node can have: what kind it is, and the code with the mistake."""
    if isinstance(node, ast.stmt):
        yield from _mistakes_of_statements(node)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "constant", str(not node.value)
        elif isinstance(node.value, int | float):
            yield "constant", repr(node.value + 1)
    else:
        yield from _mistakes_of_expressions(node)


def _mistakes_of_statements(node: ast.stmt) -> Iterator[tuple[str, str]]:
    match node:
        case (
            ast.Expr(value=ast.Call() | ast.Yield()) | ast.AugAssign() | ast.Raise() | ast.Delete()
        ):
            yield "removed statement", "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Continue() | ast.Break():
            yield "removed statement", "pass"
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield "returned nothing", "return None"


def _mistakes_of_expressions(node: ast.AST) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Compare(ops=[operator, *others]) if type(operator) in OTHER_OPERATOR:
            yield "comparison", _changed(node, "ops", [_other(operator), *others])
        case ast.BoolOp():
            yield "and, or", _changed(node, "op", _other(node.op))
        case ast.BinOp() if type(node.op) in OTHER_OPERATOR:
            yield "arithmetic", _changed(node, "op", _other(node.op))
        case ast.UnaryOp(op=ast.Not()):
            yield "dropped not", f"({ast.unparse(node.operand)})"
        case ast.Name(id=name) if name in OTHER_NAME:
            yield "other function", OTHER_NAME[name]
        case ast.Call(args=[first, second, *rest]) if ast.unparse(node.func) not in OBVIOUS:
            yield "swapped arguments", _changed(node, "args", [second, first, *rest])
        case ast.IfExp():
            yield "other branch", f"({ast.unparse(node.orelse)})"


def _other(operator: ast.AST) -> ast.AST:
    return OTHER_OPERATOR[type(operator)]()


def _changed(node: ast.expr, field: str, value: object) -> str:
    other = copy.copy(node)
    setattr(other, field, value)
    return f"({ast.unparse(ast.fix_missing_locations(other))})"


def _compiles(source: bytes) -> bool:
    try:
        compile(source, "<fault>", "exec")
    except SyntaxError:
        return False
    return True


def modules(root: Path, chosen: Sequence[str], changed: str | None) -> list[str]:
    """Return the modules to plant faults in, as paths from the root.

    Args:
        root: The checkout.
        chosen: Folders or files; empty for all.
        changed: A commit; only modules that differ from it count.
    """
    found = [
        path.relative_to(root).as_posix()
        for folder in ("danling", "callbacks")
        for path in sorted((root / folder).rglob("*.py"))
        if path.relative_to(root).parts[:2] != ("danling", "callbacks")  # the link
    ]
    if chosen:
        names = [name.rstrip("/") for name in chosen]
        found = [path for path in found if any(f"{path}/".startswith(f"{n}/") for n in names)]
    if changed is not None:
        command = ["git", "diff", "--name-only", changed, "--", "danling", "callbacks"]
        answer = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
        found = [path for path in found if path in answer.stdout.splitlines()]
    return found


def suite_of(root: Path, module: str) -> list[str]:
    """Return the test files of a module: those of its name, then those of its folder.

    A module at the top without a test of its name has the tests that import it.
    """
    path = Path(module)
    folder = path.parent if path.parts[0] == "callbacks" else path.parent.relative_to("danling")
    own = root / "tests" / folder
    stem = path.parent.name if path.stem == "__init__" else path.stem
    tests = [*sorted(own.glob(f"test_{stem}.py")), *sorted(own.glob(f"test_{stem}_*.py"))]
    if folder.parts:
        tests += sorted(own.glob("test_*.py"))
    elif not tests:
        name = "danling" if path.stem == "__init__" else f"danling.{path.stem}"
        everywhere = sorted((root / "tests").rglob("test_*.py"))
        tests = [test for test in everywhere if f"{name} import" in test.read_text("utf-8")]
    if not tests:  # a package whose tests are by behaviour
        home = folder.parts[0] if folder.parts else "cli"
        tests = sorted((root / "tests" / home).rglob("test_*.py"))
    return list(dict.fromkeys(test.relative_to(root).as_posix() for test in tests))


class Tree:
    """A copy of the checkout in which faults are planted and tests run.

    Args:
        folder: Where the copy is made.
    """

    _ticks = count(1)

    def __init__(self, folder: Path) -> None:
        self.root = copy_checkout(folder / "checkout")

    def passes(self, tests: Sequence[str], seconds: float | None = None) -> bool:
        """Whether all tests pass; they fail when they take longer than `seconds`."""
        options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", "-n0"]
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=self.root,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # what the tests have started, too
                process.wait()

    def survives(self, module: str, fault: Fault, tests: Sequence[str], seconds: float) -> bool:
        """Whether the tests pass with the fault planted in the module."""
        path = self.root / module
        sound = path.read_bytes()
        try:
            self._write(path, fault.planted(sound))
            return self.passes(tests, seconds)
        finally:
            self._write(path, sound)

    def _write(self, path: Path, source: bytes) -> None:
        """Write a module with a time of its own: by the time Python knows its old bytecode."""
        path.write_bytes(source)
        moment = int(time.time()) + next(self._ticks)
        os.utime(path, (moment, moment))


class Laboratory:
    """Copies of the checkout that work at the same time.

    Args:
        folder: Where the copies are made.
        jobs: How many there are.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self._free: SimpleQueue[Tree] = SimpleQueue()
        for number in range(jobs):
            self._free.put(Tree(folder / str(number)))

    def seconds(self, tests: frozenset[str]) -> float | None:
        """How long the tests take without a fault; None when they fail, or when there are none."""
        with self._tree() as tree:
            begin = time.monotonic()
            passed = bool(tests) and tree.passes(sorted(tests))
            return time.monotonic() - begin if passed else None

    def survives(self, module: str, fault: Fault, seconds: float) -> bool:
        """Whether a fault survives tests that take `seconds` without one."""
        with self._tree() as tree:
            return tree.survives(module, fault, suite_of(ROOT, module), 3 * seconds + SLACK)

    @contextmanager
    def _tree(self) -> Iterator[Tree]:
        tree = self._free.get()
        try:
            yield tree
        finally:
            self._free.put(tree)


def measure(chosen: Sequence[tuple[str, Fault]], jobs: int) -> list[tuple[str, Fault]]:
    """Plant each fault by itself, print what became of it, and return those that survived.

    Args:
        chosen: Modules, and a fault of each.
        jobs: How many copies of the checkout work at the same time.
    """
    suites = {module: frozenset(suite_of(ROOT, module)) for module, _ in chosen}
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        laboratory = Laboratory(Path(scratch), jobs)
        distinct = list(dict.fromkeys(suites.values()))
        times = dict(zip(distinct, pool.map(laboratory.seconds, distinct), strict=True))
        for module, suite in suites.items():
            if times[suite] is None:
                print(f"{module}: left out, because its tests fail without a fault, or it has none")
        tried = [(m, f, s) for m, f in chosen if (s := times[suites[m]]) is not None]
        results = pool.map(lambda one: laboratory.survives(*one), tried)
        survivors = []
        for (module, fault, _), survived in zip(tried, results, strict=True):
            print(f"{'SURVIVED' if survived else 'caught':8} {line_of(module, fault)}", flush=True)
            survivors += [(module, fault)] * survived
    caught = len(tried) - len(survivors)
    print(f"\n{caught} of {len(tried)} faults caught ({caught / max(1, len(tried)):.1%})")
    return survivors


def line_of(module: str, fault: Fault) -> str:
    """A fault in one line: where it is, its kind, the code before and after."""
    before, after = (" ".join(code.split())[:60] for code in (fault.before, fault.after))
    return f"{module}:{fault.line}  {fault.kind}: {before}  ->  {after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; `--help` lists its options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("modules", nargs="*", help="folders or files; all of them without one")
    parser.add_argument("--sample", type=int, metavar="N", help="plant N faults, drawn at random")
    parser.add_argument("--changed", metavar="REF", help="only modules that differ from a commit")
    parser.add_argument("--seed", type=int, help="of the sample; drawn and printed without it")
    parser.add_argument("--jobs", type=int, default=1, help="copies that work at the same time")
    options = parser.parse_args(arguments)
    paths = modules(ROOT, options.modules, options.changed)
    chosen = [(path, fault) for path in paths for fault in faults((ROOT / path).read_bytes())]
    print(f"{len(chosen)} faults can be planted in {len(paths)} modules")
    if options.sample is not None:
        seed = random.randrange(1_000_000) if options.seed is None else options.seed
        chosen = random.Random(seed).sample(chosen, min(options.sample, len(chosen)))
        print(f"{len(chosen)} of them are drawn with --seed {seed}")
    survivors = measure(sorted(chosen, key=lambda one: (one[0], one[1].start)), options.jobs)
    for module, fault in survivors:
        print(line_of(module, fault))


if __name__ == "__main__":
    main()
