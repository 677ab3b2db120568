"""The files that this process has imported from its project, and the code that is in no file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

__all__ = ["ImportWatch", "main_folder", "project_files", "project_folder", "typed_code"]


_INSTALLED = {"site-packages", "dist-packages"}
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")  # options of Python that take the next word


def main_folder() -> Path:
    """The folder of the main script; the current folder where there is none, as in a notebook."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(script).resolve().parent if script else Path.cwd()


def project_folder(start: Path) -> Path:
    """The folder around `start` that is a git repository; `start` itself where there is none."""
    return next((path for path in (start, *start.parents) if (path / ".git").exists()), start)


def project_files(root: Path, names: Iterable[str] | None = None) -> set[Path]:
    """The files of imported modules, the main script included, that lie under a folder.

    Files of the standard library and of installed packages are left out, also where a virtual
    environment lies in the folder.

    Args:
        root: The folder, without symbolic links.
        names: The modules to look at; all that are imported by default.

    Example:
        >>> project_files(getfixture("tmp_path"))
        set()
    """
    inside = os.path.join(root, "")
    libraries = {Path(_real(path)) for path in (sys.prefix, sys.base_prefix)}
    libraries = {path for path in libraries if path.is_relative_to(root)}
    found = set()
    for name in list(sys.modules if names is None else names):
        # getattr would wake lazy modules
        file = getattr(sys.modules.get(name), "__dict__", {}).get("__file__")
        if not isinstance(file, str):
            continue
        real = _real(file)
        if not real.startswith(inside):  # of thousands of modules most are not
            continue
        path = Path(real)
        if _INSTALLED & set(path.parts):
            continue
        if not any(path.is_relative_to(library) for library in libraries):
            found.add(path)
    return found


class ImportWatch:
    """The modules of a project that are imported after this object was made.

    Example:
        >>> ImportWatch().new_files(getfixture("tmp_path"))
        []
    """

    def __init__(self) -> None:
        self._known = set(sys.modules)

    def new_files(self, root: Path) -> list[Path]:
        """The files under a folder that were imported since the last question, sorted."""
        new = sys.modules.keys() - self._known
        self._known |= new
        return sorted(project_files(root, new)) if new else []


def typed_code() -> dict[str, str] | None:
    """The code of the main program that is in no file, by its source; None where it is not known.

    In IPython, and so in a notebook, these are the cells that ran, each distinct one once: a cell
    that runs again changes nothing. For `python -c` it is the command. A program that was typed
    into Python's own prompt, or came through standard input, leaves no trace of its text.

    Example:
        >>> typed_code()  # a script, or the test runner
        {}
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None:
        cells = [cell.strip() for cell in shell.history_manager.input_hist_raw]
        return {"<cells>": "\n\n".join(filter(None, dict.fromkeys(cells)))}
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is not None and file != "<stdin>":
        return {}
    command = _command(sys.orig_argv)
    return None if command is None else {"<command>": command}


def _command(argv: list[str]) -> str | None:
    """The code that follows `-c` in a command line of Python."""
    if "--multiprocessing-fork" in argv:  # the command of a spawned process has numbers of pipes
        return None
    words = iter(argv[1:])
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        elif word.startswith("-") and not word.startswith("--") and word.endswith("c"):
            return next(words, None)
        elif not word.startswith("-") or word == "-":
            return None
    return None


@cache
def _real(path: str) -> str:
    folder, name = os.path.split(path)
    inside = _real_folder(folder)  # most modules are in the folder of another one
    joined = os.path.join(inside, name)
    return os.path.realpath(joined) if os.path.islink(joined) else joined


@cache
def _real_folder(path: str) -> str:
    return os.path.realpath(path)
