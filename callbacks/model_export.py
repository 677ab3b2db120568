"""The model as a program of torch.export."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from danling.callback import Callback, Priority
from danling.checkpoint.exporting import (
    Call,
    Which,
    checked_which,
    example_of,
    model_with,
    saved_weights,
    write_whole,
)
from danling.seed import isolated_rng

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["ModelExport"]


class ModelExport(Callback):
    """Write the model of the best, or the last, checkpoint to `model.pt2` by `torch.export`.

    `torch.export.load` gives it back as a program that needs none of the code that defined it. The
    ids and the score of the run are in its file `run.json`.
    What is exported is the `model` of the checkpoint, with an average of the weights in its place
    where one is attached, in evaluation mode and on the CPU. A model that cannot be exported is a
    warning: the training has ended, and its checkpoints are there.

    It reads a checkpoint and traces the model at the end of the training; a step costs nothing, and
    there is no state.

    Args:
        which: The checkpoint that is exported, `"best"` or `"latest"`.
        path: The file; within the directory of the run if it is relative.
        example: A batch to trace with, as the model gets it; None: the first one of an evaluation.
        dynamic_batch: Whether the number of samples may be another one than in the example.

    Raises:
        CallbackError: An argument cannot be meant.

    Example:
        >>> ModelExport("best").path.name
        'model.pt2'
    """

    name = "model_export"
    priority = Priority.LOWEST + 1  # after the checkpoint
    only_watches = True

    def __init__(
        self,
        which: Which = "best",
        path: str | Path = "model.pt2",
        *,
        example: Any = None,
        dynamic_batch: bool = True,
    ) -> None:
        self.which = checked_which("ModelExport", which)
        self.path = Path(path)
        self.example = example
        self.dynamic_batch = dynamic_batch

    def on_train_end(self, runner: Runner) -> None:
        """Export; the last checkpoint was saved before this hook."""
        if runner.has_dir:
            runner.world.on_main(lambda: self._export(runner))

    def _export(self, runner: Runner) -> None:
        saved = saved_weights(runner.checkpoints, self.which)
        if saved is None:
            runner.logger.warning("%s: there is no %s.pth to export", self.name, self.which)
            return
        path = runner.dir / self.path
        try:
            split = next(iter(runner.evaluation_splits), "train")
            loader = runner.loader(split, evaluating=True)
            call = example_of(loader) if self.example is None else Call.of(self.example)
            with isolated_rng(), warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # torch's exporter warns of its own calls
                model = model_with(runner.unwrapped_model, saved.weights)
                self._write(path, model, call, saved.metadata)
        except Exception as error:  # whatever tracing a model raises
            text = str(error).strip().partition("\n")[0]
            runner.logger.warning(
                "%s: the model was not exported: %s: %s", self.name, type(error).__name__, text
            )
            return
        runner.logger.info("%s: %s is %s.pth", self.name, path, self.which)

    def _write(self, path: Path, model: torch.nn.Module, call: Call, about: dict[str, str]) -> None:
        shapes = call.dynamic_shapes if self.dynamic_batch else None
        program = torch.export.export(model, call.arguments, call.keywords, dynamic_shapes=shapes)
        extra = {"run.json": json.dumps(about)}
        write_whole(path, lambda file: torch.export.save(program, file, extra_files=extra))
