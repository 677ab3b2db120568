"""The ids of an experiment and of a run, made of the code and the configuration.

    experiment_uuid   the code: the commit, and when the code differs from it, its exact content
    run_uuid          the code and the configuration
    uuid              random, one per run; drawn when the directory is claimed

Nothing that depends on the machine, on the place of the checkout or on the process enters the
first two: the same code and configuration have the same ids everywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid5

from danling.errors import ConfigError
from danling.files.json import canonical_json
from danling.identity.code import Code

__all__ = ["experiment_uuid", "run_identifier", "run_name", "run_uuid"]


_NAMESPACE = UUID("1c9a4f0e-6d7b-5c2f-9b0a-d3a1f6e05b27")  # changing it changes every id
_MAX_NAME_BYTES = 200  # of the 255 a file system allows; the ids of a directory need 27
_FORBIDDEN = '/\\<>:"|?*'
_BREAKS = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, line and paragraph separators
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def experiment_uuid(code: Code) -> UUID:
    """Identity of the code: of the commit where nothing differs from it, else of the content.

    Code that could not be read to the end has an id that no other run has.

    Example:
        >>> experiment_uuid(Code(commit="0" * 40, dirty=False, source="git")).hex
        'd86a3f558d9157d19d3ebb12364edf73'
    """
    if code.source == "git" and code.dirty is False:
        return uuid5(_NAMESPACE, str(code.commit))
    parts = [code.source, code.commit if code.source == "git" else None, code.tree]
    return uuid5(_NAMESPACE, canonical_json([*parts, list(code.extra), code.partial]))


def run_uuid(experiment: UUID, semantic: Mapping[str, Any]) -> UUID:
    """Identity of a run: the code, and the part of the configuration that changes results.

    Example:
        >>> run_uuid(UUID(int=0), {"lr": 0.1, "seed": 0}).hex
        'e1841240e83f5e0f9ecf1a6f533f850f'
    """
    return uuid5(experiment, canonical_json(semantic))


def run_identifier(experiment_id: str, run_id: str, uuid: str) -> str:
    """Short form of the three ids of a run, the end of its directory's name.

    Example:
        >>> run_identifier("0123456789abcdef", "fedcba9876543210", "00112233445566778899")
        '01234567-fedcba98-00112233'
    """
    return f"{experiment_id:.8}-{run_id:.8}-{uuid:.8}"


def run_name(experiment_name: str, run_name: str) -> str:
    """Join the two names of a run to one that is a valid folder name on every system.

    Composed and decomposed Unicode give the same name.

    Raises:
        ConfigError: A name breaks a rule; the message says which.

    Example:
        >>> run_name("digits", "mlp")
        'digits-mlp'
    """
    names = {"experiment_name": experiment_name, "run_name": run_name}
    normal = [_valid_name(key, name) for key, name in names.items()]
    name = "-".join(normal)
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise ConfigError(
            f"experiment_name and run_name together are {len(name.encode())} bytes long, and"
            f" {_MAX_NAME_BYTES} are allowed: {name[:40]!r}..."
        )
    return name


def _valid_name(key: str, name: str) -> str:
    if not isinstance(name, str):
        raise ConfigError(f"{key} must be a string, not {name!r}")
    normal = unicodedata.normalize("NFC", name)
    problem = _name_problem(normal)
    if problem:
        raise ConfigError(f"{key}={name!r} cannot be part of a folder's name: {problem}")
    return normal


def _name_problem(name: str) -> str | None:
    forbidden = sorted(
        {char for char in name if char in _FORBIDDEN or unicodedata.category(char) in _BREAKS}
    )
    if not name:
        return "it is empty"
    if forbidden:
        return f"it contains {', '.join(map(repr, forbidden))}"
    if name[0] in ".- ":
        return f"it starts with {name[0]!r}"
    if name[-1] in ". ":
        return f"it ends with {name[-1]!r}"
    if _RESERVED.fullmatch(name):
        return "Windows reserves it for a device"
    return None
