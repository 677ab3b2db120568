"""The same work in the trainers that bring most with them, as their documentation writes it."""

# mypy: disable-error-code="import-not-found, misc, arg-type, unused-ignore"
# The peers are not installed where types are checked.

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from tests.benchmarks.tasks import Batch
from tests.benchmarks.work import LOG_INTERVAL, Marks, Work, make_optimizer


def lightning(work: Work) -> list[float]:
    import lightning as L
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.loggers import TensorBoardLogger

    marks, criterion, features = Marks(), nn.CrossEntropyLoss(), work.features

    class Timer(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            marks.add()

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = work.task.make_model()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = criterion(self.model(batch[0]), batch[1])
            if features:
                self.log("train/loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val/loss", criterion(self.model(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self.model)

    saver = ModelCheckpoint(work.folder / "lightning", monitor="val/loss", save_last=True)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=work.epochs,
        callbacks=[Timer(), saver] if features else [Timer()],
        logger=TensorBoardLogger(work.folder / "lightning") if features else False,
        log_every_n_steps=LOG_INTERVAL,
        enable_checkpointing=features,
        enable_progress_bar=features,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Module(), _loader(work.train), _loader(work.val) if features else None)
    return marks.epochs


def transformers(work: Work) -> list[float]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    marks, model, features = Marks(), work.task.make_model(), work.features

    class Timer(TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            marks.add()

    class InMemory(Trainer):
        def get_train_dataloader(self) -> Any:
            return _loader(work.train)

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            return _loader(work.val)

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            return nn.functional.cross_entropy(model(inputs[0]), inputs[1])

        def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            with torch.no_grad():
                return self.compute_loss(model, inputs), None, None

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(work.folder / "transformers")
    arguments = TrainingArguments(
        output_dir=str(work.folder / "transformers"),
        num_train_epochs=work.epochs,
        per_device_train_batch_size=8,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="tensorboard" if features else "none",
        logging_strategy="steps" if features else "no",
        logging_steps=LOG_INTERVAL,
        eval_strategy="epoch" if features else "no",
        save_strategy="epoch" if features else "no",
        save_total_limit=2,
        load_best_model_at_end=features,
        disable_tqdm=not features,
    )
    optimizer = make_optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    InMemory(
        model,
        arguments,
        train_dataset=work.data["train"],
        eval_dataset=work.data["val"] if features else None,
        optimizers=(optimizer, schedule),
        callbacks=[Timer()],
    ).train()
    return marks.epochs


def keras(work: Work) -> list[float]:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras as k

    marks, folder = Marks(), work.folder / "keras"
    folder.mkdir(exist_ok=True)

    class Timer(k.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            marks.add()

    class Scalars(k.callbacks.Callback):
        """Its own TensorBoard callback needs TensorFlow."""

        def __init__(self) -> None:
            super().__init__()
            self.step, self.writer = 0, SummaryWriter(str(folder))

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.step += 1
            if self.step % LOG_INTERVAL == 0:
                self.writer.add_scalar("train/loss", logs["loss"], self.step)

        def on_train_end(self, logs: Any = None) -> None:
            self.writer.close()

    def endless(batches: list[Batch]) -> Iterator[Batch]:
        while True:
            yield from batches

    def given(batches: Any) -> Any:
        return endless(batches) if isinstance(batches, list) else batches

    model = k.Sequential([k.Input((16,)), k.layers.Dense(32, "relu"), k.layers.Dense(4)])
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(k.optimizers.SGD(0.01), loss)
    savers = [
        k.callbacks.ModelCheckpoint(folder / "last.keras"),
        k.callbacks.ModelCheckpoint(folder / "best.keras", monitor="val_loss", save_best_only=True),
    ]
    model.fit(
        given(work.train),
        steps_per_epoch=len(work.train),
        epochs=work.epochs,
        verbose=1 if work.features else 0,
        validation_data=given(work.val) if work.features else None,
        validation_steps=len(work.val) if work.features else None,
        callbacks=[Timer(), Scalars(), *savers] if work.features else [Timer()],
    )
    return marks.epochs


def _loader(batches: Any) -> Any:
    """The loader; of batches in a list one, for trainers that take a list to be several loaders."""
    if not isinstance(batches, list):
        return batches
    return DataLoader(batches, batch_size=None, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
