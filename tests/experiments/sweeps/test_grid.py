"""Which configurations a sweep has."""

from __future__ import annotations

from pathlib import Path

import pytest

from danling.errors import ConfigError
from danling.experiments.sweeps.grid import configurations, drawn, read_axes


def test_lists_and_ranges_of_a_command_line():
    axes = read_axes(["--optim.lr", "1e-3,1e-4", "--seed=0..2", "--betas", "[1, 2],[3, 4]"])

    assert axes == {
        "optim.lr": ["1e-3", "1e-4"],
        "seed": ["0", "1", "2"],
        "betas": ["[1, 2]", "[3, 4]"],
    }
    assert len(configurations(axes)) == 12
    assert configurations(axes)[0] == {"optim.lr": "1e-3", "seed": "0", "betas": "[1, 2]"}


def test_a_grid_of_a_file(tmp_path: Path):
    (tmp_path / "grid.yaml").write_text("optim.lr: [0.1, 0.01]\nseed: [0, 1]\n")

    assert read_axes([], "grid.yaml") == {"optim.lr": ["0.1", "0.01"], "seed": ["0", "1"]}


def test_draws_are_repeated_with_their_seed():
    axes = read_axes(["--optim.lr", "1e-5..1e-1:log", "--width", "8,16"])

    found = drawn(axes, 20, seed=1)

    assert found == drawn(axes, 20, seed=1) != drawn(axes, 20, seed=2)
    assert all(1e-5 <= float(row["optim.lr"]) <= 1e-1 for row in found)
    assert {row["width"] for row in found} == {"8", "16"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["lr"], "unexpected argument 'lr'"),
        (["--lr"], "--lr needs values"),
        (["--lr", "--seed"], "--lr needs values"),
        (["--seed", "4..0"], "no range"),
    ],
)
def test_wrong_flags_are_refused(flags: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        read_axes(flags)


def test_a_range_of_fractions_has_no_steps():
    with pytest.raises(ConfigError, match="--random"):
        configurations(read_axes(["--lr", "1e-5..1e-1"]))
