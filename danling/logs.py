"""The logger of a run, and failures that are logged and end no training."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

__all__ = [
    "Attempts",
    "close_logger",
    "console",
    "in_notebook",
    "number",
    "open_logger",
    "write_held",
]


_LIBRARY = logging.getLogger("danling")


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    active = None if shell is None else shell.get_ipython()
    return type(active).__name__ == "ZMQInteractiveShell"


def console() -> TextIO | None:
    """The stream of the moment for lines and bars: stderr, but stdout in a notebook.

    A notebook shows what comes on stderr in red, as if it were an error.
    """
    return sys.stdout if in_notebook() else sys.stderr


def number(value: float) -> str:
    """A number as it is shown in lines and bars, in at most seven characters but for a sign.

    Example:
        >>> [number(value) for value in (0.26517, 31.415926, 1387.886, 2e-5, 0.0)]
        ['0.2652', '31.416', '1387.9', '2.0e-05', '0.0000']
    """
    if value == 0 or 1e-3 <= abs(value) < 10:
        return f"{value:.4f}"
    return f"{value:.5g}" if 10 <= abs(value) < 1e5 else f"{value:.1e}"


def open_logger(
    name: str,
    path: str | os.PathLike[str] | None = None,
    *,
    console: bool = True,
    level: int = logging.INFO,
    held: bool = False,
) -> logging.Logger:
    r"""Give a logger its handlers: each message once in the file and once on the console.

    The root logger is neither used nor changed. Opening a logger again replaces its handlers.

    Args:
        name: The name of the logger; each run has its own.
        path: A file to append to, which gets everything from DEBUG on; None for no file.
        console: Whether to write to the console, above a progress bar that is there.
        level: The least level that goes to the console.
        held: Whether the file is left alone until `write_held`, and what was said by then kept for
            it: a start that is refused must not change the run that it was about.

    Raises:
        OSError: The file cannot be opened.

    Example:
        >>> path = getfixture("tmp_path") / "run.log"
        >>> logger = open_logger("danling.run.1f", path, console=False)
        >>> logger.info("epoch 1/3")
        >>> close_logger(logger)
        >>> path.read_text().split(maxsplit=2)[2:]
        ['INFO     epoch 1/3\n']
    """
    logger = logging.getLogger(name)
    close_logger(logger)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # handlers of the root logger would print every line twice
    if path is not None:
        logger.addHandler(_FileHandler(Path(path), held))
    if console:
        logger.addHandler(_ConsoleHandler(level))
    for handler in logger.handlers:
        if not (isinstance(handler, _ConsoleHandler) and logging.getLogger().handlers):
            _LIBRARY.addHandler(handler)
    if not logger.handlers:  # without any, Python prints warnings by itself
        logger.addHandler(logging.NullHandler())
    return logger


def write_held(logger: logging.Logger) -> None:
    """Write what was held back from the file of a logger; from now on nothing is."""
    for handler in logger.handlers:
        if isinstance(handler, _FileHandler):
            handler.write_held()


def close_logger(logger: logging.Logger) -> None:
    """Remove the handlers of a logger and close them."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        _LIBRARY.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk was reported when it happened
            handler.close()


class _FileHandler(logging.FileHandler):
    """Appends to a file; when that fails, warns once and lets the training go on."""

    def __init__(self, path: Path, held: bool) -> None:
        self._half_line = _ends_in_a_half_line(path)  # left by a process that was killed
        self._held: list[logging.LogRecord] | None = [] if held else None
        super().__init__(path, mode="a", encoding="utf-8", errors="backslashreplace", delay=held)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(message)s"))
        self._attempts = Attempts(f"writing {path.name}")
        self._end_half_line()

    def emit(self, record: logging.LogRecord) -> None:
        if self._held is None:
            super().emit(record)
        else:
            self._held.append(record)

    def write_held(self) -> None:
        """Open the file, and write what was held back."""
        held, self._held = self._held, None
        if held is not None and self.stream is None:
            try:
                self.stream = self._open()
            except OSError as error:
                with self._attempts.caught(_LAST_RESORT):
                    raise error
            self._end_half_line()
        for record in held or ():
            self.handle(record)

    def _end_half_line(self) -> None:
        if self._half_line and self.stream is not None:
            self.stream.write("\n")
            self._half_line = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is logging's
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # a wrong message, which Python reports well
            super().handleError(record)
            return
        with self._attempts.caught(_LAST_RESORT):
            raise error


class _ConsoleHandler(logging.Handler):
    """Writes to the console of the moment, above the progress bars of tqdm."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(_ConsoleFormatter("%(asctime)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _write_line(self.format(record))
        except (OSError, ValueError):  # a closed terminal; there is nobody left to tell
            return
        except Exception:
            self.handleError(record)


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if record.levelno < logging.WARNING:
            return line
        time, _, message = line.partition(" ")
        return f"{time} {record.levelname.lower()}: {message}"


def _write_line(line: str) -> None:
    tqdm, stream = sys.modules.get("tqdm"), console()
    if stream is None:
        return
    if tqdm is not None:  # its `write` removes the bars and draws them again
        tqdm.tqdm.write(line, file=stream)
    else:
        stream.write(line + "\n")
        stream.flush()


def _ends_in_a_half_line(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False


_LAST_RESORT = logging.Logger("danling.console")  # of no hierarchy: for what a handler has to say
_LAST_RESORT.addHandler(_ConsoleHandler(logging.WARNING))


class Attempts:
    """Catches failures that are not worth a training, such as those of a page or a server.

    Errors of any kind are caught here and nowhere else: what the libraries of others raise when a
    network is down, a disk full or a figure malformed cannot be listed. The first failure is logged
    in full; `report` logs the number of all.

    Args:
        what: The name of the attempted operation, for the messages.
        strict: Whether failures are raised all the same.

    Attributes:
        failures: The number of failures since the last report.

    Example:
        >>> attempts = Attempts("the page")
        >>> with attempts.caught(logging.Logger("example")):
        ...     raise ConnectionError("no route to host")
        >>> attempts.failures
        1
    """

    def __init__(self, what: str, *, strict: bool = False) -> None:
        self.what = what
        self.strict = strict
        self.failures = 0

    @contextmanager
    def caught(self, logger: logging.Logger) -> Iterator[None]:
        """Catch and count an exception of the block, unless `strict`; never KeyboardInterrupt."""
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            self.failures += 1
            if self.failures == 1:
                kind = type(error).__name__
                logger.warning(
                    "%s failed, and the training goes on: %s: %s", self.what, kind, error
                )

    def report(self, logger: logging.Logger) -> None:
        """Log the number of failures where there was more than one, and count from zero again."""
        if self.failures > 1:
            logger.warning("%s failed %d times", self.what, self.failures)
        self.failures = 0
