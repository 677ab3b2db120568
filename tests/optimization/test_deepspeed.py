"""DeepSpeed's configuration and step, as far as they need no DeepSpeed; else in distributed/."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DeepSpeedPlugin
from torch import nn

from danling.config.config import Config
from danling.errors import ConfigError
from danling.optimization.deepspeed import fill_config, keep_types

CLIPPED = {"max_grad_norm": 0.5}


def filled(
    file: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    batch_size: int | None = 4,
    **plugin: Any,
) -> dict[str, Any]:
    """What is in the configuration of a plug-in, on two processes."""
    deepspeed = DeepSpeedPlugin(**{"zero_stage": 2, "zero3_init_flag": False, **plugin})
    deepspeed.deepspeed_config.update(file or {})
    accelerator = SimpleNamespace(deepspeed_plugin=deepspeed, num_processes=2)
    fill_config(accelerator, Config(CLIPPED if config is None else config), batch_size=batch_size)
    return dict(deepspeed.deepspeed_config)


def test_what_the_runner_knows_is_filled_in() -> None:
    found = filled()

    assert found["train_micro_batch_size_per_gpu"] == 4
    assert found["train_batch_size"] == 8
    assert found["gradient_accumulation_steps"] == 1
    assert found["gradient_clipping"] == 0.5
    assert found["zero_force_ds_cpu_optimizer"] is False


def test_without_clipping_the_engine_clips_nothing() -> None:
    assert filled(config={})["gradient_clipping"] == 0.0


def test_the_runner_counts_the_windows_that_the_file_asks_for() -> None:
    config = {"accelerate": {"gradient_accumulation_steps": 2}}

    found = filled({"gradient_accumulation_steps": 2, "train_batch_size": 16}, config)

    assert (found["gradient_accumulation_steps"], found["train_batch_size"]) == (1, 8)


def test_a_batch_size_that_nobody_knows_is_that_of_the_file() -> None:
    assert filled({"train_micro_batch_size_per_gpu": 7}, batch_size=None)["train_batch_size"] == 14
    assert filled(batch_size=None)["train_batch_size"] == 2


def test_a_second_runner_may_be_of_other_values() -> None:
    """Accelerate has one plug-in for all of a process."""
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 2}})
    accelerator = SimpleNamespace(deepspeed_plugin=plugin, num_processes=2)

    fill_config(accelerator, Config(CLIPPED), batch_size=4)
    fill_config(accelerator, Config({}), batch_size=8)

    assert plugin.deepspeed_config["gradient_clipping"] == 0.0
    assert plugin.deepspeed_config["train_batch_size"] == 16


@pytest.mark.parametrize(
    ("file", "config", "messages"),
    [
        ({"train_micro_batch_size_per_gpu": 5}, CLIPPED, ["_per_gpu is 5", "batch_size is 4"]),
        ({"gradient_accumulation_steps": 3}, CLIPPED, ["_steps is 3", "_steps is 1"]),
        ({"gradient_clipping": 1.0}, CLIPPED, ["_clipping is 1.0", "max_grad_norm is 0.5"]),
        ({"gradient_clipping": 1.0}, {}, ["gradient_clipping is 1.0", "max_grad_norm is 0.0"]),
        ({"train_batch_size": 9}, CLIPPED, ["train_batch_size is 9", "is 8"]),
        ({"optimizer": {"type": "Adam"}}, CLIPPED, ["a section 'optimizer'", "`optimizer=`"]),
        ({"scheduler": {"type": "WarmupLR"}}, CLIPPED, ["a section 'scheduler'", "`scheduler=`"]),
        ({"zero_optimization": {"stage": 0}}, CLIPPED, ["stage is 0"]),
        ({}, {"state_dict_type": "full"}, ["state_dict_type"]),
    ],
)
def test_what_contradicts_the_runner_is_refused(
    file: dict[str, Any], config: dict[str, Any], messages: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        filled(file, config)

    for message in messages:
        assert message in str(caught.value)


def test_a_model_of_half_precision_takes_and_gives_full_precision() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1, dtype=torch.bfloat16)

        def forward(self, inputs: dict[str, torch.Tensor], *, scale: torch.Tensor) -> Any:
            assert inputs["ids"].dtype == torch.int64
            return {"logits": self.linear(inputs["values"]) * scale}

    model = Scaled()
    keep_types(model)

    output = model(
        {"values": torch.ones(3, 2), "ids": torch.ones(3, dtype=torch.int64)},
        scale=torch.tensor(2.0),
    )

    assert output["logits"].dtype == torch.float32
