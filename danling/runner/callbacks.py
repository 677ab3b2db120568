"""Who hears what: the list of a runner's callbacks, and one table of listeners per hook."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from danling.callback import HOOKS, Callback
from danling.errors import CallbackError, CheckpointError, RunError, did_you_mean

__all__ = ["Callbacks"]


Listener = tuple[Callback, Callable[..., None]]


class Callbacks:
    """The callbacks of a runner, in the order in which they run.

    List-like: `append`, `remove` (a callback or a name), `in`, `callbacks["early_stopping"]`.
    It may change before and between runs, not during one.

    Attributes:
        heard: The hooks that any callback overrides; what happens in every step looks here first.

    Args:
        callbacks: The user's.
        defaults: Those that are there unless the user brings one of the same name.

    Raises:
        CallbackError: Something is not a callback, or two have one name.

    Example:
        >>> from danling.callback import Callback
        >>> class Greeter(Callback): ...
        >>> callbacks = Callbacks([Greeter()])
        >>> "greeter" in callbacks, callbacks["greeter"].name
        (True, 'greeter')
    """

    def __init__(
        self, callbacks: Iterable[Callback] = (), defaults: Iterable[Callback] = ()
    ) -> None:
        self._all: list[Callback] = []
        self._defaults: list[Callback] = list(defaults)
        self._tables: dict[str, tuple[Listener, ...]] = {}
        self.heard: set[str] = set()
        self._unclaimed: dict[str, dict[str, Any]] = {}
        self._left_out: Collection[str] = ()
        self.in_run = False
        if isinstance(callbacks, Callback):
            kind = type(callbacks).__name__
            raise CallbackError(f"callbacks is a list: write callbacks=[{kind}()]")
        for callback in callbacks:
            self._check(callback, self._all)
            self._all.append(callback)
        own = {callback.name for callback in self._all}
        self._defaults = [callback for callback in self._defaults if callback.name not in own]
        self._all = [*self._defaults, *self._all]
        self.rebuild()

    def configure(self, callbacks: Iterable[Callback], left_out: Collection[str]) -> None:
        """Add those that a configuration names; leave out others, now and when they are added.

        Raises:
            CallbackError: One is there already that is no default one.
        """
        self._left_out = left_out
        self._all = self._kept(self._all)
        self.rebuild()
        for callback in callbacks:
            if callback.name in self and self[callback.name] not in self._defaults:
                raise CallbackError(
                    f"the callback {callback.name!r} is in the configuration and in the code: take "
                    f"one away (config.callbacks.{callback.name} = false leaves out that of the "
                    "code), or give one another name"
                )
            self.append(callback)

    def append(self, callback: Callback) -> None:
        """Add a callback; it takes the place of a default one of its name.

        One whose name the configuration leaves out is not added.
        """
        self._refuse_in_run()
        others = [
            other
            for other in self._all
            if other not in self._defaults or other.name != getattr(callback, "name", None)
        ]
        self._check(callback, others)
        self._all = self._kept([*others, callback])
        self.rebuild()

    def remove(self, callback: Callback | str) -> None:
        """Take out a callback, given itself or its name."""
        self._refuse_in_run()
        found = self[callback] if isinstance(callback, str) else callback
        if not any(other is found for other in self._all):
            raise CallbackError(f"{type(found).__name__} {found.name!r} is not among the callbacks")
        self._all = [other for other in self._all if other is not found]
        self.rebuild()

    def rebuild(self) -> None:
        """Look again which hooks the callbacks override, on the class or on the instance."""
        self._all.sort(key=lambda callback: callback.priority)
        for hook in HOOKS:
            base = getattr(Callback, hook)
            methods = [(callback, getattr(callback, hook)) for callback in self._all]
            self._tables[hook] = tuple(
                (callback, method)
                for callback, method in methods
                if getattr(method, "__func__", method) is not base
            )

        self.heard = {hook for hook, listeners in self._tables.items() if listeners}

    def __call__(self, hook: str, *args: Any) -> None:
        """Call a hook of every callback that overrides it; an error is raised with a note."""
        for callback, method in self._tables[hook]:
            try:
                method(*args)
            except BaseException as error:
                add_note(error, callback, hook, args[0])
                raise

    def hears(self, hook: str) -> bool:
        """Whether any callback overrides a hook."""
        return bool(self._tables[hook])

    def call_all(self, hook: str, callbacks: Iterable[Callback], *args: Any) -> list[BaseException]:
        """Call a hook of each callback, whatever the others raise; returns what they raised."""
        errors: list[BaseException] = []
        for callback in callbacks:
            try:
                getattr(callback, hook)(*args)
            except BaseException as error:
                add_note(error, callback, hook, args[0])
                errors.append(error)
        return errors

    def __getitem__(self, key: int | str) -> Callback:
        if isinstance(key, int):
            return self._all[key]
        for callback in self._all:
            if callback.name == key:
                return callback
        if key in self._left_out:
            raise CallbackError(f"config.callbacks.{key} is false: the callback is left out")
        names = [callback.name for callback in self._all]
        raise CallbackError(f"there is no callback named {key!r}: {did_you_mean(key, names)}")

    def __contains__(self, callback: object) -> bool:
        return any(callback is other or callback == other.name for other in self._all)

    def __iter__(self) -> Iterator[Callback]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"Callbacks([{', '.join(callback.name for callback in self._all)}])"

    # State

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The state of each callback by name, and those that no callback of now has claimed."""
        return {callback.name: callback.state_dict() for callback in self._all} | self._unclaimed

    def load_state_dict(
        self, states: Mapping[str, dict[str, Any]], *, strict: bool = True
    ) -> tuple[list[str], str]:
        """Give each callback its state by name.

        Returns:
            Which states did not load, where `strict` is not set; and a line on which callbacks came
            and went, empty where they are the same.

        Raises:
            CheckpointError: A state does not load, and `strict` is set.
        """
        names = {callback.name for callback in self._all}
        problems: list[str] = []
        for callback in [callback for callback in self._all if callback.name in states]:
            try:
                callback.load_state_dict(states[callback.name])
            except Exception as error:
                problems.append(f"the state of callback {callback.name!r} does not load: {error!r}")
                if strict:
                    raise CheckpointError(problems[-1]) from error
        self._unclaimed = {name: state for name, state in states.items() if name not in names}
        gone = sorted(name for name, state in self._unclaimed.items() if state)
        lists = [("new", sorted(names - states.keys())), ("gone", gone)]
        return problems, "; ".join(f"{word}: {', '.join(found)}" for word, found in lists if found)

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Give all callbacks back the state that they had, where the block raises."""
        states, unclaimed = self.state_dict(), self._unclaimed
        try:
            yield
        except BaseException:
            self.load_state_dict(states, strict=False)
            self._unclaimed = unclaimed
            raise

    def _kept(self, callbacks: list[Callback]) -> list[Callback]:
        return [callback for callback in callbacks if callback.name not in self._left_out]

    def _check(self, callback: object, others: list[Callback]) -> None:
        if not isinstance(callback, Callback):
            hint = f": write {callback.__name__}()" if isinstance(callback, type) else ""
            raise CallbackError(f"{callback!r} is not a danling.Callback{hint}")
        for other in others:
            if other.name == callback.name:
                kinds = f"{type(other).__name__} and {type(callback).__name__}"
                raise CallbackError(
                    f"two callbacks are named {callback.name!r} ({kinds}): set `name` on one, "
                    "it is the key of its state in checkpoints"
                )

    def _refuse_in_run(self) -> None:
        if self.in_run:
            raise RunError("callbacks are added and removed before or between runs, not during one")


def add_note(error: BaseException, callback: Callback, hook: str, runner: Any) -> None:
    """Say on an error which callback raised it, where and when."""
    error.add_note(
        f"raised by {type(callback).__name__} ({callback.name!r}) in {hook}, "
        f"epoch {runner.epoch}, global step {runner.global_step}"
    )
