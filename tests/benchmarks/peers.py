"""The same work in the trainers of others, each written as its own documentation writes it."""

# mypy: disable-error-code="import-not-found, has-type, misc, arg-type, unused-ignore"
# The peers are not installed where types are checked.

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

import danling as dl
from danling.callbacks import TensorBoard
from tests.benchmarks.work import (
    LOG_INTERVAL,
    Marks,
    Work,
    make_optimizer,
)


def danling(work: Work) -> list[float]:
    model, marks = work.task.make_model(), Marks()

    class Timer(dl.Callback):
        priority = dl.Priority.HIGHEST

        def on_epoch_start(self, runner: dl.AccelerateRunner) -> None:
            marks.add()

    kinds = ("train", "val") if work.features else ("train",)
    data = {kind: work.data[kind] for kind in kinds}
    is_dataset = isinstance(data["train"], Dataset)
    options = {"batch_size": work.task.batch_size, "num_workers": work.task.workers}
    dl.AccelerateRunner(
        {
            "seed": 0,
            "max_epochs": work.epochs,
            "project_root": str(work.folder),
            "log_interval": LOG_INTERVAL,
            "accelerate": {"cpu": True},
            "dataloader": options | {"persistent_workers": work.task.workers > 0},
        },
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=make_optimizer(model),
        datasets=data if is_dataset else None,
        dataloaders=None if is_dataset else data,
        default_callbacks=work.features,
        callbacks=[Timer(), TensorBoard()] if work.features else [Timer()],
    ).train()
    return marks.epochs


def ignite(work: Work) -> list[float]:
    from ignite.engine import Engine, Events

    model, criterion, marks = work.task.make_model(), nn.CrossEntropyLoss(), Marks()
    optimizer = make_optimizer(model)

    def step(engine: Any, batch: Any) -> float | torch.Tensor:
        input, target = batch
        loss = criterion(model(input), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    trainer = Engine(step)

    @trainer.on(Events.EPOCH_STARTED)
    def start() -> None:
        model.train()
        marks.add()

    if work.features:
        _ignite_features(trainer, model, optimizer, criterion, work)
    trainer.run(work.train, max_epochs=work.epochs)
    return marks.epochs


def _ignite_features(
    trainer: Any, model: nn.Module, optimizer: Any, criterion: nn.Module, work: Work
) -> None:
    from ignite.engine import Events, create_supervised_evaluator
    from ignite.handlers import Checkpoint, DiskSaver, ProgressBar, TensorboardLogger
    from ignite.handlers import global_step_from_engine as step_of
    from ignite.metrics import Loss

    folder = work.folder / "ignite"
    evaluator = create_supervised_evaluator(model, metrics={"loss": Loss(criterion)})
    ProgressBar().attach(trainer, output_transform=lambda loss: {"loss": loss})
    logger = TensorboardLogger(log_dir=str(folder))
    logger.attach_output_handler(
        trainer,
        Events.ITERATION_COMPLETED(every=LOG_INTERVAL),
        tag="train",
        output_transform=lambda loss: {"loss": loss},
    )
    parts = {"model": model, "optimizer": optimizer, "trainer": trainer}
    saver = DiskSaver(str(folder), require_empty=False)
    last = Checkpoint(parts, saver, filename_prefix="last", n_saved=1)
    best = Checkpoint(
        parts,
        saver,
        filename_prefix="best",
        n_saved=1,
        score_function=lambda engine: -engine.state.metrics["loss"],
        global_step_transform=step_of(trainer),
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(work.val))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, last)
    evaluator.add_event_handler(Events.COMPLETED, best)
    trainer.add_event_handler(Events.COMPLETED, lambda: logger.close())


def pytorch_accelerated(work: Work) -> list[float]:
    from pytorch_accelerated import Trainer
    from pytorch_accelerated.callbacks import (
        ProgressBarCallback,
        SaveBestModelCallback,
        TrainerCallback,
    )

    model, marks = work.task.make_model(), Marks()
    folder = work.folder / "pytorch-accelerated"
    folder.mkdir(exist_ok=True)

    class Timer(TrainerCallback):
        def on_train_epoch_start(self, trainer: Any, **_: Any) -> None:
            marks.add()

    class Features(TrainerCallback):
        def __init__(self) -> None:
            self.step, self.writer = 0, SummaryWriter(str(folder))

        def on_train_step_end(self, trainer: Any, batch_output: Any, **_: Any) -> None:
            self.step += 1
            if self.step % LOG_INTERVAL == 0:
                self.writer.add_scalar("train/loss", batch_output["loss"].item(), self.step)

        def on_training_run_epoch_end(self, trainer: Any, **_: Any) -> None:
            trainer.save_checkpoint(folder / "last.pt")

        def on_training_run_end(self, trainer: Any, **_: Any) -> None:
            self.writer.close()

    class Given(Trainer):
        def create_train_dataloader(self, batch_size: int, **_: Any) -> Any:
            return work.train

        def create_eval_dataloader(self, batch_size: int, **_: Any) -> Any:
            return work.val

    class InMemory(Given):
        """Batches as they are: it prepares only what has a batch size."""

        def _prepare_model_optimizer_and_dataloaders(self) -> None:
            self._accelerator = self._create_accelerator()
            self.model, self.optimizer = self._accelerator.prepare(self.model, self.optimizer)

    best = SaveBestModelCallback(save_path=folder / "best.pt", watch_metric="eval_loss_epoch")
    kind = Given if getattr(work.train, "batch_size", None) else InMemory
    trainer = kind(
        model,
        nn.CrossEntropyLoss(),
        make_optimizer(model),
        callbacks=[Timer, Features(), ProgressBarCallback, best] if work.features else [Timer],
    )
    trainer.train(
        work.data["train"],
        num_epochs=work.epochs,
        eval_dataset=work.data["val"] if work.features else None,
    )
    return marks.epochs
