"""Any file of a run may be damaged: what goes on is exact, and what cannot names run and file."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from danling.callback import Callback
from danling.callbacks import CSVLogger, EarlyStopping, TensorBoard
from danling.errors import DanLingError
from tests.support.resume_runs import interrupted, trained, weights


def a_flipped_bit(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def a_cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def a_zeroed_block(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    end = min(start + rng.choice([16, 512, 4096]), len(content))
    return content[:start] + bytes(end - start) + content[end:]


def random_bytes(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    end = min(start + rng.choice([1, 16, 512]), len(content))
    return content[:start] + rng.randbytes(end - start) + content[end:]


def more_at_the_end(content: bytes, rng: random.Random) -> bytes:
    return content + rng.choice([rng.randbytes(64), b"\n", b"{", content])


def a_missing_piece(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randrange(1, 64) :]


KINDS: list[Callable[[bytes, random.Random], bytes]] = [
    a_flipped_bit,
    a_cut,
    a_zeroed_block,
    random_bytes,
    more_at_the_end,
    a_missing_piece,
]


def attached() -> list[Callback]:
    return [TensorBoard(), CSVLogger(), EarlyStopping(patience=9)]


def damage(directory: Path, rng: random.Random) -> Path:
    """Damage one file, or take it away; says which."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    path = rng.choice(files)
    if rng.random() < 0.1:
        path.unlink()
    else:
        path.write_bytes(rng.choice(KINDS)(path.read_bytes(), rng))
    return path


@pytest.mark.parametrize(
    "block", [pytest.param(n, marks=[pytest.mark.exhaustive] if n else []) for n in range(10)]
)
def test_a_run_of_which_a_file_is_damaged_goes_on_exactly_or_names_it(block: int, tmp_path: Path):
    expected = weights(trained(attached(), project_root="undisturbed"))
    first = interrupted(9, attached(), resume="auto")
    shutil.copytree("experiments", tmp_path / "kept")

    for seed in range(20 * block, 20 * (block + 1)):
        shutil.rmtree("experiments")
        shutil.copytree(tmp_path / "kept", "experiments")
        damaged = damage(first.dir, random.Random(seed))
        told = f"seed {seed}: {damaged.relative_to(first.dir)}"
        refused, again = None, None
        try:
            again = trained(attached(), resume="auto")
        except DanLingError as error:
            refused = str(error)

        if again is None:
            assert first.dir.name in str(refused), told
            assert damaged.name in str(refused), told
            continue
        assert again.dir == first.dir, told
        assert weights(again) == expected, told
        report = again.resume_report
        assert report is not None, told
        assert report["exact"] or report["reasons"], told
        assert "going on in" in again.log_path.read_text(errors="replace"), told
