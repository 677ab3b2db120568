"""Habits of other libraries: arguments and attributes of theirs that a runner refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from danling.errors import ConfigError, DataError, MetricError, did_you_mean

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner

__all__ = ["check_mappings", "check_overridden", "check_steps", "no_attribute", "tell_unread"]

STEPS: Final = {
    "training_step": "train_step(self, batch)",
    "validation_step": "evaluate_step(self, batch)",
    "test_step": "evaluate_step(self, batch)",
    "prediction_step": "predict_step(self, batch)",
}
"""The steps that other libraries have a subclass define, and what is called here."""

MEMBERS: Final = {
    "fit": "train()",
    "validate": "evaluate('val')",
    "test": "evaluate('test')",
    "compile": "model = torch.compile(model)",
    "configure_optimizers": "optimizer and scheduler: assign them, or pass them to the runner",
    "train_dataloader": "dataloaders['train']",
    "val_dataloader": "dataloaders['val']",
    "train_dataset": "datasets['train']",
    "eval_dataset": "datasets['val']",
    "current_epoch": "epoch",
    "log_dict": "log({name: value})",
    "manual_backward": "step(loss)",
    "save_model": "save_checkpoint()",
} | STEPS
"""The names in Lightning, Keras and Transformers of what a runner calls otherwise."""


def check_mappings(datasets: Any = None, dataloaders: Any = None, metrics: Any = None) -> None:
    """Refuse a single part where a runner takes several by name.

    Raises:
        DataError: The data is not a mapping of splits.
        MetricError: The metrics are not a mapping.

    Example:
        >>> check_mappings(metrics=[len])
        Traceback (most recent call last):
        ...
        danling.errors.MetricError: metrics is a list, not a mapping of names: ...
    """
    for name, given in (("datasets", datasets), ("dataloaders", dataloaders)):
        if given is not None and not isinstance(given, Mapping):
            raise DataError(
                f"{name} is a {type(given).__name__}, not a mapping of splits: "
                f'write {name}={{"train": ...}}'
            )
    if metrics is not None and not isinstance(metrics, Mapping):
        raise MetricError(
            f"metrics is a {type(metrics).__name__}, not a mapping of names: "
            'write metrics={"accuracy": ...}'
        )


def check_steps(kind: type) -> None:
    """Refuse a class that defines a step which nothing here would call.

    Raises:
        TypeError: It has a step by the name that another library gives it.
    """
    for name in STEPS.keys() & vars(kind).keys():
        raise TypeError(f"{kind.__name__}.{name} would never be called: here it is {STEPS[name]}")


def check_overridden(steps: Mapping[str, Any], defaults: type, models: list[str]) -> None:
    """Refuse to train several models with steps that call one, before the first batch.

    Args:
        steps: The methods of a runner that are going to be called, by name.
        defaults: The class that has the steps for one model.
        models: The names of the models.

    Raises:
        ConfigError: A step is the one for a single model.
    """
    plain = [
        name
        for name, step in steps.items()
        if getattr(step, "__func__", None) is getattr(defaults, name)
    ]
    if plain:
        raise ConfigError(
            f"there are several models, {models}, and {' and '.join(plain)} of the runner would "
            f"call one: define it in a subclass, and call self.model[{models[0]!r}](...) in it"
        )


def no_attribute(runner: object, name: str) -> AttributeError:
    """The error for a name that a runner does not have."""
    if name in MEMBERS:
        hint = f"here it is {MEMBERS[name]}"
    else:
        hint = did_you_mean(name, [known for known in dir(runner) if not known.startswith("_")])
    return AttributeError(f"{type(runner).__name__!r} has no attribute {name!r}: {hint}")


def tell_unread(runner: AccelerateRunner, *, meant: bool = False) -> None:
    """Name once in the log the keys of the configuration that nobody has read.

    Args:
        runner: The runner.
        meant: Whether those are named that may be meant for well-known keys, and no others.
    """
    warned = runner._warned_unread
    unread = {key: other for key, other in runner.config.unread_keys().items() if key not in warned}
    found = {key: other for key, other in unread.items() if other or not meant}
    runner._warned_unread = warned | found.keys()
    if found and runner.is_main_process:
        lines = (f"{key} (did you mean {o!r}?)" if o else key for key, o in found.items())
        runner.logger.warning("nobody has read config.%s", ", config.".join(lines))
