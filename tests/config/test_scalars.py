from __future__ import annotations

import math

import pytest

from danling.config.scalars import read_scalar
from danling.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 1e-3),
        ("1E+3", 1e3),
        ("6.02e23", 6.02e23),
        ("12e03", 12e3),
        ("1.", 1.0),
        ("-.5", -0.5),
        ("010", 10),
        ("0o14", 12),
        ("0x1F", 31),
        ("+1", 1),
        ("-1", -1),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("nan", "nan"),
        ("1e", "1e"),
        ("\u0661", "\u0661"),
    ],
)
def test_a_word_means_what_yaml_1_2_says(text, expected):
    value = read_scalar(text)

    assert value == expected
    assert type(value) is type(expected)


def test_not_a_number_is_read():
    assert math.isnan(read_scalar(".nan"))


def test_a_number_of_more_digits_than_python_reads_is_refused():
    with pytest.raises(ConfigError, match="a number of 5000 digits is more than Python reads"):
        read_scalar("9" * 5000)
