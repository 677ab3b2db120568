from __future__ import annotations

import io
import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from danling.errors import ConfigError
from danling.seed import (
    derive,
    isolated_rng,
    rng_state,
    seed_everything,
    seed_streams,
    set_rng_state,
)


@dataclass
class Settings:
    seed: int | None = None
    deterministic: bool = False
    recorded: list[int] = field(default_factory=list)

    def record_drawn_seed(self, seed: int) -> None:
        self.recorded.append(seed)


def draws() -> tuple:
    return (
        random.random(),
        random.gauss(0, 1),
        float(np.random.random()),
        float(np.random.standard_normal()),  # caches a second value
        torch.rand(2).tolist(),
        torch.randn(1).tolist(),
    )


def test_derived_numbers_never_change():
    actual = [derive(0, "order", 0), derive(0, "order", 1), derive(1, "batch", "train", 3)]

    assert actual == [2094333682667709378, 2002067703672271585, 468259698781625345]


def test_every_word_and_its_place_and_type_count():
    keys = {derive(0), derive(1), derive(0, 1), derive(0, 2), derive(0, 1, 2), derive(0, 2, 1)}

    assert len(keys | {derive(0, "1"), derive(0, "12"), derive(0, "1", "2")}) == 9
    assert all(0 <= key < 2**63 for key in keys)


def test_a_seed_decides_what_python_numpy_and_torch_draw():
    assert seed_everything(3) == 3
    first = draws()
    seed_everything(3)
    again = draws()
    seed_everything(4)
    other = draws()

    assert again == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_ranks_draw_differently_and_agree_on_the_seed():
    seeds = [seed_everything(3, rank) for rank in (1, 2)]
    values = []
    for rank in (0, 1, 2):
        seed_everything(3, rank)
        values.append(torch.rand(1).item())

    assert seeds == [3, 3]
    assert len(set(values)) == 3


def test_a_missing_seed_is_drawn_and_recorded():
    first, second = Settings(), Settings()

    seeds = [seed_everything(first), seed_everything(second)]

    assert [first.recorded, second.recorded] == [[seeds[0]], [seeds[1]]]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_given_seed_is_not_recorded_as_drawn():
    settings = Settings(seed=0)

    assert seed_everything(settings) == 0
    assert settings.recorded == []


def test_several_processes_do_not_each_draw_a_seed(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(ConfigError, match=r"each of the 2 processes .* set config\.seed"):
        seed_everything(Settings())


def test_deterministic_asks_torch_for_it(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)

    seed_everything(Settings(seed=0, deterministic=True))

    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_the_state_survives_a_weights_only_file_in_the_middle_of_everything():
    seed_everything(5)
    draws()
    buffer = io.BytesIO()
    torch.save(rng_state(), buffer)
    expected = draws()
    seed_everything(6)
    buffer.seek(0)

    reasons = set_rng_state(torch.load(buffer, weights_only=True))

    assert reasons == []
    assert draws() == expected


def test_a_missing_cuda_device_is_a_reason():
    state = rng_state()
    count = torch.cuda.device_count()
    state["cuda"] = [*torch.cuda.get_rng_state_all(), torch.zeros(16, dtype=torch.uint8)]

    reasons = set_rng_state(state)

    assert reasons == [f"random state of {count + 1} CUDA devices was saved, now there are {count}"]


@pytest.mark.parametrize("fails", [False, True])
def test_an_isolated_block_leaves_no_trace(fails):
    seed_everything(5)
    draws()
    expected_state = rng_state()
    expected = draws()
    set_rng_state(expected_state)

    with pytest.raises(KeyError) if fails else isolated_rng(), isolated_rng():
        seed_everything(9)
        draws()
        if fails:
            raise KeyError

    assert draws() == expected


def test_streams_of_neighbouring_keys_have_nothing_in_common():
    seen = []
    for key in (derive(0, 1), derive(0, 2)):
        seed_streams(key)
        seen += [random.random(), float(np.random.random()), torch.rand(1).item()]

    assert len(set(seen)) == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_generators_are_saved_and_put_back():
    torch.cuda.manual_seed_all(1)
    state = rng_state()
    expected = torch.rand(3, device="cuda")
    set_rng_state(state)
    with isolated_rng():
        torch.rand(5, device="cuda")

    assert torch.equal(torch.rand(3, device="cuda"), expected)
