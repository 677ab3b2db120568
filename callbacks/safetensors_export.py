"""The weights as a safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from danling.callback import Callback, Priority
from danling.errors import CallbackError, did_you_mean

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
        which: Whether `"best"` or `"latest"` is exported.
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
        which: Literal["best", "latest"] = "best",
        path: str | Path = "model.safetensors",
    ) -> None:
        if which not in ("best", "latest"):
            near = did_you_mean(str(which), ["best", "latest"])
            raise CallbackError(f"SafetensorsExport({which!r}): {near}")
        try:
            import safetensors.torch  # noqa: F401
        except ImportError as error:
            raise CallbackError(
                "SafetensorsExport needs safetensors: pip install safetensors"
            ) from error
        self.which = which
        self.path = Path(path)

    def on_train_end(self, runner: Runner) -> None:
        """Export; the last checkpoint was saved before this hook."""
        if runner.has_dir:
            runner.world.on_main(lambda: self._export(runner))

    def _export(self, runner: Runner) -> None:
        source = runner.checkpoint_dir / f"{self.which}.pth"
        if not source.exists():
            runner.logger.warning("%s: there is no %s to export", self.name, source.name)
            return
        checkpoint, _ = runner.checkpoints.load(source)
        path = runner.dir / self.path
        metadata = {"id": runner.id, "checkpoint": source.name}
        if self.which == "best" and runner.best_score is not None:
            metadata["score"] = f"{runner.monitor}={runner.best_score!r}"
        write_safetensors(path, checkpoint["model"], metadata)
        runner.logger.info("%s: %s is %s", self.name, path, source.name)


def write_safetensors(path: Path, weights: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write the tensors of a state dict, each once, so that the file is whole or not there.

    Example:
        >>> import torch, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> write_safetensors(path, {"weight": torch.ones(2)}, {"id": "a"})
        >>> path.exists()
        True
    """
    from safetensors.torch import save_file

    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    tensors: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            continue
        place = tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride())
        if tensor.numel() and place in first:
            same[name] = first[place]
            continue
        first[place] = name
        tensors[name] = tensor.detach().contiguous().clone()
    if same:
        metadata = metadata | {"same": json.dumps(same)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    save_file(tensors, partial, metadata=metadata)
    os.replace(partial, path)
