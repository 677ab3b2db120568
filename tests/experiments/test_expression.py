"""Filter expressions mean what Python means, and nothing else is accepted."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from danling.errors import ConfigError
from danling.experiments.expression import MAX_LENGTH, Expression

VALUES: dict[str, Any] = {
    "optim.lr": 0.001,
    "optim.name": "adam",
    "seed": 3,
    "score": 0.91,
    "status": "finished",
    "dirty": True,
    "tags": ["paper", "old"],
}


def as_python(text: str) -> bool:
    names = {
        **{key: value for key, value in VALUES.items() if "." not in key},
        "optim": SimpleNamespace(lr=VALUES["optim.lr"], name=VALUES["optim.name"]),
    }
    return bool(eval(text, {"__builtins__": {}}, names))


NAMES = ["'adam'", "'sgd'"]
PARTS = ["'fin'", "'paper'"]


class Writer:
    """Writes random conditions."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def condition(self, depth: int) -> str:
        if depth == 0:
            return self.comparison()
        kind = self.random.choice(["and", "or", "not", "comparison"])
        if kind == "comparison":
            return self.comparison()
        if kind == "not":
            return f"not ({self.condition(depth - 1)})"
        return f"({self.condition(depth - 1)} {kind} {self.condition(depth - 1)})"

    def comparison(self) -> str:
        choice = self.random.choice
        kinds = [
            lambda: f"{self.number()} {choice(['<', '<=', '>', '>=', '==', '!='])} {self.number()}",
            lambda: f"{self.number()} < {self.number()} <= {self.number()}",
            lambda: f"seed {choice(['in', 'not in'])} [{self.number()}, {self.number()}, 3]",
            lambda: f"optim.name {choice(['==', '!='])} {choice(NAMES)}",
            lambda: f"{choice(PARTS)} in {choice(['status', 'tags'])}",
            lambda: "dirty",
        ]
        return choice(kinds)()

    def number(self) -> str:
        choice = self.random.choice
        plain = ["optim.lr", "seed", "score", "1e-3", ".5", "-2", "3"]
        return choice([*plain, f"({choice(plain)} {choice('+-*')} {choice(plain)})"])


@pytest.mark.parametrize("seed", range(200))
def test_means_what_the_same_text_means_in_python(seed: int):
    text = Writer(seed).condition(3)

    assert Expression(text).matches(VALUES.get) is as_python(text)


HOSTILE = [
    "__import__('os').system('true')",
    "().__class__.__bases__[0].__subclasses__()",
    "seed.__class__",
    "optim.__dict__",
    "_private > 1",
    "open('x')",
    "exec('1')",
    "eval('1')",
    "len(tags)",
    "(lambda: 1)()",
    "lambda: 1",
    "[x for x in tags]",
    "{x for x in tags}",
    "{1: 2}",
    "{1, 2}",
    "(x for x in tags)",
    "tags[0]",
    "tags[1:2]",
    "f'{seed}'",
    "f'{open}' == ''",
    "b'bytes' == status",
    "9 ** 9 ** 9 ** 9",
    "2 ** 10 > 1",
    "1 << 10_000_000",
    "seed % 2 == 1",
    "seed // 2",
    "~seed",
    "seed & 1",
    "seed @ seed",
    "(seed := 3)",
    "yield",
    "(yield seed)",
    "await seed",
    "seed if dirty else 1",
    "*tags",
    "[*tags]",
    "...",
    "1j == seed",
    "import os",
    "seed = 3",
    "del seed",
    "seed; seed",
    "",
    "   ",
    "status ==",
    "'unfinished",
    "seed > 1\nimport os",
    "\0",
    "(" * 500 + "1" + ")" * 500,
    "not " * 450 + "seed",
    "-" * 900 + "1",
    " and ".join(["seed"] * 450),
    "1" * (MAX_LENGTH + 1),
    "1" * 1990 + " ** 9",
    "seed" + ".lr" * 600 + "()",
    "[" * 90 + "]" * 90,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_refuses_what_is_no_condition(text: str):
    with pytest.raises(ConfigError) as caught:
        Expression(text)

    assert len(str(caught.value)) < 400


def test_there_are_fifty_hostile_ones():
    assert len(HOSTILE) >= 50


def test_names_the_columns_that_it_speaks_of():
    expression = Expression("optim.lr > 1 and (seed in [1, 2] or not optim.lr < seed) and true")

    assert expression.names == ["optim.lr", "seed"]


def test_ages_are_compared_with_durations():
    assert Expression('age < "2d"').matches({"age": 3600.0}.get)
    assert not Expression('"90s" < age < "1h"').matches({"age": 3600.0}.get)
    with pytest.raises(ConfigError, match="no duration"):
        Expression('age < "2 fortnights"').matches({"age": 1.0}.get)


@pytest.mark.parametrize("text", ["x > 1", "x < 1", "x in [1]", "1 in x", "x == 1", "x + 1 > 0"])
def test_a_missing_value_is_nothing(text: str):
    assert Expression(text).matches(lambda name: None) is False
