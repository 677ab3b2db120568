"""Predictions in files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from danling.callback import Callback
from danling.errors import CallbackError

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["PredictionWriter"]


class PredictionWriter(Callback):
    """Write what `predict` gives in pieces, while it predicts.

    Each process writes `rank-0-piece-0.pt` and so on into `output_dir/<split>`: the outputs of so
    many batches, with the index of their batch among those of the process. `read` puts the pieces
    of all processes together. What was in the folder of the split before is removed when its
    prediction begins.

    A batch costs a copy of its output to the host, a piece the writing of a file. It has no state.

    Args:
        output_dir: The folder in which those of the splits are made.
        batches_per_piece: The number of batches in a file.

    Raises:
        CallbackError: The number is not a positive integer.

    Example:
        >>> PredictionWriter("predictions", batches_per_piece=64).batches_per_piece
        64
    """

    name = "prediction_writer"
    only_watches = True

    def __init__(self, output_dir: str | Path, *, batches_per_piece: int = 100) -> None:
        if type(batches_per_piece) is not int or batches_per_piece < 1:
            raise CallbackError(
                f"PredictionWriter(batches_per_piece={batches_per_piece!r}): at least 1"
            )
        self.output_dir = Path(output_dir)
        self.batches_per_piece = batches_per_piece
        self._folder = self.output_dir
        self._outputs: list[Any] = []
        self._written = 0

    def on_predict_start(self, runner: Runner, split: str) -> None:
        """Make an empty folder for the split."""
        self._folder = self.output_dir / split
        self._outputs, self._written = [], 0
        runner.world.on_main(self._empty)

    def on_predict_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Take an output, and write a piece when it is full."""
        self._outputs.append(_to_host(output))
        if len(self._outputs) == self.batches_per_piece:
            self._write(runner)

    def on_predict_end(self, runner: Runner, split: str) -> None:
        """Write what is left."""
        if self._outputs:
            self._write(runner)

    @staticmethod
    def read(folder: str | Path) -> list[Any]:
        """The outputs of a folder, batch by batch, the first of each process before the second.

        Args:
            folder: The folder of a split.

        Raises:
            CallbackError: There is no piece in it.
        """
        found: list[tuple[int, int, Any]] = []
        for path in Path(folder).glob("rank-*-piece-*.pt"):
            piece = torch.load(path, weights_only=True)
            found += (
                (piece["first"] + index, piece["rank"], output)
                for index, output in enumerate(piece["outputs"])
            )
        if not found:
            raise CallbackError(f"there are no predictions in {folder}")
        return [output for _, _, output in sorted(found, key=lambda item: item[:2])]

    def _empty(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def _write(self, runner: Runner) -> None:
        number = self._written // self.batches_per_piece
        piece = {"rank": runner.rank, "first": self._written, "outputs": self._outputs}
        torch.save(piece, self._folder / f"rank-{runner.rank}-piece-{number}.pt")
        self._written += len(self._outputs)
        self._outputs = []


def _to_host(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach().cpu()
    if isinstance(output, dict):
        return {key: _to_host(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        return [_to_host(value) for value in output]
    return output
