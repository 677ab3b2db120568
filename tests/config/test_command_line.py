# ruff: noqa: RUF012 - a config copies its defaults
from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from danling import Config
from danling.config.settings import SETTINGS
from danling.config.yaml import load_yaml


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


@pytest.mark.parametrize(
    ("arguments", "key", "expected"),
    [
        ("--optim.lr 1e-4", "optim.lr", 1e-4),
        ("--optim.lr=1e-4", "optim.lr", 1e-4),
        ("--optim.lr -1", "optim.lr", -1.0),
        ("--optim.weight-decay 1", "optim.weight_decay", 1.0),
        ("--optim.weight_decay 1", "optim.weight_decay", 1.0),
        ("--amp", "amp", True),
        ("--no-amp", "amp", False),
        ("--amp false", "amp", False),
        ("--amp=true", "amp", True),
        ("--layers 1 2 3", "layers", [1, 2, 3]),
        ("--layers [1,2,3]", "layers", [1, 2, 3]),
        ("--layers 1", "layers", [1]),
        ("--layers", "layers", []),
        ("--pair 3 4", "pair", (3, 4)),
        ("--act GELU", "act", Act.GELU),
        ("--optim.name sgd", "optim.name", "sgd"),
        ("--data 5", "data", "5"),
        ("--data=", "data", ""),
        ("--weights.a 0.5", "weights", {"a": 0.5}),
        ('--weights {"a":0.5}', "weights", {"a": 0.5}),
        ("--extra.a.b no", "extra.a.b", "no"),
        ("--width null", "width", None),
        ("--width 3", "width", 3),
        ("--warmup.lr 3", "warmup.lr", 3.0),
        ("--max-epochs 3", "max_epochs", 3),
        ("--resume", "resume", True),
        ("--resume auto", "resume", "auto"),
        ("--resume false", "resume", False),
        ("--no-resume", "resume", False),
        ("--dataloader.train.batch_size 3", "dataloader.train.batch_size", 3),
        ("--monitor val/loss --log-interval 3", "log_interval", 3),
    ],
)
def test_a_flag_sets_its_key_in_the_type_of_the_field(arguments, key, expected):
    config = Training.parse(arguments.split())

    assert config[key] == expected
    assert type(config[key]) is type(expected)


@pytest.mark.parametrize(
    ("arguments", "key", "expected"),
    [
        ("--lr 1e-3", "lr", 1e-3),
        ("--layers 1 x 2.5", "layers", [1, "x", 2.5]),
        ("--a.b.c [1,[2]]", "a.b.c", [1, [2]]),
        ('--a {"b":{"c":"no"}}', "a.b.c", "no"),
        ("--a [x,no,1e-3]", "a", ["x", "no", 1e-3]),
        ('--name-of "5"', "name_of", "5"),
        ("--flag", "flag", True),
        ("--no-flag", "flag", False),
        ("--nothing null", "nothing", None),
        ("--empty=", "empty", ""),
        ("--date 2024-01-01", "date", "2024-01-01"),
    ],
)
def test_a_plain_configuration_takes_new_keys(arguments, key, expected):
    config = Config.parse(arguments.split())

    assert config[key] == expected
    assert type(config[key]) is type(expected)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("--optim.lrr 3", "unrecognised option --optim.lrr; did you mean '--optim.lr'?"),
        ("--lays 3", "unrecognised option --lays; did you mean '--layers'?"),
        ("--max-epoch 3", "unrecognised option --max-epoch; did you mean '--max-epochs'?"),
        ("--confg x", "unrecognised option --confg; did you mean '--config'?"),
        ("--lay 3", "unrecognised option --lay; did you mean '--layers'?"),
        ("--no-data", "unrecognised option --no-data"),
        ("--data.x 3", "unrecognised option --data.x"),
        ("--optim.lr fast", "config.optim.lr: expected a float, got 'fast' (str)"),
        ("--amp no", "config.amp: expected true or false, got 'no' (str)"),
        ("--optim.lr 1 2", "config.optim.lr: expected a float, got ['1', '2'] (list)"),
        ("--optim.name adam", "config.optim.name: expected one of 'sgd', 'adamw', got 'adam'"),
        ("--act GLU", "config.act: 'GLU' is not a Act; did you mean 'GELU'?"),
        ("--optim.lr", "--optim.lr needs a value"),
        ("--epoch 3", "unrecognised option --epoch"),
        ("layers 3", "unexpected argument 'layers': values follow a --flag"),
        ("optim.lr=1e-3", "unexpected argument 'optim.lr=1e-3': write --optim.lr=1e-3"),
        ("--lr 3", "unrecognised option --lr; did you mean '--optim.lr' or '--warmup.lr'?"),
        ("--weight_decay 3", "unrecognised option --weight_decay; did you mean '--optim.weight-d"),
        ("--model.name x", "unrecognised option --model.name; did you mean '--optim.name' or"),
        ("--config", "--config needs a file"),
        ("--config missing.yaml", "missing.yaml: cannot be read"),
    ],
)
def test_a_wrong_flag_leaves_with_code_2_and_says_what_is_valid(arguments, problem, capsys):
    code, out, err = leaves(Training, arguments.split(), capsys)

    assert code == 2
    assert out == ""
    assert f"error: {problem}" in err
    assert "--help" in err


def test_state_is_refused_on_the_command_line_of_a_plain_configuration(capsys):
    code, _, err = leaves(Config, ["--epoch", "3"], capsys)

    assert code == 2
    assert "config.epoch is the run's state" in err


def test_a_near_miss_on_the_command_line_of_a_plain_configuration_warns():
    with pytest.warns(UserWarning, match="did you mean 'max_epochs'"):
        Config.parse(["--max-epoch", "3"])


def test_files_are_merged_from_left_to_right_and_flags_come_last(tmp_path):
    Path("a.yaml").write_text("optim: {lr: 1e-1, weight_decay: 1}\nlayers: [1]\n")
    Path("b.json").write_text('{"optim": {"lr": 2}, "amp": false}')

    config = Training.parse(
        ["--layers", "7", "--config", "a.yaml", "--config=b.json", "--optim.weight-decay", "5"]
    )

    assert config.optim.to_dict() == {"name": "adamw", "lr": 2.0, "weight_decay": 5.0}
    assert config.layers == [7]
    assert config.amp is False
    assert config == Training.parse(
        ["--config", "a.yaml", "b.json", "--layers", "7", "--optim.weight_decay=5"]
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("layers: [1]\nlayers: [2]\n", "c.yaml, line 2, column 1: the key 'layers' appears twice"),
        ("layer: 3", "c.yaml: config has no key 'layer'; did you mean 'layers'?"),
        ("amp: no", "c.yaml: config.amp: expected true or false, got 'no' (str)"),
        ("epoch: 3", "c.yaml: config.epoch is the run's state"),
    ],
)
def test_a_wrong_file_leaves_with_code_2(text, problem, capsys):
    Path("c.yaml").write_text(text)

    code, _, err = leaves(Training, ["--config", "c.yaml"], capsys)

    assert code == 2
    assert f"error: {problem}" in err


def test_required_keys_may_come_from_a_file_and_from_flags(capsys):
    class Inner(Config):
        a: int
        b: int

    class Model(Config):
        inner: Inner
        c: int

    Path("c.yaml").write_text("inner: {a: 1}\n")

    model = Model.parse(["--config", "c.yaml", "--inner.b", "2", "--c", "3"])
    code, _, err = leaves(Model, ["--inner.b", "2"], capsys)

    assert model.to_dict() == {"inner": {"a": 1, "b": 2}, "c": 3}
    assert code == 2
    assert "no value and no default: config.c, config.inner.a" in err


def test_the_printed_configuration_can_be_read_back(capsys):
    arguments = ["--optim.lr", "3", "--layers", "1", "--width", "7", "--max-epochs", "2"]

    code, out, _ = leaves(Training, [*arguments, "--print-config"], capsys)
    Path("printed.yaml").write_text(out)

    assert code == 0
    assert load_yaml(out)["log_interval"] == 50
    again = Training.parse(["--config", "printed.yaml"])
    assert again.diff(Training.parse(arguments)) == {}


SCRIPT = """
from danling import Config

class Training(Config):
    lr: float = 0.1  # learning rate

if __name__ == "__main__":
    print(Training.parse())
"""


@pytest.mark.parametrize(
    ("arguments", "code", "output"),
    [
        (["--lr", "3"], 0, "Training(lr=3.0)"),
        (["--lrr", "3"], 2, "train.py: error: unrecognised option --lrr; did you mean '--lr'?"),
        (["--help"], 0, "learning rate (default: 0.1)"),
    ],
)
def test_a_script_reads_its_own_command_line(arguments, code, output):
    Path("train.py").write_text(SCRIPT)

    done = subprocess.run(
        [sys.executable, "train.py", *arguments], capture_output=True, text=True, check=False
    )

    assert done.returncode == code
    assert output in done.stdout + done.stderr


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["/lib/ipykernel_launcher.py", "-f", "/run/jupyter/kernel-1a2b.json"],
        ["/lib/ipykernel_launcher.py", "--f=/run/jupyter/kernel-v3b.json"],
        ["/lib/ipykernel/__main__.py", "-f", "kernel-1.json"],
        ["/lib/colab_kernel_launcher.py", "-f", "/root/.local/kernel-1.json"],
    ],
)
def test_a_notebook_reads_no_argument_of_its_kernel(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments)

    assert Training.parse() == Training()
    assert Training.parse(["--layers", "3"]).layers == [3]


def test_the_printed_configuration_says_where_each_value_is_from(capsys):
    Path("base.yaml").write_text("# a comment\noptim:\n  lr: 2\n  weight_decay: 1\n")
    Path("c.yaml").write_text("extends: base.yaml\noptim: {weight_decay: 3}\nact: GELU\n")
    Path("d.json").write_text('{\n  "data": "x",\n  "weights": {"a": 1}\n}')
    arguments = ["--config", "c.yaml", "d.json", "--width", "7", "--extra.a", "1"]

    _, out, _ = leaves(Training, [*arguments, "--print-config"], capsys)

    for line in (
        "data: x  # d.json:2",
        "  lr: 2.0  # base.yaml:3",
        "  weight_decay: 3.0  # c.yaml:2",
        "  name: adamw  # default",
        "act: GELU  # c.yaml:3",
        "  a: 1.0  # d.json:3",
        "width: 7  # command line",
        "  a: 1  # command line",
        "layers: [64, 64]  # default",
        "log_interval: 50  # default",
    ):
        assert line in out.splitlines()


def test_values_of_several_lines_are_printed_so_that_they_can_be_read_back(capsys):
    values = {"text": "a\nb: c # d\n", "nested": [[1], {"a": "${x}"}], "long": list(range(99))}
    Config(values).save("c.yaml")

    _, out, _ = leaves(Config, ["--config", "c.yaml", "--print-config"], capsys)
    Path("printed.yaml").write_text(out)

    assert Config.load("printed.yaml").to_dict() == Config(Config(values).resolved()).to_dict()


def test_a_class_is_chosen_by_a_name_from_those_that_are_allowed(capsys):
    class Model(Config):
        kind: Literal["mlp", "cnn"] = "mlp"

    class Choice(Config):
        model: Model = Model()

    assert Choice.parse(["--model.kind", "cnn"]).model.kind == "cnn"
    code, _, err = leaves(Choice, ["--model.kind", "mpl"], capsys)
    assert code == 2
    assert "config.model.kind: expected one of 'mlp', 'cnn', got 'mpl'" in err
