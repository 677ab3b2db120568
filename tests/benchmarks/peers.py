"""The same work in the trainers of others, each written as its own documentation writes it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

import danling as dl
from danling.callbacks import TensorBoard
from tests.benchmarks.work import (
    LOG_INTERVAL,
    Batch,
    Marks,
    Work,
    by_hand,
    by_hand_on_accelerate,
    make_model,
    make_optimizer,
)


class Contestant(NamedTuple):
    """Someone who does the work.

    Attributes:
        name: As the table has it.
        needs: The module without which it is left out.
        run: Does the work; gives the seconds of each epoch.
    """

    name: str
    needs: str
    run: Callable[[Work], list[float]]

    @property
    def is_installed(self) -> bool:
        return find_spec(self.needs) is not None


def danling(work: Work) -> list[float]:
    model, marks = make_model(), Marks()

    class Timer(dl.Callback):
        priority = dl.Priority.HIGHEST

        def on_epoch_start(self, runner: dl.AccelerateRunner) -> None:
            marks.add()

    dl.AccelerateRunner(
        {
            "seed": 0,
            "max_epochs": work.epochs,
            "project_root": str(work.folder),
            "log_interval": LOG_INTERVAL,
            "accelerate": {"cpu": True},
        },
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=make_optimizer(model),
        dataloaders={"train": work.train} | ({"val": work.val} if work.features else {}),
        default_callbacks=work.features,
        callbacks=[Timer(), TensorBoard()] if work.features else [Timer()],
    ).train()
    return marks.epochs


def ignite(work: Work) -> list[float]:
    from ignite.engine import Engine, Events

    model, criterion, marks = make_model(), nn.CrossEntropyLoss(), Marks()
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

    model, marks = make_model(), Marks()
    folder = work.folder / "pytorch-accelerated"
    folder.mkdir(exist_ok=True)

    class Timer(TrainerCallback):  # type: ignore[misc]  # no types
        def on_train_epoch_start(self, trainer: Any, **_: Any) -> None:
            marks.add()

    class Features(TrainerCallback):  # type: ignore[misc]  # no types
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

    class InMemory(Trainer):  # type: ignore[misc]  # no types
        def create_train_dataloader(self, batch_size: int, **_: Any) -> Any:
            return work.train

        def create_eval_dataloader(self, batch_size: int, **_: Any) -> Any:
            return work.val

        def _prepare_model_optimizer_and_dataloaders(self) -> None:
            self._accelerator = self._create_accelerator()
            self.model, self.optimizer = self._accelerator.prepare(self.model, self.optimizer)

    best = SaveBestModelCallback(save_path=folder / "best.pt", watch_metric="eval_loss_epoch")
    trainer = InMemory(
        model,
        nn.CrossEntropyLoss(),
        make_optimizer(model),
        callbacks=[Timer, Features(), ProgressBarCallback, best] if work.features else [Timer],
    )
    trainer.train(
        work.train,
        num_epochs=work.epochs,
        eval_dataset=work.val if work.features else None,
    )
    return marks.epochs


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
            self.model = make_model()

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

    marks, model, features = Marks(), make_model(), work.features

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
        train_dataset=work.train,  # type: ignore[arg-type]  # its own loader reads it
        eval_dataset=work.val if features else None,  # type: ignore[arg-type]
        optimizers=(optimizer, schedule),
        callbacks=[Timer()],
    ).train()
    return marks.epochs


def _loader(batches: list[Batch]) -> DataLoader[Batch]:
    """Batches in memory, for trainers that take a list to be several loaders."""
    return DataLoader(batches, batch_size=None, collate_fn=_as_it_is)  # type: ignore[arg-type]


def _as_it_is(batch: Any) -> Any:
    return batch


CONTESTANTS = [
    Contestant("PyTorch by hand", "torch", by_hand),
    Contestant("DanLing", "danling", danling),
    Contestant("Accelerate by hand", "accelerate", by_hand_on_accelerate),
    Contestant("Ignite", "ignite", ignite),
    Contestant("pytorch-accelerated", "pytorch_accelerated", pytorch_accelerated),
    Contestant("Lightning", "lightning", lightning),
    Contestant("HF Trainer", "transformers", transformers),
]


def quiet() -> None:
    """What the libraries of others warn of is not about speed."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
