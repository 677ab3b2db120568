"""Copies of a run's files at a remote place."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from danling.callback import Callback, Priority
from danling.errors import CallbackError
from danling.run.search import FoundRun, find_runs, ids_in

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["RemoteMirror"]

_PART = ".part"  # ends the name of a copy that is not whole


class RemoteMirror(Callback):
    """Copy the files of a run to a remote place, in the background, as they become durable.

    The run itself stays in `project_root`, on a local disk. After each save the checkpoints, and at
    the end of each epoch and of the run the other files, that have changed are copied to
    `<url>/<name of the run's directory>` by a thread of the main process. A copy is written under
    another name first and moved then, where the place can. What fails is tried again at the next
    occasion, `retries` times at once, and is never more than a warning. The end of the run waits
    for what is left, as long as `patience` says.

    A run that is to be resumed, by `resume="auto"`, `"latest"` or `"best"`, and is not in
    `project_root`, is brought back from the remote place first: so a job goes on on another
    machine. It must not be running elsewhere any more, for locks are local.

    It costs a walk over the directory of the run at each of these occasions, and has no state.

    Args:
        url: The place, any that fsspec knows, as `"s3://bucket/runs"`.
        storage_options: The arguments that fsspec gets for it besides.
        retries: The number of times that a copy that failed is tried again at once.
        patience: The number of seconds that the end of the run waits for copies.

    Attributes:
        failures: The reason why a file is not there as it is here, by its path in the run.

    Raises:
        CallbackError: The URL cannot be used, or what it needs is not installed; or the run that is
            to be resumed cannot be fetched.

    Example:
        >>> RemoteMirror("memory://runs").url
        'memory://runs'
    """

    name = "remote_mirror"
    priority = Priority.HIGHEST - 1  # fetches before a directory is chosen, and is torn down last
    only_watches = True

    def __init__(
        self,
        url: str,
        *,
        storage_options: Mapping[str, Any] | None = None,
        retries: int = 3,
        patience: float = 300.0,
    ) -> None:
        try:
            self._fsspec: Any = import_module("fsspec")
        except ImportError as error:
            raise CallbackError("RemoteMirror needs fsspec: pip install fsspec") from error
        try:
            self._filesystem, self._root = self._fsspec.core.url_to_fs(
                url, **(storage_options or {})
            )
        except (ImportError, ValueError) as error:
            raise CallbackError(f"RemoteMirror({url!r}): {error}") from error
        self.url = url
        self.retries = retries
        self.patience = patience
        self.failures: dict[str, str] = {}
        self._copied: dict[str, tuple[int, int, int]] = {}
        self._queue: SimpleQueue[Path | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def on_setup(self, runner: Runner) -> None:
        """Start anew with what is copied, and fetch the run that is to be resumed."""
        self._copied, self.failures = {}, {}
        if runner.config.resume in (True, "auto", "latest", "best"):
            fetched = runner.world.on_main(lambda: self._fetch_newest(runner))
            if fetched is not None:
                runner.logger.info("%s: %s was fetched from %s", self.name, fetched.name, self.url)

    def on_save(self, runner: Runner, path: Path) -> None:
        """Have the checkpoints copied."""
        self._ask(runner)

    def on_epoch_end(self, runner: Runner) -> None:
        """Have copied what has changed."""
        self._ask(runner)

    def on_teardown(self, runner: Runner) -> None:
        """Copy what is left, and wait for it."""
        self._ask(runner)
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._queue.put(None)
        thread.join(self.patience)
        if thread.is_alive():
            runner.logger.warning("%s: not all was copied within its patience", self.name)
        for relative, why in self.failures.items():
            runner.logger.warning("%s: %s was not copied: %s", self.name, relative, why)

    def fetch(self, name: str, into: str | Path) -> Path:
        """Bring a run back, so that it can be resumed; returns its directory.

        Args:
            name: The name of the run's directory.
            into: The `project_root` it is put into; a run that is there already is not touched.

        Raises:
            CallbackError: It is there already, or it is not at the remote place.
        """
        source, target = f"{self._root}/{name}", Path(into) / name
        if target.exists():
            raise CallbackError(f"RemoteMirror.fetch: {target} exists")
        self._filesystem.invalidate_cache()
        if not self._filesystem.exists(source):
            raise CallbackError(
                f"RemoteMirror.fetch: no {name!r} in {self.url}, which has {self._names()}"
            )
        partial = target.with_name(f".{name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        for remote in self._filesystem.find(source):
            relative = str(remote).partition(f"{name}/")[2]
            if not relative.endswith(_PART):
                (partial / relative).parent.mkdir(parents=True, exist_ok=True)
                self._filesystem.get_file(remote, str(partial / relative))
        os.rename(partial, target)
        return target

    def _names(self) -> list[str]:
        """The names of the runs that are at the remote place."""
        if not self._filesystem.exists(self._root):
            return []
        return sorted(Path(path).name for path in self._filesystem.ls(self._root, detail=False))

    def _fetch_newest(self, runner: Runner) -> Path | None:
        """Bring back the newest run that is to be resumed, where there is none here."""
        root, run_id = Path(runner.config.project_root), runner.run_id
        unfinished = runner.config.resume in (True, "auto")
        if any(run.unfinished or not unfinished for run in find_runs(root, run_id)):
            return None
        try:
            self._filesystem.invalidate_cache()
            found = [run for run in map(self._read, self._names()) if run and run.run_id == run_id]
            found = [run for run in found if run.unfinished or not unfinished]
            missing = [run for run in found if not (root / run.path.name).exists()]
            if not missing:
                return None
            newest = max(missing, key=lambda run: run.created)
            return self.fetch(newest.path.name, root)
        except CallbackError:
            raise
        except Exception as error:  # whatever the place raises
            raise CallbackError(
                f"RemoteMirror: what there is to resume in {self.url} cannot be read: {error!r}"
            ) from error

    def _read(self, name: str) -> FoundRun | None:
        """A run at the remote place, if this is one."""
        path = f"{self._root}/{name}/run.json"
        if ids_in(name) is None or not self._filesystem.exists(path):
            return None
        return FoundRun(Path(name), json.loads(self._filesystem.cat_file(path)))

    def _ask(self, runner: Runner) -> None:
        """Let the thread look for what has changed."""
        if not (runner.is_main_process and runner.has_dir):
            return
        if self._thread is None:
            self._queue = SimpleQueue()
            self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
            self._thread.start()
        self._queue.put(runner.dir)

    def _work(self) -> None:
        while (directory := self._queue.get()) is not None:
            for path in sorted(directory.rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    self._mirror(directory, path)

    def _mirror(self, directory: Path, path: Path) -> None:
        """Copy a file that is not there as it is here."""
        relative = path.relative_to(directory).as_posix()
        for _ in range(1 + self.retries):
            try:
                stat = path.stat()
                mark = stat.st_ino, stat.st_size, stat.st_mtime_ns
                if self._copied.get(relative) == mark:
                    return
                self._put(path, f"{self._root}/{directory.name}/{relative}")
                self._copied[relative] = mark
                self.failures.pop(relative, None)
                return
            except FileNotFoundError:
                if not path.exists():  # rotated meanwhile
                    return
                self.failures[relative] = "a part of the remote path is not there"
            except Exception as error:  # whatever the place raises never ends a training
                self.failures[relative] = repr(error)

    def _put(self, path: Path, target: str) -> None:
        partial = f"{target}{_PART}"
        self._filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._filesystem.put_file(str(path), partial)
        self._filesystem.mv(partial, target)
