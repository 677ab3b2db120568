"""The configuration of a run: what a user sets, with types, and the state that the runner binds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Never, Protocol, Self, get_origin, overload

from danling.config.fields import REQUIRED, Field, Minimum, NotInRunId, declare_fields
from danling.config.files import Layer, read_config_layers, write_config_file
from danling.config.frozen import copy_value, rebuild
from danling.config.mapping import (
    ABSENT,
    MissingKeyError,
    TypedMapping,
    difference,
    names_taken,
    without_keys,
)
from danling.config.naming import made_name, values_at
from danling.config.references import References, escape
from danling.config.settings import (
    OPTIONS,
    SETTINGS,
    STATE_KEYS,
    Settings,
    key_of_other_libraries,
    near_miss,
)
from danling.config.types import Conversion, Section, from_omegaconf
from danling.errors import ConfigError
from danling.files.json import to_jsonable, to_plain

__all__ = ["ABSENT", "Config", "Minimum", "MissingKeyError", "NotInRunId"]


MYPY = False
_LENGTH = ("max_epochs", "max_steps")  # a run that is trained for longer is the same run


class _Plain(Protocol):
    """The type of `Config` for a type checker, and of no subclass: lists are invariant."""

    def _same(self) -> list[Config]: ...


class Config(TypedMapping, Settings):
    """A nested configuration with attribute access, `config.optim.lr`, and dotted keys.

    A plain `Config` takes any key, and warns where one looks like a misspelt well-known key
    (`danling.config.settings.Settings` has them). A subclass declares its keys by annotation, as a
    dataclass does, and refuses all others; a comment beside or above a key is its text in `--help`.
    Well-known keys that are not set read as their defaults but are not stored: `in`, iteration and
    `to_dict` cover what was set, `resolved` has all.

    Args:
        mapping: Keys and values; nested mappings become sections, a dot in a key nests.
        **keys: Further keys, which win over those of the mapping.

    Raises:
        ConfigError: A key or a value is wrong; the message names its path.

    Example:
        >>> class Optim(Config):
        ...     name: str = "adamw"
        ...     lr: float = 1e-3  # learning rate
        >>> class Training(Config):
        ...     optim: Optim
        ...     layers: list[int] = [64, 64]
        >>> config = Training({"optim": {"lr": 1}}, max_epochs=3)
        >>> config.optim.lr, config["optim.name"], config.max_epochs, config.log_interval
        (1.0, 'adamw', 3, 50)
        >>> config.optim.lrr = 0.1
        Traceback (most recent call last):
        danling.errors.ConfigError: config.optim has no key 'lrr'; did you mean 'lr'?
    """

    if TYPE_CHECKING:
        # Without annotations, so that a subclass may declare them narrower: max_epochs: int = 20
        seed = Settings.seed
        max_epochs = Settings.max_epochs
        max_steps = Settings.max_steps
        monitor = Settings.monitor
        evaluate_every = Settings.evaluate_every
        max_grad_norm = Settings.max_grad_norm
        max_grad_value = Settings.max_grad_value
        state_dict_type = Settings.state_dict_type
        resume = Settings.resume

        def _same(self) -> list[Self]: ...

        # Any attribute of a plain config, none but its own of a subclass. The two type checkers
        # see a wrong `self` in different forms; mypy takes the name MYPY as true.
        if MYPY:

            def __getattr__(self: _Plain, name: str) -> Any: ...
            def __setattr__(self: _Plain, name: str, value: Any) -> None: ...
            def __delattr__(self: _Plain, name: str) -> None: ...
        else:

            @overload
            def __getattr__(self: _Plain, name: str) -> Any: ...
            @overload
            def __getattr__(self, name: Never) -> Any: ...
            @overload
            def __setattr__(self: _Plain, name: str, value: Any) -> None: ...
            @overload
            def __setattr__(self, name: Never, value: Any) -> None: ...
            @overload
            def __delattr__(self: _Plain, name: str) -> None: ...
            @overload
            def __delattr__(self, name: Never) -> None: ...

    def __init__(self, mapping: Mapping[str, Any] | None = None, /, **keys: Any) -> None:
        self._begin()
        values: Any
        for values in (from_omegaconf({} if mapping is None else mapping, self._path), keys):
            if not isinstance(values, Mapping):
                kind = type(values).__name__
                raise ConfigError(
                    f"a config takes a mapping, got a {kind}; Config.load reads files"
                )
            self._merge(values, self._conversion())
        self._require_complete()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        inherited: dict[str, Field] = {}
        for base in reversed(cls.__mro__[1:]):
            inherited |= vars(base).get("_fields", {})
        own = declare_fields(cls, SETTINGS | inherited, cls._reserved)
        cls._fields = inherited | own
        cls._is_open, cls._reserved = False, names_taken(cls)
        for name, field in own.items():
            if field.default is not REQUIRED:
                field.convert(field.default, f"{cls.__qualname__}.{name}", cls._conversion())

    # the whole of it

    def to_dict(self, *, state: bool = False) -> dict[str, Any]:
        """Plain nested dicts and lists with the values as they are.

        Args:
            state: Whether the state that the runner has bound is in it.
        """
        bound = {key: read() for key, read in self._state.items()} if state else {}
        return super().to_dict() | bound

    def resolved(self) -> dict[str, Any]:
        """Return `to_dict` with every well-known key: those not set have their defaults."""
        if not self._is_top:
            return self.to_dict()
        defaults = {key: copy_value(field.default) for key, field in SETTINGS.items()}
        return defaults | self._made | self.to_dict()

    def semantic(self) -> dict[str, Any]:
        """The JSON-able part that decides what a run computes: what its `run_id` is made of.

        Defaults are in it, so that writing a default out changes nothing. Keys marked with
        `NotInRunId` are not, nor are a seed that was drawn and the state. Values have the types
        of their fields: in a float field 1 and 1.0 are the same. Without a field they differ, as
        they do in many libraries, where 1 is a count and 1.0 a fraction.

        Raises:
            ConfigError: Some values are not JSON-serialisable.
        """
        values: dict[str, Any] = to_jsonable(self._semantic_values(), self._path)
        return values

    def check(self) -> None:
        """Raise one error that lists every value that cannot be saved, with its path.

        Raises:
            ConfigError: A value cannot be saved; a declared field has the name of the run's state.
        """
        to_jsonable(self.to_dict(), self._path)
        if self._is_top:
            taken = [key for key in STATE_KEYS if key in self._fields]
            if taken:
                raise ConfigError(
                    f"{type(self).__name__} declares {', '.join(taken)}: the state of a run, which "
                    "the runner sets; rename the field, or move it into a section"
                )

    def diff(self, other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Values that differ, by dotted key: the one here, the one in `other`.

        Values are compared as they are saved, so that a list equals a tuple, and 1 is not 1.0. A
        key that one side does not have is `ABSENT` there. A name that `name_run` made of the
        other values is no difference.

        Example:
            >>> Config(optim={"lr": 0.1}).diff(Config(optim={"lr": 0.2}, max_epochs=3))
            {'max_epochs': (None, 3), 'optim.lr': (0.1, 0.2)}
        """
        if not isinstance(other, Config):
            other = self._nested(other, self._path, self._conversion())
        pairs = difference(self._flat(), other._flat())
        return {key: pair for key, pair in pairs.items() if key not in self._made | other._made}

    def warn_unread(self) -> None:
        """Name the keys that nobody has read in one warning, with the keys that they may be.

        A training says the same in its log: at its start of keys that may be meant for well-known
        ones, and after its first epoch, when everybody has read what he needs, of the others.

        Example:
            >>> import warnings
            >>> with warnings.catch_warnings(record=True, action="always") as caught:
            ...     Config(batch_size=32).warn_unread()
            >>> print(caught[0].message)
            nobody has read config.batch_size (did you mean 'dataloader.batch_size'?)
        """
        if found := [self._hinted(key, meant) for key, meant in self.unread_keys().items()]:
            warnings.warn(f"nobody has read {', '.join(found)}", UserWarning, stacklevel=2)

    def unread_keys(self) -> dict[str, str | None]:
        """The keys that nobody has read, each with the well-known key that it may be meant for.

        Example:
            >>> Config(batch_size=32, width=3).unread_keys()
            {'batch_size': 'dataloader.batch_size', 'width': None}
        """
        return {key: key_of_other_libraries(key) or near_miss(key) for key in self.unread()}

    def _hinted(self, key: str, meant: str | None) -> str:
        return self._where(key) + (f" (did you mean {meant!r}?)" if meant else "")

    # files and the command line

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a .yaml, .yml or .json file.

        With the key `extends` a file is merged over other files, whose paths are relative to its
        folder. A text `${optim.lr}` is the value of that key; `$${x}` is the text `${x}`.

        Raises:
            ConfigError: The file cannot be read, or a key or value in it is wrong; the message
                names the file, and the line where its syntax is wrong.
        """
        config, references = cls._blank("config"), References()
        layers = read_config_layers(path)
        for layer in layers:
            config._merge_layer(layer, references)
        try:
            references.fill(config)
            config._require_complete()
        except ConfigError as error:
            raise ConfigError(f"{os.fspath(path)}: {error}") from error
        return config

    def save(self, path: str | os.PathLike[str], *, private: bool = False) -> None:
        """Write what was set to a .yaml, .yml or .json file, which is replaced in one step.

        Args:
            path: The file.
            private: Whether its owner alone may read it: a configuration may hold secrets.

        Raises:
            ConfigError: A value cannot be saved, or the suffix is unknown.
        """
        values = escape(to_plain(self.to_dict(), self._path))
        write_config_file(path, values, private=private)

    @classmethod
    def parse(cls, arguments: Sequence[str] | None = None) -> Self:
        """A configuration from the command line: `--config FILE`, then `--optim.lr 1e-4`.

        Files are merged from left to right, then come the flags. With `--resume` and the path of a
        run, or of one of its checkpoints, the configuration of that run comes first. Prints and
        leaves on `--help` and `--print-config`; a wrong flag or value leaves with code 2 and says
        what is valid.

        Args:
            arguments: The words to read instead of the arguments of this process.
        """
        from danling.config.command_line import parse_command_line

        return parse_command_line(cls, arguments)

    # what the runner does with its copy

    def bind_state(self, source: Mapping[str, Callable[[], Any]]) -> None:
        """Read the state of a run, such as `epoch`, from live functions; copies are not bound.

        Raises:
            ConfigError: A declared field has the name of the run's state.
        """
        unknown = set(source) - set(STATE_KEYS)
        if unknown:
            raise ConfigError(f"not the state of a run: {', '.join(sorted(unknown))}")
        self.check()
        self._state = dict(source)
        self._values = self._made | self._values  # a run keeps the name that it began with

    @property
    def drawn_seed(self) -> bool:
        """Whether the seed was drawn, so that it is no part of the run's identity."""
        return self._drawn_seed is not None and self.seed == self._drawn_seed

    def record_drawn_seed(self, seed: int) -> None:
        """Set a seed that nobody chose; setting another one later makes that a chosen one."""
        self["seed"] = seed
        self._drawn_seed = seed

    def name_run(self, keys: Iterable[str]) -> bool:
        """Name a run that nobody named after those of the keys that are part of its identity.

        A run gets the name with its directory; until then `run_name` is not set, and reads so. A
        name that was set, or a class declares, stays; one that was made from a command line and
        was saved with the run is gone on with.

        Args:
            keys: The dotted keys that the command line has set.

        Returns:
            Whether the run has got a name.

        Example:
            >>> config = Config(optim={"lr": 0.01}, seed=3)
            >>> config.name_run(["optim.lr", "seed"]), config.run_name, "run_name" in config
            (True, 'lr=0.01 seed=3', False)
        """
        if "run_name" in self._fields:
            return False
        before = self._values.get("run_name", "")
        named = values_at(self._semantic_values(), [key for key in keys if key not in _LENGTH])
        name = made_name(named, before)
        if not named or name == before:
            return False
        if before:
            self["run_name"] = name
        else:
            self._made = {"run_name": name}
        return True

    # how keys and values behave in a configuration

    def _merge_layer(self, layer: Layer, references: References) -> None:
        try:
            self._merge(references.take(layer.values), self._conversion())
        except ConfigError as error:
            raise ConfigError(f"{layer.path}: {error}") from error

    @classmethod
    def _conversion(cls, is_text: bool = False) -> Conversion:
        return Conversion(Config, is_text)

    def _field(self, key: str) -> Field | None:
        known = SETTINGS.get(key) if self._is_top else OPTIONS.get(self._where(key))
        return super()._field(key) or known

    def _is_reserved(self, key: str) -> bool:
        # the names of callbacks and of their arguments are not ours to choose: config["..."] reads
        inside = f"{self._path}.".startswith("config.callbacks.")
        return super()._is_reserved(key) and not inside

    def _is_set(self, key: str) -> bool:
        if not super()._is_set(key):
            return False
        # an empty well-known section may be there because it was read
        value = self._values[key]
        return not (isinstance(value, Section) and not value and self._is_plain_setting(key))

    def _is_plain_setting(self, key: str) -> bool:
        return self._is_top and key in SETTINGS and key not in self._fields

    def _is_chosen(self, key: str, value: Any) -> bool:
        return not self._is_plain_setting(key) and super()._is_chosen(key, value)

    def _known_keys(self) -> set[str]:
        return super()._known_keys() | (set(SETTINGS) if self._is_top else set())

    def _require_allowed(self, key: str) -> None:
        if key in self._fields or self._is_plain_setting(key):
            return
        if self._is_top and key in STATE_KEYS:
            raise ConfigError(
                f"{self._where(key)} is the run's state: the runner sets it, and a config does not;"
                " remove it, rename it, or put it into a section as a dict"
            )
        if not self._is_open:
            raise ConfigError(self._unknown(key))
        near = near_miss(key) if self._is_top and key not in self._values else None
        if near:
            message = f"{self._where(key)} is not read by the library; did you mean {near!r}?"
            warnings.warn(message, UserWarning, stacklevel=5)

    def _unset(self, key: str) -> Any:
        if key in self._state:
            return self._state[key]()
        if self._is_plain_setting(key):
            if key in self._made:
                return self._made[key]
            field = SETTINGS[key]
            value = field.convert(field.default, self._where(key), self._conversion())
            if isinstance(value, Config):  # kept, so that it can be filled
                self._values[key] = value.freeze() if self.frozen else value
            return value
        if self._is_top and key in STATE_KEYS:
            raise MissingKeyError(
                f"{self._where(key)} is the run's state: read it on runner.config"
            )
        return super()._unset(key)

    def _semantic_values(self) -> dict[str, Any]:
        values = dict(self._items())
        if self._is_top:
            unset = {name: self._unset(name) for name in SETTINGS if name not in values}
            values = unset | values
            values = {name: values[name] for name in (*SETTINGS, *values)}
        if self._is_top and self.drawn_seed:
            values["seed"] = None
        kept: dict[str, Any] = {}
        for key, value in values.items():
            field = self._field(key)
            if field is not None and (not field.in_run_id or field.is_omitted(value)):
                continue
            kept[key] = rebuild(value, "", lambda section: section._semantic_values())
            if field and field.excluded_keys and isinstance(kept.get(key), dict):
                kept[key] = without_keys(kept[key], field.excluded_keys)
        return kept

    def _flat(self) -> dict[str, Any]:
        unset = {key: field.default for key, field in SETTINGS.items()}
        # an empty section has no values, an empty dict is one
        defaults = {
            k: v for k, v in unset.items() if v != {} or get_origin(SETTINGS[k].annotation) is dict
        }
        return defaults | self.flatten() if self._is_top else self.flatten()

    def _restore(self, path: str, values: dict[str, Any]) -> None:
        super()._restore(path, values)
        self._state, self._drawn_seed, self._made = {}, None, {}

    def copy(self) -> Self:
        """A deep copy that is neither frozen nor bound to the state of a run."""
        copied = super().copy()
        copied._drawn_seed, copied._made = self._drawn_seed, dict(self._made)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        state = {"drawn_seed": self._drawn_seed, "made": self._made}
        return super().__getstate__() | state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._drawn_seed, self._made = state["drawn_seed"], state.get("made", {})


Config._reserved = names_taken(Config)
