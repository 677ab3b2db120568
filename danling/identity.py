"""Which code, which configuration, which run: the ids of an experiment and of a run.

    experiment_uuid   the code: the commit, and when the tree is dirty its exact content
    run_uuid          the code and the configuration
    uuid              random, one per run; drawn when the directory is claimed

Nothing that depends on the machine, on the place of the checkout or on the process enters the
first two: the same code and configuration have the same ids everywhere.
"""

from __future__ import annotations

import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from danling.errors import ConfigError
from danling.git import GitError, GitTimeoutError, Repository
from danling.jsonable import canonical_json
from danling.worktree import Snapshot, WorkingTree, file_digest

__all__ = [
    "Code",
    "excluded_folders",
    "experiment_uuid",
    "read_code",
    "run_identifier",
    "run_name",
    "run_uuid",
]

_NAMESPACE = UUID("1c9a4f0e-6d7b-5c2f-9b0a-d3a1f6e05b27")  # changing it changes every id
_MAX_NAME_BYTES = 200  # of the 255 a file system allows; the ids of a directory need 27
_FORBIDDEN = '/\\<>:"|?*'
_BREAKS = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, line and paragraph separators
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Code:
    """The code that runs, as far as it could be found out."""

    commit: str | None = None
    """Git commit; None outside a repository and before the first commit."""
    branch: str | None = None
    tree: str | None = None
    """Git tree of the working tree; without git a digest of the source files."""
    dirty: bool | None = None
    """Whether the working tree differs from the commit; None where that is unknown."""
    partial: bool = False
    """Not everything could be read in time: the ids may be those of other code too."""
    source: str = "files"
    """"git", or "files": the main script and the modules it had imported from its project."""
    extra: tuple[str, ...] = ()
    """What the tree does not hold: `path size digest` of large untracked files and of source files
    outside git, `path commit tree` of changed submodules and nested repositories."""
    note: str | None = None
    """Why git was not used, or not to the end."""


def read_code(start: Path, *, exclude: Sequence[Path] = (), timeout: float = 2.0) -> Code:
    """Find out which code runs; never fails, and never takes much longer than `timeout`.

    Args:
        start: Folder of the main script, or the current folder where there is none.
        exclude: Folders that are output and not code. One that holds `start` is not excluded.
        timeout: Seconds after which the result is marked partial.

    Example:
        >>> code = read_code(getfixture("tmp_path"))
        >>> code.source, code.commit, code.partial
        ('files', None, False)
    """
    start = Path(os.path.realpath(start))
    outside = excluded_folders(start, exclude)
    deadline = time.monotonic() + timeout
    repository: Repository | None = None
    try:
        repository = Repository(start, timeout)
        with WorkingTree.of(repository) as tree:
            return _code(tree.snapshot(outside))
    except GitTimeoutError as error:
        commit = repository.head() if repository else None
        return Code(commit=commit, partial=True, source="git", note=str(error))
    except (GitError, OSError) as error:
        commit = repository.head() if repository else None
        return _source_files(start, commit, str(error), deadline)


def experiment_uuid(code: Code) -> UUID:
    """Identity of the code: of the commit where the working tree is clean, else of its content.

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


def _code(snapshot: Snapshot) -> Code:
    return Code(
        commit=snapshot.commit,
        branch=snapshot.branch,
        tree=snapshot.tree,
        dirty=snapshot.dirty,
        source="git",
        extra=snapshot.extra,
    )


def excluded_folders(start: Path, exclude: Sequence[Path]) -> list[Path]:
    """The folders of `exclude` that do not hold `start`; of links, their targets too."""
    named = [Path(os.path.realpath(path.parent)) / path.name for path in map(Path, exclude)]
    resolved = [Path(os.path.realpath(path)) for path in exclude]
    return [path for path in [*named, *resolved] if path != start and path not in start.parents]


def _source_files(start: Path, commit: str | None, note: str, deadline: float) -> Code:
    root = start
    while (root / "__init__.py").is_file():  # `python -m package.train` imports from above
        root = root.parent
    lines: list[str] = []
    partial = False
    for path in sorted(set(_project_files(root))):
        try:
            digest = file_digest(path, deadline)
            lines.append(f"{path.relative_to(root).as_posix()} {path.stat().st_size} {digest}")
        except GitTimeoutError as error:
            partial, note = True, f"{note}; {error}"
            break
        except OSError:  # a module of a zip file, a script deleted since
            continue
    tree = sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
    return Code(commit=commit, tree=tree, partial=partial, extra=tuple(lines), note=note)


def _project_files(root: Path) -> Iterator[Path]:
    """Files of the modules imported so far that lie under `root` and belong to no library."""
    libraries = [Path(os.path.realpath(path)) for path in (sys.prefix, sys.base_prefix)]
    libraries = [path for path in libraries if root in path.parents]
    for module in list(sys.modules.values()):
        file = getattr(module, "__dict__", {}).get("__file__")  # getattr would wake lazy modules
        path = Path(os.path.realpath(file)) if isinstance(file, str) else root
        installed = {"site-packages", "dist-packages"} & set(path.parts)
        if root in path.parents and not installed and not set(libraries) & set(path.parents):
            yield path
