"""Conditions on runs, as text: a small part of Python's expressions, of which nothing is evaluated.

    best.val.accuracy > .9 and optim.lr in [1e-3, 3e-4] and status != "failed" and age < "2d"

Python's own parser reads the text; a condition is then worked out from the nodes of a short list.
There are no calls, no attributes of objects (a dotted name is one key), no powers, and bounds on
length, size and depth.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from danling.errors import ConfigError
from danling.experiments.values import parse_duration

__all__ = ["MAX_LENGTH", "Expression"]


MAX_LENGTH = 2000
"""Characters of an expression."""

_MAX_NODES = 400
_MAX_DEPTH = 40
_DURATIONS = {"age", "time"}
_CONSTANTS = (str, int, float, bool, type(None))
_WORDS = {"true": True, "false": False, "null": None, "none": None}

_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_OPERATORS: tuple[type[ast.AST], ...] = (
    ast.And,
    ast.Or,
    ast.Not,
    ast.USub,
    ast.UAdd,
    ast.Eq,
    ast.NotEq,
    ast.In,
    ast.NotIn,
    ast.Is,
    ast.IsNot,
    ast.Load,
    *_ORDER,
    *_ARITHMETIC,
)


class Expression:
    """A condition on runs.

    Names are those of columns: `status`, `age`, `optim.lr`, `val.accuracy`. Allowed are
    comparisons, also chained, `and`, `or`, `not`, `in`, lists, and `+ - * /` of numbers. `age` and
    `time` are compared with seconds, or with texts such as `"2d"`. A value that a run does not have
    is `None`: it equals nothing else, and is neither smaller nor greater than anything.

    Args:
        text: The expression.

    Attributes:
        text: The expression.
        names: The columns that it speaks of, in order.

    Raises:
        ConfigError: The text is no such expression; the message says where and why.

    Example:
        >>> condition = Expression("optim.lr in [0.1, 0.01] and not seed > 3")
        >>> condition.names
        ['optim.lr', 'seed']
        >>> condition.matches({"optim.lr": 0.1, "seed": 2}.get)
        True
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._tree = _parsed(text)
        _check(self._tree, text)
        self.names = list(dict.fromkeys(_names(self._tree)))

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def matches(self, lookup: Callable[[str], Any]) -> bool:
        """Whether the condition holds.

        Args:
            lookup: Gives the value of a name, or None.

        Raises:
            ConfigError: A text next to `age` or `time` is no duration.
        """
        return bool(_value(self._tree, lookup))


def _parsed(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ConfigError(
            f"the filter is {len(text)} characters long, and {MAX_LENGTH} are allowed"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        where = f", at character {error.offset}" if error.offset else ""
        raise _wrong(text, f"{error.msg}{where}") from None
    except (ValueError, MemoryError, RecursionError) as error:
        raise _wrong(text, str(error) or "nested too deeply") from None


def _wrong(text: str, problem: str) -> ConfigError:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return ConfigError(
        f"the filter {shown!r} cannot be read: {problem}; "
        "write for example 'val.accuracy > .9 and status == \"finished\"'"
    )


def _check(tree: ast.expr, text: str) -> None:
    """Refuse everything that is not on the list, without recursion."""
    pending: list[tuple[ast.AST, int]] = [(tree, 1)]
    count = 0
    while pending:
        node, depth = pending.pop()
        count += 1
        if count > _MAX_NODES or depth > _MAX_DEPTH:
            raise ConfigError(
                f"the filter has more than {_MAX_NODES} parts or {_MAX_DEPTH} levels of nesting"
            )
        problem = _problem(node)
        if problem:
            where = f", at character {node.col_offset + 1}" if isinstance(node, ast.expr) else ""
            raise _wrong(text, f"{problem}{where}")
        if not isinstance(node, ast.Attribute):  # a dotted name is one name
            pending += [(child, depth + 1) for child in ast.iter_child_nodes(node)]


def _problem(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        return None if type(node.value) in _CONSTANTS else "no such values"
    if isinstance(node, ast.Name | ast.Attribute):
        name = _dotted(node)
        if name is None or any(part.startswith("_") for part in name.split(".")):
            return "no such name of a column"
        return None
    if isinstance(node, ast.Call):
        return "there are no calls"
    allowed: tuple[type[ast.AST], ...] = (
        ast.BoolOp,
        ast.UnaryOp,
        ast.BinOp,
        ast.Compare,
        ast.List,
        ast.Tuple,
        *_OPERATORS,
    )
    return None if isinstance(node, allowed) else "this is no part of the language"


def _dotted(node: ast.AST) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _names(node: ast.AST) -> Iterator[str]:
    name = _dotted(node)
    if name is not None:
        if name not in _WORDS:
            yield name
        return
    for child in ast.iter_child_nodes(node):
        yield from _names(child)


def _value(node: ast.expr, lookup: Callable[[str], Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name | ast.Attribute):
        name = _dotted(node) or ""
        return _WORDS[name] if name in _WORDS else lookup(name)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, lookup) for item in node.elts]
    if isinstance(node, ast.BoolOp):
        values = (_value(item, lookup) for item in node.values)
        return all(values) if isinstance(node.op, ast.And) else any(values)
    if isinstance(node, ast.UnaryOp):
        return _unary(node, _value(node.operand, lookup))
    if isinstance(node, ast.BinOp):
        return _number(_ARITHMETIC[type(node.op)], node.left, node.right, lookup)
    assert isinstance(node, ast.Compare)
    return _comparison(node, lookup)


def _unary(node: ast.UnaryOp, value: Any) -> Any:
    if isinstance(node.op, ast.Not):
        return not value
    if not _is_number(value):
        return None
    return -value if isinstance(node.op, ast.USub) else value


def _number(
    operation: Callable[[Any, Any], Any],
    left: ast.expr,
    right: ast.expr,
    lookup: Callable[[str], Any],
) -> Any:
    values = _value(left, lookup), _value(right, lookup)
    if not all(map(_is_number, values)):
        return None
    try:
        return operation(*values)
    except ArithmeticError:
        return None


def _comparison(node: ast.Compare, lookup: Callable[[str], Any]) -> bool:
    nodes = [node.left, *node.comparators]
    values = [_value(item, lookup) for item in nodes]
    if any(_dotted(item) in _DURATIONS for item in nodes):
        values = [_seconds(value) for value in values]
    pairs = zip(node.ops, values, values[1:], strict=False)
    return all(_compare(operation, left, right) for operation, left, right in pairs)


def _seconds(value: Any) -> Any:
    if isinstance(value, list):
        return [_seconds(item) for item in value]
    return parse_duration(value) if isinstance(value, str) else value


def _compare(operation: ast.cmpop, left: Any, right: Any) -> bool:
    if isinstance(operation, ast.Eq | ast.Is):
        return bool(left == right)
    if isinstance(operation, ast.NotEq | ast.IsNot):
        return bool(left != right)
    try:
        if isinstance(operation, ast.In | ast.NotIn):
            return (left in right) == isinstance(operation, ast.In)
        return bool(_ORDER[type(operation)](left, right))
    except TypeError:  # of other kinds, or missing
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
