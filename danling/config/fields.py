"""Fields: the keys that a class declares by annotation, as dataclasses do.

    class Optim(Config):
        lr: float = 1e-3
        cache: Annotated[Path, NotInRunId] = Path("cache")

Both the well-known keys of every run and the keys of a user's own configuration are declared
this way.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Annotated, Any, ClassVar, Literal, dataclass_transform, get_args, get_origin

from danling.config.frozen import copy_value
from danling.config.types import Conversion, require_supported
from danling.errors import ConfigError
from danling.files.json import short_repr

__all__ = [
    "REQUIRED",
    "Checked",
    "Declared",
    "Field",
    "Minimum",
    "NewDefault",
    "NotInRunId",
    "Shorthand",
    "declare_fields",
    "first_argument",
]


class NotInRunId:
    """Mark of a field that does not change what a run computes and stays out of its `run_id`.

    With names, only those keys of the field's section, and of the sections in it, stay out.

    Example:
        >>> from danling import Config
        >>> class Training(Config):
        ...     lr: float = 0.1
        ...     cache: Annotated[str, NotInRunId] = "cache"
        >>> a, b = Training(cache="here"), Training(cache="there")
        >>> a.semantic() == b.semantic()
        True
    """

    def __init__(self, *keys: str) -> None:
        self.keys = frozenset(keys)


@dataclass(frozen=True)
class Minimum:
    """Mark of a field whose number may not be smaller.

    Example:
        >>> from danling import Config
        >>> class Model(Config):
        ...     layers: Annotated[int, Minimum(1)] = 2
        >>> Model(layers=0)
        Traceback (most recent call last):
        danling.errors.ConfigError: config.layers: expected at least 1, got 0
    """

    value: float


@dataclass(frozen=True)
class Checked:
    """Mark of a field whose converted value is passed through a function.

    Attributes:
        check: Takes the value and its path, and returns the value to keep or raises a
            `ConfigError`.
    """

    check: Callable[[Any, str], Any]


@dataclass(frozen=True)
class Shorthand:
    """Mark of a field whose value may be written in shorter forms.

    Attributes:
        expand: Takes the value and its path, and returns the full form, which is then converted.
    """

    expand: Callable[[Any, str], Any]


class NewDefault:
    """Mark of a key that came later: its default is left out of the `run_id`.

    So the runs that were made before the key was there keep their ids.
    """


class _Required:
    """The default of a field that has none."""

    def __repr__(self) -> str:
        return "(required)"


REQUIRED = _Required()


@dataclass(frozen=True)
class Field:
    """One declared key; as a descriptor it reads the key from the configuration.

    Attributes:
        name: The key.
        annotation: The type of its values.
        default: Value where none is set, or `REQUIRED`.
        minimum: Smallest number that is valid, if there is one.
        in_run_id: Whether the value is part of the `run_id`.
        excluded_keys: Keys of the section that are not part of the `run_id`.
        check: The function of value and path that returns the value to keep.
        omits_default: Whether the default is left out of what the `run_id` is made of.
        expand: The function of value and path that returns the full form of a shorter one.
    """

    name: str
    annotation: Any
    default: Any = REQUIRED
    minimum: float | None = None
    in_run_id: bool = True
    excluded_keys: frozenset[str] = frozenset()
    check: Callable[[Any, str], Any] | None = None
    omits_default: bool = False
    expand: Callable[[Any, str], Any] | None = None

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is not None:
            return instance[self.name]
        if self.default is REQUIRED:
            raise AttributeError(f"{owner.__name__}.{self.name} has no default")
        return copy_value(self.default)

    def is_omitted(self, value: Any) -> bool:
        """Whether the value is a default that the `run_id` is not made of."""
        return self.omits_default and bool(value == self.default)

    def convert(self, value: Any, path: str, conversion: Conversion) -> Any:
        """The value in the field's type.

        Raises:
            ConfigError: It cannot be converted without loss.
        """
        if self.expand is not None:
            value = self.expand(conversion.read(value, path), path)
        converted = conversion.convert(value, self.annotation, path)
        if self.minimum is not None and converted is not None and converted < self.minimum:
            raise ConfigError(f"{path}: expected at least {self.minimum:g}, got {converted!r}")
        return self.check(converted, path) if self.check else converted


def first_argument(*, default: None, kw_only: Literal[False]) -> Any:
    """Tell type checkers that a constructor takes this value by position, as a mapping."""
    return default


@dataclass_transform(kw_only_default=True, field_specifiers=(first_argument,))
class Declared:
    """Base of the classes whose annotated attributes are keys.

    Type checkers know these as the keywords of the constructor (PEP 681).
    """


def declare_fields(
    cls: type, inherited: Mapping[str, Field], reserved: Collection[str]
) -> dict[str, Field]:
    """Replace the annotated attributes of a class by fields and return these by name.

    Args:
        cls: The class, just defined.
        inherited: Fields of its bases; one that is declared again keeps its place in the run_id.
        reserved: Names that cannot be keys because they are methods.

    Raises:
        ConfigError: A name is taken, a type cannot be saved, or a default has no annotation.
    """
    fields: dict[str, Field] = {}
    annotations = _annotations(cls)
    for name, annotation in annotations.items():
        if get_origin(annotation) is ClassVar or annotation is ClassVar or name.startswith("_"):
            continue
        where = f"{cls.__qualname__}.{name}"
        if name in reserved:
            raise ConfigError(f"{where}: {name!r} is an attribute of every config; rename the key")
        base = inherited.get(name)
        default = vars(cls).get(name, base.default if base else REQUIRED)
        fields[name] = _field(name, annotation, default, base)
        require_supported(fields[name].annotation, where)
        setattr(cls, name, fields[name])
    for name, value in list(vars(cls).items()):
        if name not in annotations and _is_bare_default(name, value):
            fields[name] = _with_default(cls, inherited.get(name), name, value)
            setattr(cls, name, fields[name])
    return fields


def _field(name: str, annotation: Any, default: Any, base: Field | None) -> Field:
    marks: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        marks = tuple(rest)
    minimum = next((mark.value for mark in marks if isinstance(mark, Minimum)), None)
    check = next((mark.check for mark in marks if isinstance(mark, Checked)), None)
    if check is None and base is not None and base.annotation == annotation:
        check = base.check
    expand = next((mark.expand for mark in marks if isinstance(mark, Shorthand)), None)
    is_new = NewDefault in marks
    field = Field(
        name, annotation, default, minimum, check=check, omits_default=is_new, expand=expand
    )
    if not any(_is_not_in_run_id(mark) for mark in marks) and base is not None:
        return replace(
            field,
            in_run_id=base.in_run_id,
            excluded_keys=base.excluded_keys,
            omits_default=base.omits_default,
        )
    excluded = [
        mark.keys if isinstance(mark, NotInRunId) else frozenset[str]()
        for mark in marks
        if _is_not_in_run_id(mark)
    ]
    return replace(field, in_run_id=all(excluded), excluded_keys=frozenset().union(*excluded))


def _is_not_in_run_id(mark: Any) -> bool:
    return mark is NotInRunId or isinstance(mark, NotInRunId)


def _annotations(cls: type) -> dict[str, Any]:
    """The class's own annotations, those that are text evaluated."""
    names = {**_local_names(cls), cls.__name__: cls}
    module = sys.modules.get(cls.__module__)
    try:
        return inspect.get_annotations(
            cls, globals=vars(module) if module else None, locals=names, eval_str=True
        )
    except NameError as error:
        raise ConfigError(
            f"{cls.__qualname__}: an annotation uses {error.name!r}, which is not defined there; "
            "import or define it before the class"
        ) from error


def _local_names(cls: type) -> dict[str, Any]:
    """Names of the function that defines the class: annotations may use them."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (
        frame.f_globals.get("__name__") != cls.__module__
        or frame.f_code.co_name == "__init_subclass__"
    ):
        frame = frame.f_back
    return frame.f_locals if frame else {}


def _is_bare_default(name: str, value: Any) -> bool:
    """Whether a class attribute is meant as a default, and not as a method or a nested class."""
    descriptor = hasattr(value, "__get__") or isinstance(value, type)
    return not name.startswith("_") and not descriptor


def _with_default(cls: type, base: Field | None, name: str, value: Any) -> Field:
    if base is None:
        raise ConfigError(
            f"{cls.__qualname__}.{name} = {short_repr(value)} has no annotation; "
            f"write {name}: {type(value).__name__} = ..., or ClassVar where it is no key"
        )
    return replace(base, name=name, default=value)
