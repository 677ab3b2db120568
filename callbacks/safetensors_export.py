"""The weights as a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from danling.callback import Callback, Priority
from danling.checkpoint.exporting import Which, checked_which, saved_weights, write_safetensors
from danling.errors import CallbackError

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["SafetensorsExport"]


class SafetensorsExport(Callback):
    """Write the weights of the best, or the last, checkpoint to `model.safetensors`.

    The file is what other programs load: it holds tensors and names, and runs nothing. What is
    exported is the `model` of the checkpoint, with an average of the weights in its place where
    one is attached. Of tensors that are one in the model the file has the first name, and the
    others are named in its metadata, beside the ids and the score of the run.

    It reads a checkpoint and writes a file at the end of the training; a step costs nothing, and
    there is no state.

    Args:
        which: The checkpoint that is exported, `"best"` or `"latest"`.
        path: The file; within the directory of the run if it is relative.

    Raises:
        CallbackError: An argument cannot be meant, or safetensors is not installed.

    Example:
        >>> SafetensorsExport().path.name
        'model.safetensors'
    """

    name = "safetensors_export"
    priority = Priority.LOWEST + 1  # after the checkpoint
    only_watches = True

    def __init__(
        self,
        which: Which = "best",
        path: str | Path = "model.safetensors",
    ) -> None:
        self.which = checked_which("SafetensorsExport", which)
        try:
            import safetensors.torch  # noqa: F401
        except ImportError as error:
            raise CallbackError(
                "SafetensorsExport needs safetensors: pip install safetensors"
            ) from error
        self.path = Path(path)

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
        write_safetensors(path, saved.weights, saved.metadata)
        runner.logger.info("%s: %s is %s.pth", self.name, path, self.which)
