"""Files of a run for other programs: the weights of a checkpoint, and the model with them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from danling.errors import CallbackError, DataError, did_you_mean
from danling.seed import isolated_rng

if TYPE_CHECKING:
    from danling.checkpoint.store import CheckpointStore
    from danling.data.loader import Loader

__all__ = [
    "Call",
    "Saved",
    "Which",
    "checked_which",
    "example_of",
    "model_with",
    "saved_weights",
    "write_safetensors",
    "write_whole",
]

Which = Literal["best", "latest"]


class Saved(NamedTuple):
    """The weights of a checkpoint, and what they are."""

    weights: Mapping[str, Any]
    metadata: dict[str, str]
    """The id of the run, the file, and the score where it is the best one."""


def checked_which(who: str, which: str) -> Which:
    """The checkpoint that is exported.

    Raises:
        CallbackError: It is neither `"best"` nor `"latest"`.

    Example:
        >>> checked_which("ONNXExport", "best")
        'best'
    """
    if which == "best":
        return "best"
    if which == "latest":
        return "latest"
    raise CallbackError(f"{who}({which!r}): {did_you_mean(str(which), ['best', 'latest'])}")


def saved_weights(store: CheckpointStore, which: Which) -> Saved | None:
    """The weights of the best or the last checkpoint of a run; None where it was never saved.

    Args:
        store: The checkpoints of the run.
        which: The name of the checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    entry = next((entry for entry in store.candidates() if entry.name == which), None)
    if entry is None:
        return None
    checkpoint, _ = store.load(entry.path)
    metadata = {"id": str(checkpoint["config"]["id"]), "checkpoint": entry.path.name}
    scores = [f"{tag}={value!r}" for tag, value in entry.metrics.items() if "/" in tag]
    if which == "best" and scores:
        metadata["score"] = scores[0]
    return Saved(checkpoint["model"], metadata)


def model_with(model: nn.Module, weights: Mapping[str, Any]) -> nn.Module:
    """A copy of a model on the CPU, with other weights and in evaluation mode."""
    twin = copy.deepcopy(model).cpu()
    twin.load_state_dict(weights)
    return twin.eval()


def write_safetensors(path: Path, weights: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write the tensors of a state dict, each once, so that the file is whole or not there.

    Of tensors that are one in the model the file has the first name; the others are in its metadata
    under `same`, as JSON of name and first name.

    Args:
        path: The file.
        weights: The tensors by name; what is no tensor is left out.
        metadata: Texts that the file holds besides.

    Example:
        >>> import tempfile
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
    write_whole(path, lambda file: save_file(tensors, file, metadata=metadata))


class Call(NamedTuple):
    """The arguments of a call of the model."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @classmethod
    def of(cls, batch: Any) -> Call:
        """The call that `predict_step` makes of a batch by default, on the CPU.

        Example:
            >>> Call.of((torch.ones(2, 3), torch.ones(2))).arguments[0].shape
            torch.Size([2, 3])
        """
        if isinstance(batch, Mapping):
            return cls((), {str(name): _on_cpu(value) for name, value in batch.items()})
        return cls((_on_cpu(batch[0] if isinstance(batch, list | tuple) else batch),), {})

    @property
    def dynamic_shapes(self) -> Any:
        """The shapes that tell `torch.export` that the number of samples may vary."""
        if self.keywords:
            return {name: _varying(value) for name, value in self.keywords.items()}
        return tuple(_varying(value) for value in self.arguments)


def example_of(loader: Loader) -> Call:
    """A call of the model with the first batch of a loader.

    Nothing is drawn from the random streams of the training.

    Raises:
        DataError: There is no batch.
    """
    with isolated_rng():
        for batch in loader.iterate(0):
            return Call.of(batch)
    raise DataError(f"the split {loader.split!r} has no batches: there is no example of the input")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file, and what is written beside it, so that it is whole or not there.

    Args:
        path: The file.
        write: The function that writes it, given the path of a file of the same name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        write(Path(folder) / path.name)
        parts = sorted(Path(folder).iterdir(), key=lambda part: part.name == path.name)
        for part in parts:  # the file itself comes last
            part.replace(path.parent / part.name)


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _varying(value: Any) -> Any:
    is_batch = isinstance(value, Tensor) and value.ndim > 0
    return {0: torch.export.Dim.AUTO} if is_batch else None
