"""Places where a test can make the process die, fail or wait.

A fail point is a named line of the code. It does nothing, and costs one comparison, unless the
environment variable `DANLING_FAILPOINT` named it when the process started:

    DANLING_FAILPOINT=checkpoint.after_fsync=kill          the process dies there, as by SIGKILL
    DANLING_FAILPOINT=checkpoint.after_fsync=raise:28      OSError with that errno
    DANLING_FAILPOINT=checkpoint.after_fsync=sleep:0.5     seconds
    DANLING_FAILPOINT=checkpoint.after_fsync=kill@10       only at the tenth hit

Several are separated by commas. The idea is that of etcd's gofail: every window of a protocol can
be hit on purpose.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass

from danling.errors import ConfigError

__all__ = ["VARIABLE", "failpoint", "set_failpoints"]


VARIABLE = "DANLING_FAILPOINT"

_SYNTAX = re.compile(
    r"(?P<name>[\w.]+)=(?P<action>kill|raise:(?P<errno>\d+)|sleep:(?P<seconds>\d+(\.\d+)?))"
    r"(@(?P<nth>[1-9]\d*))?"
)


@dataclass
class _Failpoint:
    action: str
    argument: float
    nth: int | None
    hits: int = 0

    def hit(self) -> None:
        self.hits += 1
        if self.nth not in (None, self.hits):
            return
        if self.action == "kill":
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        elif self.action == "sleep":
            time.sleep(self.argument)
        else:
            number = int(self.argument)
            raise OSError(number, os.strerror(number))


def failpoint(name: str) -> None:
    """Does what `DANLING_FAILPOINT` says about this name: nothing, unless a test asks for it.

    Raises:
        OSError: The variable asks for it.

    Example:
        >>> failpoint("checkpoint.after_fsync")
    """
    if _active is not None and name in _active:
        _active[name].hit()


def set_failpoints(text: str) -> None:
    """Replaces the fail points of this process; an empty text removes them all.

    For a test that forks: the variable itself is read only once, when the module is imported.

    Raises:
        ConfigError: The text is not in the form that the module describes.

    Example:
        >>> set_failpoints("checkpoint.after_fsync=raise:28")
        >>> failpoint("checkpoint.after_fsync")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device
        >>> set_failpoints("")
    """
    global _active
    _active = _parsed(text)


def _parsed(text: str) -> dict[str, _Failpoint] | None:
    points = {}
    for part in filter(None, text.split(",")):
        match = _SYNTAX.fullmatch(part.strip())
        if match is None:
            raise ConfigError(
                f"{VARIABLE}: {part!r} is not a fail point; write NAME=kill, NAME=raise:ERRNO "
                "or NAME=sleep:SECONDS, with @N for the Nth hit only"
            )
        action = match["action"].partition(":")[0]
        argument = float(match["errno"] or match["seconds"] or 0)
        points[match["name"]] = _Failpoint(action, argument, int(match["nth"] or 0) or None)
    return points or None


_active = _parsed(os.environ.get(VARIABLE, ""))
