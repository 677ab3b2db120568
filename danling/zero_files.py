"""The files of a DeepSpeed engine in the directory of a checkpoint, and weights out of them.

The engine says what is in them. They are written and read by us: a failure of one process waits
until all of them have passed the barriers of the engine, and only tensors are taken out of a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from danling.encoding import Elsewhere
from danling.errors import CheckpointError

if TYPE_CHECKING:
    from danling.distributed import World

__all__ = [
    "EngineFiles",
    "described",
    "load_engine",
    "load_weights",
    "places",
    "read",
    "split",
    "weights_in",
    "weights_of",
]

_TAG = "."  # of the directory itself


class EngineFiles:
    """What an engine writes into the directory of a checkpoint, at once and by all processes."""

    can_wait = False

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def copied(self) -> EngineFiles:
        """There is no copy: the engine writes what it has."""
        raise CheckpointError("DeepSpeed's parts of a checkpoint are written at once")

    def write(self, directory: Path, world: World) -> list[str]:
        """Write weights and optimizer; returns the files of this process. A collective.

        Raises:
            CheckpointError: Any of the processes could not: it is raised on all of them.
        """
        return world.together(lambda: self._write(directory))

    def _write(self, directory: Path) -> list[str]:
        with _storage(self.engine) as storage:
            self.engine.save_checkpoint(
                str(directory), tag=_TAG, client_state={}, save_latest=False
            )
        if (error := storage.error) is not None:
            reason = getattr(error, "strerror", None) or error
            what = f"the shards of a checkpoint were not written: {reason}"
            if (number := getattr(error, "errno", None)) is None:
                raise CheckpointError(f"{what} ({directory})") from error
            raise CheckpointError(number, what, str(directory)) from error
        return storage.written


def read(engine: Any, checkpoint: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Let the engine read its files; without one, take the weights out of them."""
    if engine is None:
        return {**checkpoint, "model": weights_in(directory)}
    load_engine(engine, directory)
    return {**checkpoint, "model": {}}


def load_engine(engine: Any, directory: Path) -> None:
    """Take what `EngineFiles` wrote; a collective.

    Raises:
        CheckpointError: It is of another number of processes, or not complete.
    """
    saved, size = len(list(directory.glob("*_optim_states.pt"))), dist.get_world_size()
    if saved != size:
        raise CheckpointError(
            f"{directory} has the parts of {saved} processes, and this run has {size}: DeepSpeed "
            f"goes on with as many as before. One process without it takes the weights"
        )
    with _storage(engine):
        path, _ = engine.load_checkpoint(str(directory), tag=_TAG, load_lr_scheduler_states=False)
    if path is None:
        raise CheckpointError(f"DeepSpeed cannot read {directory}")
    engine.optimizer.clip_grad = engine.gradient_clipping()  # it was that of the checkpoint


def split(
    engine: Any, checkpoint: Mapping[str, Any]
) -> tuple[Mapping[str, Any], EngineFiles | None]:
    """The head of a checkpoint, and what writes the rest; of weights alone there is no rest."""
    if "optimizer" not in checkpoint:
        return {**checkpoint, "model": weights_of(engine)}, None
    return {**checkpoint, "engine": "deepspeed"}, EngineFiles(engine)


def described(module: nn.Module) -> dict[str, Any]:
    """The state of a model, where an engine has the weights: as they are when whole."""
    state = module.state_dict()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if hasattr(parameter, "ds_shape") or hasattr(parameter, "_hp_mapping"):
            shape = getattr(parameter, "ds_shape", parameter.shape)
            kind = torch.float32 if parameter.requires_grad else parameter.dtype
            state[name] = torch.empty(shape, dtype=kind, device="meta")
    return state


def places(module: nn.Module) -> dict[str, Any]:
    """What stands in the head of a checkpoint for the weights."""
    return {
        name: Elsewhere(value.shape, value.dtype) if isinstance(value, Tensor) else value
        for name, value in described(module).items()
    }


def weights_of(engine: Any) -> dict[str, Any]:
    """The whole weights in full precision, on the main process alone; a collective."""
    module, whole = engine.module, {}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    found: dict[int, Tensor | None] = {}
    for name, value in module.state_dict().items():
        parameter = parameters.get(name)
        if parameter is not None and id(parameter) not in found:
            found[id(parameter)] = _whole(parameter)
        whole[name] = value if parameter is None else found[id(parameter)]
    return whole if dist.get_rank() == 0 else {}


def weights_in(directory: Path) -> dict[str, Tensor]:
    """The whole weights that an engine has written, read by one process without an engine.

    Raises:
        CheckpointError: DeepSpeed is not installed, or something else has written the files.
    """
    with _safe():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        try:
            # DeepSpeed would unpickle anything: here it is seen that there is nothing to run
            states = {path.name: _loaded(path, mmap=True) for path in directory.glob("*.pt")}
            weights = dict(get_fp32_state_dict_from_zero_checkpoint(str(directory), tag=_TAG))
        except (UnpicklingError, RuntimeError, ValueError, LookupError, AttributeError) as error:
            raise CheckpointError(f"{directory} is not of DeepSpeed: {error}") from error
        if first := states.get("mp_rank_00_model_states.pt"):  # the first stage forgets the frozen
            weights = {name: weights.get(name, value) for name, value in first["module"].items()}
    return weights


def load_weights(engine: Any, state: Mapping[str, Any], *, strict: bool) -> None:
    """Set the weights alone, unless the engine has read its own files; a collective."""
    if not state:
        return
    from deepspeed.runtime.zero import GatheredParameters

    module, own = engine.module, engine.module.state_dict()
    missing, other = own.keys() - state.keys(), state.keys() - own.keys()
    if strict and (missing or other):
        raise CheckpointError(f"missing weights: {sorted(missing)}, unexpected: {sorted(other)}")
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name in own.keys() & state.keys():
        target = parameters.get(name)
        if target is None:
            own[name].copy_(state[name])
            continue
        with torch.no_grad(), GatheredParameters([target], modifier_rank=0):
            if target.shape == state[name].shape:  # of a third stage on the main process alone
                target.copy_(state[name])
    engine.optimizer._restore_from_bit16_weights()


class _Storage:
    """In place of what an engine writes and reads files with."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self.written: list[str] = []
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def save(self, state_dict: Any, path: str) -> None:
        try:
            if self.error is None:
                with open(path, "wb") as file:
                    torch.save(state_dict, file)
                self.written.append(Path(path).name)
        except Exception as error:  # raised after the barriers
            self.error = error

    def load(self, path: str, map_location: Any = None) -> Any:
        with _safe():
            return _loaded(path, map_location=map_location)


def _loaded(path: str | Path, **options: Any) -> Any:
    return torch.load(path, **{"map_location": "cpu", **options}, weights_only=True)


@contextmanager
def _storage(engine: Any) -> Iterator[_Storage]:
    own = engine.checkpoint_engine
    storage = engine.checkpoint_engine = _Storage(own)
    engine._copy_recovery_script = lambda path: None  # a program, which no checkpoint needs
    try:
        yield storage
    finally:
        del engine._copy_recovery_script
        engine.checkpoint_engine = own


@contextmanager
def _safe() -> Iterator[None]:
    """Let torch take DeepSpeed's plain values out of a file, and nothing that runs code."""
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError as error:
        raise CheckpointError("the files are DeepSpeed's, which is not installed") from error
    kinds = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    with torch.serialization.safe_globals(kinds):
        yield


def _whole(parameter: nn.Parameter) -> Tensor | None:
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    value = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
    if value is None:  # frozen
        with GatheredParameters([parameter]):
            value = parameter.detach().clone()
    return value.cpu() if dist.get_rank() == 0 else None
