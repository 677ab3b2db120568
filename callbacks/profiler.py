"""What a few steps spend their time on, as torch's profiler sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from danling.callback import Callback, Priority
from danling.errors import CallbackError

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["Profiler"]


class Profiler(Callback):
    """Record some steps with `torch.profiler`: a trace file for each cycle, and a table.

    A cycle is `wait` steps without recording, `warmup` steps whose record is thrown away and
    `active` steps. Its trace is `profile/rank-0-step-5.json` in the directory of the run, for
    Perfetto (https://ui.perfetto.dev) or `chrome://tracing`; the table of what took longest is in
    the log. After `repeat` cycles it costs nothing; before, a step costs what the profiler takes.
    It has no state: a resumed run records again.

    Args:
        wait: The number of steps of a cycle before it warms up.
        warmup: The number of steps whose record is thrown away.
        active: The number of steps that are recorded.
        repeat: The number of cycles.
        record_shapes: Whether shapes of inputs are recorded.
        profile_memory: Whether memory is recorded.
        with_stack: Whether the lines of the source are recorded; slow.
        row_limit: The number of rows of the table.

    Raises:
        CallbackError: A number of steps is negative, or none is recorded.

    Example:
        >>> Profiler(wait=10, warmup=2, active=3, repeat=2).active
        3
    """

    name = "profiler"
    priority = Priority.LOWEST  # what other callbacks do in a step belongs to it
    only_watches = True

    def __init__(
        self,
        *,
        wait: int = 1,
        warmup: int = 1,
        active: int = 3,
        repeat: int = 1,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        row_limit: int = 10,
    ) -> None:
        if wait < 0 or min(warmup, active, repeat, row_limit) < 1:
            raise CallbackError(
                f"Profiler(wait={wait}, warmup={warmup}, active={active}, repeat={repeat}, "
                f"row_limit={row_limit}): all but wait must be at least 1"
            )
        self.wait, self.warmup, self.active, self.repeat = wait, warmup, active, repeat
        self.record_shapes = record_shapes
        self.profile_memory = profile_memory
        self.with_stack = with_stack
        self.row_limit = row_limit
        self._profiler: Any = None
        self._left = 0

    def on_train_start(self, runner: Runner) -> None:
        """Begin with the first cycle."""
        from torch.profiler import profile, schedule

        def write(profiler: Any) -> None:
            self._write(runner, profiler)

        steps = {"wait": self.wait, "warmup": self.warmup, "active": self.active}
        self._profiler = profile(
            schedule=schedule(**steps, repeat=self.repeat),
            on_trace_ready=write,
            record_shapes=self.record_shapes,
            profile_memory=self.profile_memory,
            with_stack=self.with_stack,
            acc_events=True,  # else torch warns that each cycle forgets the one before
        )
        self._left = sum(steps.values()) * self.repeat
        self._profiler.start()

    def on_step(self, runner: Runner) -> None:
        """Count the step, and let go of the profiler after the last cycle."""
        profiler, self._profiler = self._profiler, None  # one that fails must not be stopped
        if profiler is None:
            return
        profiler.step()
        self._profiler = profiler
        self._left -= 1
        if self._left <= 0:
            self._stop()

    def on_train_end(self, runner: Runner) -> None:
        """End the cycle that is open; what it has recorded is written."""
        self._stop()

    def on_teardown(self, runner: Runner) -> None:
        """End it, also after an error."""
        self._stop()

    def _stop(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()

    def _write(self, runner: Runner, profiler: Any) -> None:
        by = "self_cuda_time_total" if runner.device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=self.row_limit)
        runner.logger.info("%s: up to global step %d\n%s", self.name, runner.global_step, table)
        if runner.has_dir:
            folder = runner.dir / "profile"
            folder.mkdir(exist_ok=True)
            path = folder / f"rank-{runner.rank}-step-{runner.global_step}.json"
            profiler.export_chrome_trace(str(path))
