"""LoRA: a small GPT-2, made from a configuration, is adapted to Python's manual with PEFT.

    pip install "transformers>=4.50" "peft>=0.14"

A batch is a mapping with the model's own arguments, and the model returns the loss: no step of your
own is needed. The weights that are frozen stay what they are.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2022
(https://arxiv.org/abs/2106.09685).
"""

from pydoc_data.topics import topics

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import danling as dl


class Adapting(dl.Config):
    experiment_name = "lora"
    seed = 0
    max_epochs = 3
    dataloader = {"batch_size": 16}
    lr: float = 1e-3
    rank: int = 4


def make_data() -> list[dict[str, Tensor]]:
    text = "".join(topics.values())[:16384].encode("ascii", "replace")
    windows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().view(-1, 64)
    return [{"input_ids": window, "labels": window} for window in windows]


def make_model() -> nn.Module:
    small = GPT2Config(
        vocab_size=128,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
        n_embd=32,
        n_layer=2,
        n_head=2,
    )
    lora = LoraConfig(r=config.rank, target_modules=["c_attn"], fan_in_fan_out=True)
    model: nn.Module = get_peft_model(GPT2LMHeadModel(small), lora)
    return model


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(adapters, lr=config.lr)


config = Adapting.parse()
dl.seed_everything(config)
model = make_model()
runner = dl.AccelerateRunner(
    config, model=model, optimizer=make_optimizer(model), datasets={"train": make_data()}
)
runner.train()
