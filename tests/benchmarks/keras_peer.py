"""The same work in Keras, on its torch backend."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from tests.benchmarks.work import LOG_INTERVAL, Batch, Marks, Work


def keras(work: Work) -> list[float]:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras as k

    marks, folder = Marks(), work.folder / "keras"
    folder.mkdir(exist_ok=True)

    class Timer(k.callbacks.Callback):  # type: ignore[misc]  # no types
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            marks.add()

    class Scalars(k.callbacks.Callback):  # type: ignore[misc]  # no types
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

    model = k.Sequential([k.Input((16,)), k.layers.Dense(32, "relu"), k.layers.Dense(4)])
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(k.optimizers.SGD(0.01), loss)
    savers = [
        k.callbacks.ModelCheckpoint(folder / "last.keras"),
        k.callbacks.ModelCheckpoint(folder / "best.keras", monitor="val_loss", save_best_only=True),
    ]
    model.fit(
        endless(work.train),
        steps_per_epoch=len(work.train),
        epochs=work.epochs,
        verbose=1 if work.features else 0,
        validation_data=endless(work.val) if work.features else None,
        validation_steps=len(work.val) if work.features else None,
        callbacks=[Timer(), Scalars(), *savers] if work.features else [Timer()],
    )
    return marks.epochs
