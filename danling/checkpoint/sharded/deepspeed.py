"""The files of a DeepSpeed engine in the directory of a checkpoint, and weights out of them.

The engine says what is in them. They are written and read by us: a failure of one process waits
until all of them have passed the barriers of the engine, and only tensors are taken out of a file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from danling.checkpoint.encoding import Placeholder
from danling.checkpoint.sharded.shards import NOT_WRITTEN, failure
from danling.errors import CheckpointError
from danling.files.failpoints import failpoint

if TYPE_CHECKING:
    from danling.distributed.world import World

__all__ = [
    "EngineFiles",
    "described",
    "load_engine",
    "load_weights",
    "partitioning",
    "places",
    "read",
    "split",
    "weights_in",
    "weights_of",
]


_TAG = "."  # of the directory itself


class EngineFiles:
    """The files that all processes of an engine write together into a checkpoint's directory."""

    can_wait = False

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def copied(self) -> EngineFiles:
        """There is no copy: the engine writes what it has."""
        raise CheckpointError("DeepSpeed's parts of a checkpoint are written at once")

    def write(self, directory: Path, world: World) -> list[str]:
        """Write weights and optimizer; returns the files of this process. A collective.

        Raises:
            CheckpointError: A process could not write its files: it is raised on all of them.
        """
        return world.together(lambda: self._write(directory))

    def _write(self, directory: Path) -> list[str]:
        with _storage(self.engine) as storage:
            self.engine.save_checkpoint(
                str(directory), tag=_TAG, client_state={}, save_latest=False
            )
        if (error := storage.error) is not None:
            raise failure(NOT_WRITTEN, directory, error) from error
        return storage.written


def read(
    engine: Any, checkpoint: Mapping[str, Any], directory: Path, world: World
) -> dict[str, Any]:
    """Let the engine read its files; without one, take the weights out of them. A collective."""
    if engine is not None:
        load_engine(engine, directory, world)
        return {**checkpoint, "model": {}}
    weights = world.together(lambda: weights_in(directory))
    if missing := sorted(checkpoint["model"].keys() - weights.keys()):
        raise CheckpointError(f"{directory} has no {missing[0]!r}, which its checkpoint names")
    return {**checkpoint, "model": weights}


def load_engine(engine: Any, directory: Path, world: World) -> None:
    """Take what `EngineFiles` wrote; a collective.

    Raises:
        CheckpointError: Any of the processes cannot read its files: it is raised on all of them.
    """
    # before the engine begins: an error of one process within it would leave the others waiting
    states = world.together(lambda: _states(directory))
    with _storage(engine, states), _link(directory) as link:
        path, _ = engine.load_checkpoint(str(link), tag=_TAG, load_lr_scheduler_states=False)
    if path is None:
        raise CheckpointError(f"DeepSpeed cannot read {directory}")
    engine.optimizer.clip_grad = engine.gradient_clipping()  # it was that of the checkpoint


def split(
    engine: Any, checkpoint: Mapping[str, Any]
) -> tuple[Mapping[str, Any], EngineFiles | None]:
    """The head of a checkpoint, and what writes the rest; of weights alone there is no rest."""
    if "optimizer" not in checkpoint:
        return {**checkpoint, "model": weights_of(engine)}, None
    return {**checkpoint, "engine": partitioning(engine)}, EngineFiles(engine)


def partitioning(engine: Any) -> dict[str, int]:
    """The values that must be the same for an engine to read its files."""
    return {"stage": engine.zero_optimization_stage(), "size": dist.get_world_size()}


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
    """The entries in the head of a checkpoint that stand for the weights."""
    return {
        name: Placeholder(value.shape, value.dtype) if isinstance(value, Tensor) else value
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
    # DeepSpeed would unpickle anything: first it is seen that there is nothing to run
    states = _states(directory)
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    quiet = io.StringIO()  # it prints what it does
    try:
        with _link(directory) as link, redirect_stdout(quiet), redirect_stderr(quiet):
            weights = dict(get_fp32_state_dict_from_zero_checkpoint(str(link), tag=_TAG))
    except (OSError, RuntimeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{directory} cannot be read by DeepSpeed: {error!r}") from error
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
            if isinstance(own[name], Tensor):
                own[name].copy_(state[name])
            continue
        with torch.no_grad(), GatheredParameters([target], modifier_rank=0):
            if target.shape == state[name].shape:  # of a third stage on the main process alone
                target.copy_(state[name])
    engine.optimizer._restore_from_bit16_weights()
    for name in parameters.keys() & state.keys():
        if parameters[name].requires_grad:
            _refine(parameters[name], state[name])


def _refine(parameter: nn.Parameter, value: Tensor) -> None:
    """Set the engine's own copy of a weight, which is in full precision."""
    from deepspeed import utils

    value = value.to(parameter.device, torch.float32)
    if hasattr(parameter, "_hp_mapping"):
        utils.safe_set_full_fp32_param(parameter, value)
    elif hasattr(parameter, "ds_id"):  # each process has a part of equal size
        size = utils.safe_get_local_fp32_param(parameter).numel()
        flat = value.new_zeros(size * dist.get_world_size())
        flat[: value.numel()] = value.flatten()
        own = flat.narrow(0, size * dist.get_rank(), size)
        utils.safe_set_local_fp32_param(parameter, own)


class _Storage:
    """The storage of an engine, in place of the one it writes and reads files with."""

    def __init__(self, own: Any, states: Mapping[str, Any]) -> None:
        self._own = own
        self._states = states
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
        return self._states[Path(path).name]


def _states(directory: Path) -> dict[str, Any]:
    """The contents of an engine's files: plain values, and tensors on the CPU that are mapped."""
    try:
        failpoint("shards.before_read")
        with _safe():
            return {
                path.name: torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                for path in directory.iterdir()
                if path.suffix == ".pt"
            }
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise CheckpointError(f"{directory} is not of DeepSpeed: {error}") from error


@contextmanager
def _link(directory: Path) -> Iterator[Path]:
    """Another path of a directory: DeepSpeed takes `[`, `*` and `?` in one for a pattern."""
    with TemporaryDirectory() as folder:
        link = Path(folder) / "shards"
        link.symlink_to(directory.resolve(), target_is_directory=True)
        yield link


@contextmanager
def _storage(engine: Any, states: Mapping[str, Any] | None = None) -> Iterator[_Storage]:
    own = engine.checkpoint_engine
    storage = engine.checkpoint_engine = _Storage(own, states or {})
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
