# ruff: noqa: RUF012 - a config copies its defaults
from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from danling import Config
from danling.config.naming import made_name, values_at
from danling.identity.ids import run_name


class Optim(Config):
    lr: float = 0.1
    decay: float = 0.0


class Training(Config):
    optim: Optim
    teacher: Optim
    model: dict[str, str | int] = {}
    root: str = ""
    amp: bool = False
    api_key: str = ""


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "run"),
        (["--optim.lr", "1e-2", "--seed", "3"], "lr=0.01 seed=3"),
        (["--seed=3", "--optim.lr=1e-2"], "seed=3 lr=0.01"),
        (["--optim.lr", "1", "--optim.lr", "2"], "lr=2.0"),
        (["--optim.lr", "1", "--teacher.lr", "2"], "optim.lr=1.0 teacher.lr=2.0"),
        (["--amp"], "amp=true"),
        (["--model", '{"kind": "mlp", "width": 3}'], "kind=mlp width=3"),
        (["--root", "/data of me/digits/"], "root=digits"),
        (["--root", "a: b?"], "root=a_b_"),
        (["--run-name", "mine", "--seed", "3"], "mine"),
        (["--max-epochs", "9", "--max-steps", "3"], "run"),
        (["--log-interval", "3", "--resume", "auto", "--project-root", "x"], "run"),
        (["--dataloader.batch_size", "8", "--dataloader.num_workers", "2"], "batch_size=8"),
        (["--api-key", "s3cr3t", "--seed", "3"], "seed=3"),
        (["--root", "hf_abcdefghijklmnopqrstuvwxyz0123", "--seed", "3"], "seed=3"),
    ],
)
def test_a_run_is_named_after_the_keys_of_its_command_line(arguments: list[str], name: str):
    config = Training.parse(arguments)

    assert config.run_name == name
    assert run_name("digits", config.run_name) == f"digits-{name}"


def test_a_name_that_the_class_declares_stays():
    class Named(Training):
        run_name = "mlp"

    assert Named.parse(["--seed", "3"]).run_name == "mlp"


def test_a_name_in_a_file_stays_unless_it_was_made_of_the_command_line():
    Path("named.yaml").write_text("run_name: my first run\n")
    Path("made.yaml").write_text("run_name: lr=0.01 seed=3\nseed: 3\n")

    assert Training.parse(["--config", "named.yaml", "--seed", "4"]).run_name == "my first run"
    assert Training.parse(["--config", "made.yaml", "--seed", "4"]).run_name == "lr=0.01 seed=4"
    assert Training.parse(["--config", "made.yaml"]).run_name == "lr=0.01 seed=3"


def test_the_name_is_no_part_of_the_identity_and_no_difference():
    parsed = Training.parse(["--optim.lr", "0.01"])
    written = Training.parse([])
    written.optim.lr = 0.01

    assert parsed.semantic() == written.semantic()
    assert parsed == written
    assert parsed.diff(written) == written.diff(parsed) == {}


SCRIPT = """
import os

import danling as dl
import torch


class Optim(dl.Config):
    lr: float = 0.5


class Training(dl.Config):
    max_epochs = 3
    seed = 0
    resume = "auto"
    optim: Optim


class Failing(dl.Callback):
    def on_epoch_end(self, runner):
        if runner.epoch == 2 and "FAILS" in os.environ:
            raise SystemExit("the machine went away")


config = Training.parse()
model = torch.nn.Linear(1, 1)
runner = dl.AccelerateRunner(
    config,
    model=model,
    criterion=torch.nn.MSELoss(),
    optimizer=torch.optim.SGD(model.parameters(), lr=config.optim.lr),
    datasets={"train": [(torch.ones(1), torch.ones(1))] * 4},
    callbacks=[Failing()],
)
runner.train()
print(runner.name, runner.dir.name, runner.resume_report is not None)
"""


def test_auto_goes_on_with_the_run_by_whatever_flags_its_values_are_given(
    monkeypatch: pytest.MonkeyPatch,
):
    Path("train.py").write_text(SCRIPT)

    def train(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "train.py", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=180)

    monkeypatch.setenv("FAILS", "1")
    failed = train("--optim.lr", "0.1")
    monkeypatch.delenv("FAILS")
    other = train("--seed", "0", "--optim.lr", "0.1")  # a default that is written out

    [directory] = Path("experiments").glob("danling-*")
    assert failed.returncode == 1, failed.stderr
    assert directory.name.startswith("danling-lr=0.1-")
    assert other.stdout == f"danling-seed=0 lr=0.1 {directory.name} True\n", other.stderr


def test_a_name_that_is_set_later_wins():
    config = Training.parse(["--seed", "3"])
    config.run_name = "mine"

    assert config.run_name == "mine"


def test_the_name_is_stored_when_a_run_begins():
    config = Training.parse(["--seed", "3"])
    copied = pickle.loads(pickle.dumps(config.copy()))

    copied.bind_state({})

    assert "run_name" not in config
    assert copied.to_dict()["run_name"] == "seed=3"


def test_the_printed_configuration_says_where_the_name_is_from(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        Training.parse(["--seed", "3", "--print-config"])

    assert "run_name: seed=3  # made from the command line" in capsys.readouterr().out


def test_a_long_name_ends_with_the_number_of_pairs_that_have_no_room():
    name = made_name({f"key{index}": "x" * 30 for index in range(9)})

    assert name.startswith(f"key0={'x' * 24} key1=")
    assert name.endswith(" +7")
    assert len(name) < 90


def test_values_are_found_by_dotted_keys():
    values = {"optim": {"lr": 0.1, "groups": {"head": 1}}, "seed": 3}

    assert values_at(values, ["seed", "optim.lr"]) == {"seed": 3, "optim.lr": 0.1}
    assert values_at(values, ["optim"]) == {"optim.lr": 0.1, "optim.groups.head": 1}
    assert values_at(values, ["seed.x", "none", "optim.none"]) == {}
