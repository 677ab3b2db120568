"""The directory of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from danling.callback import Callback, Priority

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["RunDirectory"]


class RunDirectory(Callback):
    """Claim the directory of the run, `{project_root}/{name}-{id}`, and give it back in the end.

    Without it the runner has no `dir`, and the callbacks that write files write none. The directory
    is made so that no two runs can get the same one, locked while the run is open, and refused when
    it is not this run's own. It is the first callback: the directory exists in every other
    `on_setup`.

    Raises:
        RunDirectoryError: The directory cannot be made or used.
        RunLockedError: Another process works in it.

    Example:
        >>> RunDirectory().name
        'run_directory'
    """

    name = "run_directory"
    priority = Priority.HIGHEST
    only_watches = True

    def on_setup(self, runner: Runner) -> None:
        """Claim the directory; all processes get the same one."""
        runner.claim_directory()

    def on_teardown(self, runner: Runner) -> None:
        """Release the lock, after every other callback has closed its files."""
        runner.release_directory()
