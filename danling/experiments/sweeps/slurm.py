"""A sweep as a job array on SLURM, through submitit.

Each task of the array is one configuration. Before its time limit, and when the cluster takes the
node away, SLURM sends the signal that submitit listens for: the run saves, the job goes back to the
queue, and there it goes on in its own directory.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from danling.errors import ConfigError, RunError
from danling.experiments.reading import read_json
from danling.experiments.sweeps.job import Job
from danling.experiments.sweeps.locking import locked
from danling.experiments.sweeps.sweep import Sweep
from danling.files.atomic import write_json

__all__ = ["Task", "read_parameters", "submit"]


_PREEMPTED = (-signal.SIGTERM, 128 + signal.SIGTERM)
_MOST_REQUEUES = 1000  # at time limits; each of them goes on where the last one was
_QUEUED = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING", "SUSPENDED", "CONFIGURING")


@dataclass
class Task:
    """A task of the array, which runs one configuration until it ends.

    submitit keeps it in a file and calls it on the node; `checkpoint` it calls before the time is
    up.
    """

    argv: list[str]
    lock: Path
    """Held while the configuration runs, so that a second submission of it does nothing."""
    log: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _is_notified: bool = False

    def __call__(self) -> None:
        """Run the configuration.

        Raises:
            RunError: The run failed.
        """
        lock = locked(self.lock)
        if lock is None:
            return
        signal.signal(signal.SIGTERM, self._pass_on)
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_ignore_notice,
            )
        code = self._process.wait()
        lock.close()
        if code in _PREEMPTED and not self._is_notified:
            # the run has seen the end of the job come before the signal did
            signal.raise_signal(_notice())
        if code:
            raise RunError(f"{self.argv[1]} has ended with exit code {code}: see {self.log}")

    def checkpoint(self) -> Any:
        """Have the run save and end, and give submitit what goes back to the queue."""
        self._is_notified = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            # not wait(): that is what the signal has interrupted, and it holds a lock
            os.waitpid(self._process.pid, 0)
        return _submitit().helpers.DelayedSubmission(Task(self.argv, self.lock, self.log))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """The job is cancelled or requeued: the run saves what it has."""
        self._is_notified = True
        if self._process is not None:
            self._process.send_signal(number)


def _notice() -> signal.Signals:
    """The signal by which submitit is told that the time is up."""
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def _ignore_notice() -> None:
    """Leave the signal of submitit, which SLURM sends to all processes of a job, to submitit."""
    signal.signal(_notice(), signal.SIG_IGN)


def read_parameters(texts: Sequence[str]) -> dict[str, Any]:
    """The parameters of submitit in texts such as `time=60`.

    Raises:
        ConfigError: A text is not of that form.

    Example:
        >>> read_parameters(["partition=gpu", "time=60"])
        {'partition': 'gpu', 'time': 60}
    """
    parameters: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--slurm {text}: write NAME=VALUE, such as time=60 (minutes)")
        parameters[name.replace("-", "_")] = int(value) if value.isdecimal() else value
    return parameters


def submit(
    sweep: Sweep, waiting: Sequence[Job], parameters: Mapping[str, Any], parallel: int | None = None
) -> dict[str, str]:
    """Submit the configurations that are not in the queue already, as one job array.

    Args:
        sweep: The sweep.
        waiting: The configurations to run.
        parameters: Arguments of `submitit.SlurmExecutor`, such as partition, time (minutes), mem.
        parallel: The number of tasks that may run at a time.

    Returns:
        The SLURM job of each configuration, by the number of the configuration.

    Raises:
        ImportError: submitit is not installed.
        ConfigError: SLURM or submitit does not take the parameters.
    """
    submitit = _submitit()
    folder, state = sweep.folder / "slurm", sweep.folder / "slurm.json"
    known = _read_jobs(state)
    new = [job for job in waiting if not _is_queued(folder, known.get(str(job.number)))]
    tasks = [
        Task(
            sweep.command(job),
            sweep.folder / f"{job.number}.lock",
            sweep.folder / f"{job.number}.log",
        )
        for job in new
    ]
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=_MOST_REQUEUES)
        defaults = {"job_name": "danling", "array_parallelism": parallel or max(len(new), 1)}
        executor.update_parameters(**{**defaults, **parameters})
        with executor.batch():
            submitted = [executor.submit(task) for task in tasks]
    except (RuntimeError, ValueError, submitit.core.utils.FailedJobError) as error:
        raise ConfigError(f"the job array cannot be submitted: {error}") from error
    known |= {str(job.number): each.job_id for job, each in zip(new, submitted, strict=True)}
    write_json(state, known)
    for job in waiting:
        job.status = "submitted"
    return {str(job.number): known[str(job.number)] for job in waiting}


def _read_jobs(state: Path) -> dict[str, str]:
    try:
        return {str(number): str(job) for number, job in dict(read_json(state)).items()}
    except (OSError, ValueError, TypeError):
        return {}


def _is_queued(folder: Path, job_id: str | None) -> bool:
    """Whether SLURM says that a job waits or runs; where it says nothing, as without sacct, no."""
    if job_id is None:
        return False
    job = _submitit().SlurmJob(folder, job_id)
    return str(job.get_info(mode="force").get("State", "")).startswith(_QUEUED)


def _submitit() -> Any:
    try:
        return import_module("submitit")
    except ImportError as error:
        raise ImportError(
            "--launcher slurm needs submitit: pip install 'danling[slurm]'"
        ) from error
