"""What a run is and how it stands, as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danling.callback import Callback, Priority
from danling.files.atomic import write_bytes, write_json
from danling.identity.code import main_folder
from danling.identity.code_change import describe_change
from danling.identity.environment import installed_packages, read_environment
from danling.identity.patch import code_patch
from danling.logs import Attempts
from danling.run.record import RunFile

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["RunRecord"]

_NAMES = ("name", "id", "uuid", "run_id", "run_uuid", "experiment_id", "experiment_uuid")


class RunRecord(Callback):
    """Write what it takes to tell, find and repeat a run: `run.json`, `runner.yaml`, `metadata/`.

    `run.json` has the ids, the status (`running`, `finished`, `stopped`, `failed`, `preempted` or
    `interrupted`), every launch with its command line, the code and the environment. `runner.yaml`
    is the configuration: `--config runner.yaml` starts it anew. `metadata/` has the uncommitted
    code as `code.patch` and the installed packages. Where a run goes on with other code, the launch
    in `run.json` says so, and its patch is `code-2.patch` and so on. No file holds a secret. That
    one of them cannot be written is a warning; the training goes on.

    Example:
        >>> RunRecord().name
        'run_record'
    """

    name = "run_record"
    priority = Priority.HIGHEST + 3

    def __init__(self) -> None:
        self._run: RunFile | None = None
        self._error: str | None = None
        self._attempts = Attempts("writing the record of the run")

    def on_setup(self, runner: Runner) -> None:
        """Record that the run is running, what it runs and on what."""
        self._run, self._error = None, None
        if not (runner.is_main_process and runner.has_dir):
            return
        with self._attempts.caught(runner.logger):
            runner.config.save(runner.paths.runner_yaml)
        with self._attempts.caught(runner.logger):
            self._run = self._open(runner)
            self._record_code(self._run, runner)
        with self._attempts.caught(runner.logger):
            runner.paths.metadata.mkdir(exist_ok=True)
            write_json(runner.paths.packages, installed_packages())

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Record where this launch goes on."""
        if self._run is not None and runner.in_run:
            with self._attempts.caught(runner.logger):
                launch = self._run.data["launches"][-1]
                launch |= {"start_step": runner.global_step, "resumed": runner.resume_report}
                self._run.save()

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Keep why the run fails."""
        self._error = f"{type(error).__name__}: {error}".rstrip(": ")

    def on_teardown(self, runner: Runner) -> None:
        """Record how this launch ended."""
        if self._run is not None:
            reason = self._error or runner.stop_reason
            with self._attempts.caught(runner.logger):
                self._run.close(runner.status or "failed", reason, step=runner.global_step)
            self._run = None
        self._attempts.report(runner.logger)

    def _open(self, runner: Runner) -> RunFile:
        path = runner.paths.run_json
        if path.exists():
            run = RunFile.read(path)
        else:
            run = RunFile.create(
                path,
                {name: str(getattr(runner, name)) for name in _NAMES},
                code=runner.code,
                hash_inputs=runner.config.semantic(),
                environment=read_environment(),
            )
        launch = run.launch(start_step=runner.global_step)
        launch["resumed"] = runner.resume_report  # of a run that begins from another's checkpoint
        return run

    def _record_code(self, run: RunFile, runner: Runner) -> None:
        """Write the uncommitted code; of a later launch only where it is other code."""
        code, launches = runner.code, run.data["launches"]
        path, start = runner.paths.code_patch, main_folder()
        exclude = [Path(runner.config.project_root)]
        if len(launches) > 1:
            before = run.data["code"]
            if asdict(code) == before | {"extra": tuple(before["extra"])}:
                return
            change = describe_change(before, code, start, patch=path, exclude=exclude)
            launches[-1] |= {"code": asdict(code), "code_change": change}
            path = path.with_name(f"{path.stem}-{len(launches)}{path.suffix}")
            runner.logger.warning("the code has changed since the run began: %s", change)
        if code.partial:
            runner.logger.info(
                "the code could not be read in time: resume='auto' will not find this run"
            )
        if code.source == "git" and code.dirty is not False:
            seconds = 2.0 if code.partial else 10.0  # git may hang
            patch = code_patch(start, exclude=exclude, timeout=seconds)
            launches[-1]["patch"] = {"left_out": patch.left_out, "note": patch.note}
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, patch.data)
        run.save()
