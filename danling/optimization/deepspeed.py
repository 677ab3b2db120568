"""DeepSpeed's ZeRO, as Accelerate makes it: the engine has the gradients, the runner the step.

Nothing here imports DeepSpeed before there is an engine of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import convert_to_fp32
from accelerate.utils.operations import recursively_apply
from torch import Tensor, nn
from torch.optim import Optimizer

from danling.checkpoint.encoding import named, unnamed
from danling.errors import ConfigError, RunError
from danling.optimization.models import Models
from danling.optimization.optimization import Optimization

if TYPE_CHECKING:
    from danling.config.config import Config

__all__ = ["EngineOptimization", "fill_config"]


_MISSING = object()


class EngineOptimization(Optimization):
    """The step of one optimizer, taken by a DeepSpeed engine when the runner says so."""

    readable = False

    @property
    def engine(self) -> Any:
        return self._model

    def prepare(self, model: nn.Module | None) -> Any:
        """Let Accelerate make the engine of the model and its optimizer."""
        if isinstance(model, Models):
            raise ConfigError(
                f"DeepSpeed takes one model, and there are {len(model)}: DDP and FSDP take several"
            )
        if model is None or len(self.optimizers) != 1:
            raise ConfigError(
                f"DeepSpeed needs a model and one optimizer, this runner has "
                f"{'no' if model is None else 'a'} model and {len(self.optimizers)} optimizers: "
                "FSDP takes several, and DDP; to evaluate, start it without DeepSpeed"
            )
        if self.max_value is not None:
            raise ConfigError(
                "DeepSpeed clips by norm alone: set max_grad_norm in place of max_grad_value"
            )
        if self.needs_closure:
            raise ConfigError(
                "an engine of DeepSpeed takes no closure: use DDP or FSDP for this optimizer"
            )
        (given,) = self.optimizers.values()
        self._names = names_in_groups(model, given)
        engine = super().prepare(model)
        used = getattr(engine.optimizer, "optimizer", engine.optimizer)
        if used is not given:  # a schedule would move an optimizer that nobody steps
            raise ConfigError(
                f"Accelerate has replaced the optimizer by {type(used).__name__}, that no "
                "scheduler knows: leave zero_force_ds_cpu_optimizer out of the DeepSpeed "
                f"configuration, or pass a {type(used).__name__} to the runner"
            )
        if engine.zero_optimization_stage() < 3 and not hasattr(
            engine.optimizer, "averaged_gradients"
        ):
            raise ConfigError(
                "DeepSpeed keeps gradients where they cannot be dropped: leave grad_accum_dtype "
                "out of data_types in its configuration"
            )
        engine.training = engine.module.training  # its own train() and eval() leave it as it is
        keep_types(engine.module)
        return engine

    def synchronise(self, model: Any, enabled: bool) -> None:
        """Whether the step comes after the next backward: the engine finishes gradients then."""
        self.engine.set_gradient_accumulation_boundary(enabled)

    def backward(self, loss: Tensor, name: str) -> None:
        """Add the gradients of a loss; not by Accelerate, which would step too."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def open(self, name: str, rescale: Tensor | float | None = None) -> None:
        """Gradients are complete; only the engine can read them."""
        self._current, self._is_open, self.used_norm = name, False, None
        if rescale is not None:
            from deepspeed import utils

            kind = "local" if self.engine.zero_optimization_partition_weights() else "full"
            read = getattr(utils, f"safe_get_{kind}_grad")
            write = getattr(utils, f"safe_set_{kind}_grad")
            for parameter in self.engine.module.parameters():
                if parameter.requires_grad:
                    write(parameter, read(parameter) * rescale)
            if kind == "full":  # with offload the norms are of before
                norms = getattr(self.engine.optimizer, "norm_for_param_grads", {})
                norms.update({key: norm * rescale for key, norm in norms.items()})

    def step(self) -> None:
        """Clip and move the parameters, and the schedule unless the loss scale was too large."""
        if self.vetoed:
            self.discard()
            self._pass_over()
            self._is_open, self.used_norm = True, torch.zeros((), device=self._accelerator.device)
            return
        self.engine.step()
        norm, device = self.engine.get_global_grad_norm(), self._accelerator.device
        if norm is not None:
            self.used_norm = torch.as_tensor(norm, dtype=torch.float32, device=device)
        self._is_open = True
        if self.applied:
            for move in self._after_step.get(self._current, ()):
                move()

    @property
    def applied(self) -> bool:
        """Whether the last step has moved the parameters."""
        return bool(self.engine.was_step_applied())

    @property
    def grad_norm(self) -> Tensor:
        """Total norm of the gradients of this step, before clipping; known after it."""
        if not self._is_open:
            raise RunError(
                "DeepSpeed knows grad_norm after its step: ask for it in on_step, not before"
            )
        if self.used_norm is None:
            raise RunError("compute_grad_norm is false in the configuration of DeepSpeed")
        return self.used_norm

    def zero_grad(self) -> None:
        """The step of the engine has forgotten the gradients."""
        self._is_open, self.used_norm = False, None

    def discard(self) -> None:
        """Forget the gradients of a window that will not be stepped."""
        self.vetoed = False
        optimizer = self.engine.optimizer
        optimizer.zero_grad()  # of stage 3 this is all: the next backward writes over the sums
        if self.engine.zero_optimization_stage() < 3:
            for gradients in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
                gradients.update(dict.fromkeys(gradients))
            optimizer.micro_step_id = -1

    # State: tensors are in files of the engine

    def state_dict(self, whole: bool = False) -> dict[str, Any]:
        """The settings of the optimizer, and the schedule."""
        groups = {
            name: {
                "state": {},
                "param_groups": [
                    {**group, "params": names}
                    for group, names in zip(optimizer.param_groups, self._names, strict=True)
                ],
            }
            for name, optimizer in self.optimizers.items()
        }
        return {"optimizer": unnamed(groups), **self._schedule_state(), "scaler": None}

    def groups(self, name: str) -> list[list[Any]]:
        """The names of the parameters of each group: the engine has one flat one in their place."""
        return self._names

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave, after the engine has read its files."""
        for name, saved in named(state["optimizer"]).items():
            groups = self.optimizers[name].param_groups
            for group, values in zip(groups, saved["param_groups"], strict=True):
                group.update({key: value for key, value in values.items() if key != "params"})
        self._load_schedules(state)


def names_in_groups(model: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The names of the parameters that an optimizer has, by group.

    Raises:
        ConfigError: The model has others that are trained: an engine would not save them.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        [names.get(id(parameter), "(not of the model)") for parameter in group["params"]]
        for group in optimizer.param_groups
    ]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if left_out := sorted(trained - {name for group in groups for name in group}):
        raise ConfigError(
            f"the optimizer does not have {', '.join(left_out[:5])}: freeze what is not trained "
            "with requires_grad_(False), as DeepSpeed does not save it otherwise"
        )
    return groups


def fill_config(accelerator: Any, config: Config, *, batch_size: int | None) -> None:
    """Fill in what the runner knows in the DeepSpeed configuration.

    Raises:
        ConfigError: There is something else in it, or something that the runner has itself.
    """
    plugin = accelerator.deepspeed_plugin
    given, filled = plugin.deepspeed_config, vars(plugin).setdefault("_filled_by_danling", {})
    if config.state_dict_type == "full":
        raise ConfigError("state_dict_type='full' is for FSDP: each process writes its part here")
    for part in ("optimizer", "scheduler"):
        if part in given:
            raise ConfigError(
                f"the DeepSpeed configuration has a section {part!r}: take it out, and pass the "
                f"{part} to the runner as `{part}=`"
            )
    stage = given.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2, 3):
        raise ConfigError(f"zero_optimization.stage is {stage!r}: use 1, 2 or 3; 0 is DDP")
    accumulation = int(config.accelerate.get("gradient_accumulation_steps", 1))
    size, clip = accelerator.num_processes, config.max_grad_norm or 0.0
    micro = batch_size or 1
    if batch_size is None and isinstance(given.get("train_micro_batch_size_per_gpu"), int):
        micro = given["train_micro_batch_size_per_gpu"]  # it is told, and used for nothing else
    whole = micro * size
    values = {
        "train_micro_batch_size_per_gpu": (micro, [micro], "dataloader.batch_size"),
        "gradient_accumulation_steps": (
            1,
            [1, accumulation],
            "accelerate.gradient_accumulation_steps",
        ),
        "train_batch_size": (whole, [whole, whole * accumulation], "all batches of a step"),
        "gradient_clipping": (clip, [clip], "max_grad_norm"),
    }
    for key, (value, allowed, own) in values.items():
        found = given.get(key, _MISSING)
        ours = key in filled and filled[key] == found  # of a runner before, in this process
        if not ours and found not in (_MISSING, None, "auto", *allowed):
            raise ConfigError(
                f"{key} is {found!r} in the DeepSpeed configuration, and {own} is {allowed[-1]!r} "
                "for the runner: leave it out there, or write 'auto'"
            )
        given[key] = filled[key] = value
    given.setdefault("zero_force_ds_cpu_optimizer", False)


def keep_types(module: nn.Module) -> None:
    """Cast what goes in and out of a half-precise model, as Accelerate does without DeepSpeed."""
    kind = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    if kind not in (torch.bfloat16, torch.float16):
        return

    def cast(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return recursively_apply(
            lambda tensor: tensor.to(kind),
            (args, kwargs),
            test_type=lambda value: isinstance(value, Tensor) and value.is_floating_point(),
        )

    module.register_forward_pre_hook(cast, with_kwargs=True)
    module.register_forward_hook(lambda _, args, output: convert_to_fp32(output))
