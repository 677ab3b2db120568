"""The examples on a GPU: half precision, compiled, and sharded, as people launch them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from danling.checkpoint.reading import read_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DEVICE = "cuda"
MIXED = "--accelerate.mixed_precision"
COMPILED = ["--accelerate.dynamo_backend", "inductor"]


def run(*command: object) -> str:
    """What an example prints when it runs in the empty working directory, its log included."""
    finished = subprocess.run(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def accuracy(printed: str) -> float:
    found = re.search(r"test accuracy: +([\d.]+)%", printed)
    assert found is not None, printed
    return float(found[1])


def only_run(root: Path) -> Path:
    (record,) = root.glob("experiments/*/run.json")
    return record.parent


def checkpoint(root: Path) -> dict[str, Any]:
    return read_checkpoint(only_run(root) / "checkpoints" / "latest.pth")


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ([], "fp32"),
        ([MIXED, "bf16"], "bf16"),
        ([MIXED, "fp16"], "fp16"),
        ([MIXED, "bf16", *COMPILED], "bf16"),
    ],
    ids=["full", "bf16", "fp16", "compiled"],
)
def test_digits_is_learned(options: list[str], precision: str, tmp_path: Path) -> None:
    printed = run(EXAMPLES / "digits.py", "--max_epochs", 6, *options)

    saved = checkpoint(tmp_path)
    assert accuracy(printed) > 93
    assert re.search(rf"on {DEVICE}\S*, .*precision {precision}\b", printed), printed
    assert {tensor.dtype for tensor in saved["model"].values()} == {torch.float32, torch.int64}
    assert not [name for name in saved["model"] if "_orig_mod" in name]
    assert all(torch.isfinite(tensor).all() for tensor in saved["model"].values())
    assert (saved["scaler"] is not None) == (precision == "fp16")
    losses = [row["train"]["loss"] for row in saved["results"]]
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision_goes_on_exactly(precision: str, tmp_path: Path) -> None:
    command = [EXAMPLES / "digits.py", "--resume", "auto", "--deterministic", "true"]
    options = [MIXED, precision, "--max_epochs", 4]
    run(*command, *options, "--project_root", "whole")
    whole = read_checkpoint(*tmp_path.glob("whole/*/checkpoints/latest.pth"))

    run(*command, *options, "--max_steps", 38)  # two epochs
    (path,) = tmp_path.glob("experiments/*/checkpoints/latest.pth")
    run(*command[:1], *options, "--resume", path, "--deterministic", "true")

    found = checkpoint(tmp_path)
    assert found["run"]["resume_report"]["exact"], found["run"]["resume_report"]
    assert found["scaler"] == whole["scaler"]
    for name, tensor in whole["model"].items():
        assert torch.equal(found["model"][name], tensor), name


FSDP = ["--use_fsdp", "--fsdp_version", 2, "--fsdp_cpu_ram_efficient_loading", "false"]
WRAP = ["--fsdp_auto_wrap_policy", "SIZE_BASED_WRAP", "--fsdp_min_num_params", 1000]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_fsdp_on_one_gpu_learns_and_saves_plain_weights(precision: str, tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", *FSDP, *WRAP]
    options = ["--num_processes", 1, "--mixed_precision", precision]

    printed = run(*launch, *options, EXAMPLES / "distributed.py", "--max_epochs", 6)

    saved = checkpoint(tmp_path)
    assert accuracy(printed) > 90
    assert "1 processes" in printed
    assert json.loads((only_run(tmp_path) / "run.json").read_text())["status"] == "finished"
    assert set(saved["model"]) == {
        *(f"{layer}.{name}" for layer in (0, 1, 4) for name in ("weight", "bias")),
        *(f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
    }
    assert saved["model"]["0.weight"].shape == (128, 64)
    moments = saved["optimizer"]["state"]
    assert sorted(moments) == list(range(6))
    assert moments[0]["exp_avg"].shape == (128, 64)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_deepspeed_on_one_gpu_learns_and_goes_on(
    precision: str, stage: int, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--use_deepspeed"]
    options = ["--zero_stage", stage, "--num_processes", 1, "--mixed_precision", precision]
    script = [EXAMPLES / "distributed.py", "--resume", "auto"]
    # batch normalisation has buffers, which DeepSpeed leaves in full precision
    printed = run(*launch, *options, *script, "--max_epochs", 4)

    assert accuracy(printed) > 85
    path = only_run(tmp_path) / "checkpoints" / "latest.pth"
    printed = run(*launch, *options, *script, "--resume", path, "--max_epochs", 6)

    assert accuracy(printed) > 90
    assert checkpoint(tmp_path)["model"]["0.weight"].shape == (128, 64)
