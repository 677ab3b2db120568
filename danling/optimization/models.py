"""Several models of one run, each of which is placed, wrapped and called by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from danling.errors import ConfigError, RunError

__all__ = ["Models", "as_models", "awaits_all_gradients", "begin_training", "parts_of"]


class Models(nn.ModuleDict):
    """Several models by name; `models["critic"]` is called, and never the whole of them.

    As a module it has the parameters of all of them, under `critic.` and the name in the model, and
    so they are in a checkpoint.

    Args:
        models: The modules by name.
        unwrap: Gives the module that a platform has wrapped.

    Raises:
        ConfigError: There is none, one is no module, or a name cannot be used.

    Example:
        >>> models = Models({"actor": nn.Linear(2, 1), "critic": nn.Linear(2, 1)})
        >>> list(models.state_dict())
        ['actor.weight', 'actor.bias', 'critic.weight', 'critic.bias']
    """

    def __init__(
        self, models: Mapping[str, Any], unwrap: Callable[[Any], Any] = lambda model: model
    ) -> None:
        super().__init__()
        if not models:
            raise ConfigError("model is an empty mapping: write model={'generator': ..., ...}")
        for name, model in models.items():
            if not isinstance(model, nn.Module):
                raise ConfigError(f"the model {name!r} is a {type(model).__name__}, and no module")
            if model in self.values():
                raise ConfigError(f"the model {name!r} has another name too: name each model once")
            try:
                self[name] = model
            except (KeyError, TypeError) as error:
                raise ConfigError(f"a model cannot be named {name!r}: {error.args[0]}") from error
        plain = {name: _without_compilation(unwrap(model)) for name, model in models.items()}
        is_plain = all(plain[name] is model for name, model in models.items())
        self._plain = () if is_plain else (Models(plain),)  # in a tuple: no part of this module

    @property
    def plain(self) -> Models:
        """The models without what is wrapped around them."""
        return self._plain[0] if self._plain else self

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Refuse: nothing says which model is meant.

        Raises:
            RunError: Always.
        """
        names = list(self)
        raise RunError(
            f"there are several models, {names}, and nothing says which is called: define "
            "train_step, evaluate_step and predict_step of your runner, in which you call "
            f"self.model[{names[0]!r}](...)"
        )


def as_models(model: Any) -> Any:
    """The models of a mapping; anything else is returned as it is."""
    return Models(model) if isinstance(model, Mapping) else model


def parts_of(model: Any) -> list[nn.Module]:
    """The modules that are called: one, several or none."""
    if isinstance(model, Models):
        return list(model.values())
    return [] if model is None else [model]


def awaits_all_gradients(model: Any) -> bool:
    """Whether each backward must reach the parameters that required a gradient at first.

    A `DistributedDataParallel` waits for them: one that is frozen later has its gradient dropped
    before the step.
    """
    return any(isinstance(part, DistributedDataParallel) for part in parts_of(model))


def begin_training(model: Any, trained: Iterable[Any]) -> None:
    """Put what is trained into training mode.

    A model that is in it already stays as it is: parts of it in evaluation mode are there on
    purpose. Of several models, one that no optimizer trains keeps its mode, as a teacher does.

    Args:
        model: One module, or several.
        trained: The parameters that optimizers have.
    """
    ids = {id(parameter) for parameter in trained} if isinstance(model, Models) else set()
    for part in parts_of(model):
        is_trained = not ids or any(id(parameter) in ids for parameter in part.parameters())
        if is_trained and not part.training:
            part.train()


def _without_compilation(model: Any) -> Any:
    return getattr(model, "_orig_mod", model)
