"""What a run is and how it stands, as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danling.callback import Callback, Priority
from danling.files.atomic import write_bytes, write_json, write_text
from danling.identity.code import Code
from danling.identity.code_change import describe_change
from danling.identity.environment import installed_packages, read_environment
from danling.identity.modules import main_folder, typed_code
from danling.identity.patch import code_patch
from danling.identity.redaction import mask
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
    code as `code.patch`, in a notebook the cells that ran as `main_program.py`, and the installed
    packages. Where a run goes on with other code, the launch in `run.json` says so, and its patch
    is `code-2.patch` and so on. Modules of the project that are imported too late to count in the
    ids are named in the launch. A run that is resumed is written to when its checkpoint was loaded:
    a start that is refused changes nothing. No file but `runner.yaml` holds a secret. That one of
    them cannot be written is a warning; the training goes on.

    Example:
        >>> RunRecord().name
        'run_record'
    """

    name = "run_record"
    priority = Priority.HIGHEST + 3
    only_watches = True

    def __init__(self) -> None:
        self._run: RunFile | None = None
        self._error: str | None = None
        self._attempts = Attempts("writing the record of the run")

    def on_setup(self, runner: Runner) -> None:
        """Record that the run is running, what it runs and on what; a resumed one comes later."""
        self._run, self._error = None, None
        if runner.has_dir and runner.run.accepted:
            self._begin(runner)

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Record where this launch goes on."""
        if not (runner.in_run and runner.has_dir):
            return
        if self._run is None:
            self._begin(runner)
        if self._run is not None:
            with self._attempts.caught(runner.logger):
                launch = self._run.data["launches"][-1]
                launch |= {"start_step": runner.global_step, "resumed": runner.resume_report}
                self._run.save()

    def on_train_start(self, runner: Runner) -> None:
        """Record a run that goes on and had no checkpoint yet."""
        if self._run is None and runner.has_dir:
            self._begin(runner)

    def on_epoch_end(self, runner: Runner) -> None:
        """Record modules that were imported too late to count in the ids."""
        self._note_late_imports(runner)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Keep why the run fails."""
        self._error = f"{type(error).__name__}: {error}".rstrip(": ")

    def on_teardown(self, runner: Runner) -> None:
        """Record how this launch ended."""
        self._note_late_imports(runner)
        if self._run is not None:
            reason = self._error or runner.stop_reason
            with self._attempts.caught(runner.logger):
                self._run.close(runner.status or "failed", reason, step=runner.global_step)
            self._run = None
        self._attempts.report(runner.logger)

    def _begin(self, runner: Runner) -> None:
        if not runner.is_main_process:
            return
        with self._attempts.caught(runner.logger):
            runner.config.save(runner.paths.runner_yaml, private=True)
        with self._attempts.caught(runner.logger):
            self._run = self._open(runner)
            self._record_code(self._run, runner)
        with self._attempts.caught(runner.logger):
            runner.paths.metadata.mkdir(exist_ok=True)
            write_json(runner.paths.packages, installed_packages())

    def _open(self, runner: Runner) -> RunFile:
        path = runner.paths.run_json
        if runner.run.rebuilt and path.exists():
            path.replace(path.with_name(f"{path.name}.damaged"))
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
        """Write the code that no commit holds; of a later launch only where it is other code."""
        code, launches = runner.code, run.data["launches"]
        number = "" if len(launches) == 1 else f"-{len(launches)}"
        if code.partial:
            runner.logger.warning(
                "the code could not be read (%s): the ids are this run's own, and resume='auto' "
                "goes by name and configuration",
                code.note,
            )
        if number and not self._is_other_code(run, runner):
            return
        _write_code(runner, code, launches[-1], number)
        run.save()

    def _is_other_code(self, run: RunFile, runner: Runner) -> bool:
        """Whether this launch runs other code than the first; what has changed is recorded."""
        before, code, launches = run.data["code"], runner.code, run.data["launches"]
        now = asdict(code)
        if all(before.get(key) == _plain(now[key]) for key in ("commit", "tree", "extra")):
            return False
        change = "whether the code has changed is not known, since it could not be read"
        if not (code.partial or before.get("partial")):
            change = describe_change(
                before,
                code,
                main_folder(),
                patch=runner.paths.code_patch,
                left_out=(launches[0].get("patch") or {}).get("left_out", ()),
                exclude=[Path(runner.config.project_root)],
                timeout=float(runner.config.code_timeout),
            )
            runner.logger.warning("the code has changed since the run began: %s", change)
        launches[-1] |= {"code": now, "code_change": change}
        return True

    def _note_late_imports(self, runner: Runner) -> None:
        if self._run is None or not (late := runner.run.late_imports()):
            return
        runner.logger.warning(
            "imported after the code of the run was read, so that the ids do not know of changes "
            "in it: %s; commit it, or import it before the training",
            ", ".join(late),
        )
        with self._attempts.caught(runner.logger):
            launch = self._run.data["launches"][-1]
            launch["late_imports"] = [*launch.get("late_imports", ()), *late]
            self._run.save()


def _write_code(runner: Runner, code: Code, launch: dict[str, Any], number: str) -> None:
    """Write the patch, and the code that is in no file, under names with the launch's number."""
    runner.paths.metadata.mkdir(exist_ok=True)
    if typed := typed_code():
        path = runner.paths.main_program
        write_text(path.with_stem(f"{path.stem}{number}"), mask("\n\n".join(typed.values())))
    if code.source == "git" and (code.dirty is not False or code.untracked):
        timeout = float(runner.config.code_timeout)
        patch = code_patch(
            main_folder(),
            untracked=code.untracked,
            exclude=[Path(runner.config.project_root)],
            timeout=min(timeout, 2.0) if code.partial else timeout,  # git may hang
        )
        launch["patch"] = {"left_out": patch.left_out, "note": patch.note}
        path = runner.paths.code_patch
        write_bytes(path.with_stem(f"{path.stem}{number}"), patch.data)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
