from __future__ import annotations

import pytest

from danling.errors import ConfigError
from danling.experiments.values import (
    duration_text,
    one_line,
    parse_duration,
    size_text,
    value_text,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604800), ("1h 30m", 5400), ("4w", 2419200)],
)
def test_durations_are_read(text: str, seconds: float):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7 fortnights", "1h-2m", "9" * 400 + "x"])
def test_what_is_no_duration_is_refused(text: str):
    with pytest.raises(ConfigError, match="no duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (float("nan"), ""), (-1, "0.0s"), (9.96, "10.0s"), (59, "59s"), (86400, "1d")],
)
def test_durations_are_written(seconds: float | None, text: str):
    assert duration_text(seconds) == text


def test_sizes_and_values_are_short():
    assert [size_text(n) for n in (0, 1023, 1 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 MiB",
        "3.0 TiB",
    ]
    assert value_text([None, 1.0, "a"]) == "[null, 1, a]"


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\nb", "a\rb", "a\u202eb", "a\x00b", "a\x9bb"])
def test_nothing_reaches_the_terminal_raw(text: str):
    shown = one_line(text)

    assert "\\" in shown
    assert shown.isprintable()


def test_letters_of_all_languages_stay():
    assert one_line("Größe 大きさ 📈") == "Größe 大きさ 📈"
