from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danling.callback import Callback
from danling.callbacks import EMAWeightAveraging, GenerationSamples
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner


def echo(model: Any, prompts: list[str]) -> list[str]:
    return [f"{prompt}: {float(model.weight.detach()[0, 0]):.6f}" for prompt in prompts]


class TestContract(CallbackContract):
    def make(self):
        return GenerationSamples(["one", "two"], function=echo)


class TestContractOfDrawing(CallbackContract):
    def make(self):
        return GenerationSamples(
            ["one"], function=lambda model, prompts: [str(torch.rand(1)) for _ in prompts]
        )


class Shown(Callback):
    """Keeps what is shown, as a tracker does."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, int, str]] = []

    def log_text(self, runner: Any, tag: str, markdown: str) -> None:
        self.texts.append((tag, runner.global_step, markdown))


def test_a_table_is_shown_at_the_evaluations_of_the_split():
    shown, samples = Shown(), GenerationSamples(["a|b"], function=echo, every_n_evaluations=2)
    runner = TinyRunner({"max_epochs": 3}, callbacks=[samples, shown])
    runner.train()

    assert [(tag, step) for tag, step, _ in shown.texts] == [
        ("val/generated", 4),
        ("val/generated", 12),
    ]
    [text] = echo(runner.model, ["a|b"])
    assert samples.samples == {12: [("a|b", text)]}
    assert shown.texts[1][2].splitlines()[2] == "| a\\|b | {} |".format(text.replace("|", "\\|"))


def test_it_generates_with_the_weights_that_are_evaluated():
    samples = GenerationSamples(["x"], function=echo)
    average = EMAWeightAveraging(0.5)
    runner = TinyRunner(callbacks=[samples, average])
    runner.train()

    weights = runner.state_dict()["model"]["weight"]
    assert samples.samples[8] == [("x", f"x: {float(weights[0, 0]):.6f}")]
    assert f"{float(weights[0, 0]):.6f}" != f"{float(runner.model.weight.detach()[0, 0]):.6f}"


class Speller:
    """A tokenizer of letters, with the part of the interface of `transformers` that is called."""

    def __call__(self, texts: list[str], return_tensors: str, padding: bool) -> dict[str, Tensor]:
        length = max(map(len, texts))
        rows = [[0] * (length - len(text)) + [ord(letter) for letter in text] for text in texts]
        ids = torch.tensor(rows)
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def batch_decode(self, tokens: Tensor, skip_special_tokens: bool) -> list[str]:
        return ["".join(chr(token) for token in row if token) for row in tokens.tolist()]


def test_a_model_of_transformers_generates_by_its_own_method():
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=128, n_positions=32, n_embd=8, n_layer=1, n_head=1, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    samples = GenerationSamples(
        ["ab", "abc"], Speller(), max_new_tokens=4, do_sample=True, split="val"
    )
    runner = TinyRunner({"max_epochs": 1}, callbacks=[samples])
    ids = torch.randint(1, 128, (8, 6), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    runner.datasets = {"train": data, "val": data}
    runner.model, runner.metrics = transformers.GPT2LMHeadModel(config), {}
    runner.optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.1)
    runner.train()

    [(_, pairs)] = samples.samples.items()
    for (prompt, text), known in zip(pairs, ["ab", "abc"], strict=True):
        assert prompt == known
        assert text.startswith(known)
        assert len(text) <= len(known) + 4


def test_a_model_that_generates_nothing_is_an_error():
    with pytest.raises(CallbackError, match=r"Linear has no generate\(\)"):
        TinyRunner(callbacks=[GenerationSamples(["a"], Speller())]).train()


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompts": []},
        {"prompts": "text", "function": echo},
        {"prompts": ["a"]},
        {"prompts": ["a"], "function": echo, "tokenizer": nn.Identity()},
        {"prompts": ["a"], "function": echo, "every_n_evaluations": 0},
    ],
)
def test_arguments_are_checked(arguments):
    with pytest.raises(CallbackError, match="GenerationSamples"):
        GenerationSamples(**arguments)
