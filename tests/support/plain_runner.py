"""A runner on plain PyTorch, without Accelerate: what it takes to bring another platform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from danling import BaseRunner
from danling.callback import Callback

Batch = tuple[Tensor, Tensor]


class PlainRunner(BaseRunner):
    """Trains a module on lists of batches, on the CPU and in one process."""

    device = torch.device("cpu")

    def __init__(
        self,
        config: Mapping[str, Any],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Mapping[str, list[Batch]],
        callbacks: tuple[Callback, ...] = (),
    ) -> None:
        super().__init__(config, callbacks=callbacks)
        self.model, self.optimizer, self.batches = model, optimizer, batches
        self.norm: Tensor | None = None
        self.logged: list[float] = []

    @property
    def splits(self) -> list[str]:
        return list(self.batches)

    @property
    def batch_size(self) -> int:
        return len(self.batches["train"][0][0])

    @property
    def steps_per_epoch(self) -> int:
        return len(self.batches["train"])

    @property
    def total_steps(self) -> int:
        return int(self.config.max_epochs or 0) * self.steps_per_epoch

    @property
    def grad_norm(self) -> Tensor:
        assert self.norm is not None
        return self.norm

    def train(self) -> None:
        with self:
            self.accept_directory()
            self.callbacks("on_train_start", self)
            self.clock.start()
            while not self.is_ending:
                self._epoch()
            self.callbacks("on_train_end", self)

    def _epoch(self) -> None:
        self.callbacks("on_epoch_start", self)
        losses = [self._step(batch) for batch in self.batches["train"]]
        result = {"train": {"loss": sum(losses) / len(losses)}, "val": self._evaluate()}
        self.counters.epoch += 1
        self.counters.batch_index = 0
        self.epoch_complete = True
        place = {"epoch": self.epoch, "global_step": self.global_step}
        self.history.add(place | result)
        self.callbacks("on_log", self, {"val/loss": result["val"]["loss"]})
        self.callbacks("on_epoch_end", self)
        self.callbacks("on_checkpoint", self)

    def _step(self, batch: Batch) -> float:
        self.callbacks("on_batch_start", self, batch)
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        loss.backward()
        self.norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters()])
        self.callbacks("on_before_step", self)
        self.optimizer.step()
        self.counters.global_step += 1
        self.is_log_step = self.global_step % self.config.log_interval == 0
        self.callbacks("on_step", self)
        self.optimizer.zero_grad()
        self.counters.batch_index += 1
        self.callbacks("on_batch_end", self, batch, loss)
        if self.is_log_step:
            self.callbacks("on_log", self, {"train/loss": loss.item()})
        return loss.item()

    def _evaluate(self) -> dict[str, float]:
        self.callbacks("on_evaluate_start", self, "val")
        with torch.no_grad():
            losses = [
                nn.functional.mse_loss(self.model(x), y).item() for x, y in self.batches["val"]
            ]
        self.evaluations += 1
        result = {"loss": sum(losses) / len(losses)}
        self.callbacks("on_evaluate_end", self, "val", result)
        return result

    def log(self, name: str | Mapping[str, Any], value: Any = None) -> None:
        self.callbacks("on_log", self, dict(name) if isinstance(name, Mapping) else {name: value})

    def state_dict(self, *, alone: bool = False) -> dict[str, Any]:
        own = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return super().state_dict(alone=alone) | own

    def go_on(self, checkpoint: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.load_state_dict(checkpoint)
        self.callbacks("on_load", self, checkpoint)
