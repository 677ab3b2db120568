"""One run: what is stored of it, what differs to another, and how it is gone on with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from danling.experiments.stored import StoredRun

if TYPE_CHECKING:
    from danling.experiments.difference import Difference

__all__ = ["Run"]


class Run(StoredRun):
    """A run on the disk.

    Files are read when they are asked for, and once: `danling.runs` reads anew. What a damaged file
    would have said is None or empty; `danling verify` says what is damaged.

    Args:
        path: The directory of the run.
        record: The content of its run.json, where that was read before.

    Raises:
        RunDirectoryError: The directory is none of a run.
    """

    def command(self, kind: str = "rerun", **overrides: Any) -> list[str]:
        """The command line that runs it anew (`"rerun"`) or goes on with it (`"resume"`).

        Args:
            kind: `"rerun"` or `"resume"`.
            overrides: Keys of the configuration to set, `optim__lr` for `optim.lr`.

        Raises:
            RunDirectoryError: No command line is recorded.

        Example:
            `danling.runs()[0].command("resume")` gives
            `["python", "train.py", "--resume", "/home/me/experiments/digits-mlp-..."]`.
        """
        from danling.experiments.repeat.commands import (
            command,  # a table of runs needs none of this
        )

        changes = {key.replace("__", "."): value for key, value in overrides.items()}
        return command(self, kind, changes)

    def diff(self, other: Run) -> Difference:
        """The differences from another run: config, code, environment, command, metrics.

        Raises:
            Nothing: what cannot be compared is said in the difference.
        """
        from danling.experiments.difference import difference

        return difference(self, other)

    def _repr_html_(self) -> str:
        from danling.experiments.reports.html import run_fragment

        return run_fragment(self)
