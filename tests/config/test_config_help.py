# ruff: noqa: RUF012 - a config copies its defaults
from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal

import pytest

from danling import Config
from danling.config.settings import SETTINGS


class Act(Enum):
    RELU = "relu"
    GELU = "gelu"


class Optim(Config):
    name: Literal["sgd", "adamw"] = "adamw"
    # learning rate at the
    # peak of the schedule
    lr: float = 1e-3
    weight_decay: float = 0.0  # decay of the weights


class Training(Config):
    """Trains a classifier.

    This paragraph is not in the help.
    """

    data: str = "digits"  # name of the data set
    optim: Optim = Optim(lr=0.5)
    amp: bool = True  # fmt: skip
    layers: list[int] = [64, 64]  # sizes of the
    pair: tuple[int, int] = (1, 2)
    act: Act = Act.RELU
    weights: dict[str, float] = {}
    extra: Mapping[str, Any] = {}
    width: int | None = None
    warmup: Optim | None = None


def leaves(cls, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cls.parse(arguments)
    output = capsys.readouterr()
    return caught.value.code, output.out, output.err


def test_help_is_made_of_annotations_comments_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    code, out, _ = leaves(Training, ["--optim.lrr", "3", "--help"], capsys)
    text = " ".join(out.split())

    assert code == 0
    assert "Trains a classifier. options:" in text
    assert "This paragraph" not in text
    assert "--data STR name of the data set (default: digits)" in text
    assert "--optim.lr FLOAT learning rate at the peak of the schedule (default: 0.5)" in text
    assert "--optim.weight-decay FLOAT decay of the weights (default: 0.0)" in text
    assert "--optim.name {sgd,adamw} (default: adamw)" in text
    assert "--[no-]amp (default: true)" in text
    assert "--layers INT ... sizes of the (default: [64, 64])" in text
    assert "--pair INT INT (default: [1, 2])" in text
    assert "--act {RELU,GELU} (default: RELU)" in text
    assert "--width INT " in text
    assert "--warmup.lr FLOAT learning rate at the peak of the schedule (default: 0.001)" in text
    assert "--resume [STR]" in text
    assert max(map(len, out.splitlines())) <= 100


def test_every_well_known_key_has_a_help_text(capsys):
    _, out, _ = leaves(Config, ["-h"], capsys)
    lines = out.splitlines()

    for key in SETTINGS:
        flag = key.replace("_", "-")
        at = next(
            n
            for n, line in enumerate(lines)
            if line.split()[:1] in ([f"--{flag}"], [f"--[no-]{flag}"])
        )
        words = (lines[at][30:].strip() or lines[at + 1].strip()).split()
        assert words, key
        assert not words[0].startswith("(default"), key


def test_a_key_that_is_declared_again_keeps_the_comment_of_its_base(capsys):
    class Model(Training):
        data: str = "cifar"

    _, out, _ = leaves(Model, ["--help"], capsys)

    assert "name of the data set (default: cifar)" in " ".join(out.split())


def test_a_class_without_source_has_help_without_comments(capsys):
    namespace: dict[str, Any] = {"Config": Config, "__name__": "nowhere"}
    exec("class Model(Config):\n    width: int = 3  # how wide\n", namespace)

    code, out, _ = leaves(namespace["Model"], ["--help"], capsys)

    assert code == 0
    assert "--width INT" in out
    assert "how wide" not in out


def test_a_required_key_is_marked(capsys):
    class Model(Config):
        width: int  # how wide

    _, out, _ = leaves(Model, ["--help"], capsys)

    assert "how wide (required)" in out
