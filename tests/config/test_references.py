from __future__ import annotations

from pathlib import Path

import pytest

from danling import Config, ConfigError


class Optim(Config):
    lr: float = 1e-3
    name: str = "adamw"


class Training(Config):
    optim: Optim = Optim()
    warmup: float = 0.0
    title: str = ""
    rates: list[float] = []  # noqa: RUF012
    weights: dict[str, float] = {}  # noqa: RUF012


def loaded(text: str) -> Training:
    Path("c.yaml").write_text(text)
    return Training.load("c.yaml")


def test_a_reference_has_the_value_and_the_type_of_its_key():
    config = loaded(
        "warmup: ${optim.lr}\noptim: {lr: 0.5}\ntitle: 'lr=${ optim.lr } ${optim.name}'\n"
        "rates: [1, '${warmup}']\nweights: {a: '${warmup}'}\n"
    )

    assert config.warmup == 0.5
    assert config.title == "lr=0.5 adamw"
    assert config.rates == [1.0, 0.5]
    assert config.weights == {"a": 0.5}


def test_a_reference_sees_what_the_command_line_sets_and_may_be_replaced_by_it():
    Path("c.yaml").write_text("warmup: ${optim.lr}\ntitle: ${run_name}\n")

    config = Training.parse(["--config", "c.yaml", "--optim.lr", "2", "--title", "x"])
    other = Training.parse(["--optim.lr", "${warmup}", "--warmup=3"])

    assert (config.warmup, config.title) == (2.0, "x")
    assert other.optim.lr == 3.0


def test_a_section_may_be_a_reference():
    Path("c.yaml").write_text("student: ${teacher}\nteacher: {width: '${size}'}\nsize: 3\n")

    config = Config.load("c.yaml")
    config.teacher.width = 4

    assert config.student.width == 3


def test_a_key_is_not_set_inside_a_section_that_is_a_reference(capsys):
    with pytest.raises(SystemExit):
        Config.parse(["--student", "${teacher}", "--student.width", "3"])

    assert "config.student.width: 'student' refers to another section" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("warmup: ${optim.lrr}", "c.yaml: config.warmup: ${optim.lrr} refers to no key: config.op"),
        ("title: ${HOME}", "write $${HOME} for the text itself"),
        ("title: ${optim.name}\noptim: {name: '${title}'}", "circle: title -> optim.name -> title"),
        ("warmup: ${warmup}", "circle: warmup -> warmup"),
        ("warmup: ${optim.name}", "config.warmup: expected a float, got 'adamw' (str)"),
    ],
)
def test_a_wrong_reference_names_its_key(text, problem):
    with pytest.raises(ConfigError) as caught:
        loaded(text)

    assert problem in str(caught.value)


@pytest.mark.parametrize("text", ["${x}", "$${x}", "$$${x}", "a ${x", "$x", "$", "${}", "{$}"])
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_text_that_looks_like_a_reference_comes_back_from_a_file(text, suffix):
    config = Config(text=text, inner={"list": [text]})

    config.save(f"c.{suffix}")

    assert Config.load(f"c.{suffix}") == config
