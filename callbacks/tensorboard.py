"""The run on TensorBoard's pages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from torch import nn

from danling.callback import Callback
from danling.logs import Attempts
from danling.metrics.history import flatten
from danling.tensorboard import bands, hparams, media, text
from danling.tensorboard.event_file import EventWriter, cut_events
from danling.tensorboard.pages import best_values, layout, shown_tag
from danling.triggers import Every, Moment

if TYPE_CHECKING:
    from pathlib import Path

    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch import Tensor

    from danling.runner.base import BaseRunner as Runner

__all__ = ["TensorBoard"]

_EPOCH = shown_tag("epoch/")


class TensorBoard(Callback):
    """Write what TensorBoard shows into the run's directory.

    `tensorboard --logdir experiments` shows every run there, also while it is running. Without
    arguments a run has

    - every logged value against the global step. `train/...` and `val/...` have the tags of the
      log; other groups of the library begin with `~`, which TensorBoard lists behind them:
      `~optim/...`, `~perf/...`, and as `~best/...` the values of each result that was the best;
    - a row of the HParams table: the configuration, the status of the run, its last and its best
      values. Finished runs that differ only in the seed are one row, with their means;
    - on "Custom Scalars" a chart per metric with all its splits, and the mean of finished runs that
      differ only in the seed, with their range, as a run `{experiment_name}-seeds-...`;
    - texts: the configuration, what differs from the defaults, the command line, the model, the
      environment, the code, and the traceback of a crash. Secrets are masked.

    A resumed run goes on as if it had never stopped: points after the checkpoint are removed from
    the files. Values reach the disk every 10 seconds, and at evaluations, checkpoints, errors and
    the end. `runner.log_image(...)` and the like add to the pages. What cannot be written or drawn
    is a warning; nothing here ends a training.

    Args:
        epoch_axis: Whether results are also written against the epoch, as `epoch/val/loss`.
        histograms: The period of histograms of parameters and gradients, `"1 epoch"` or
            `"500 steps"`; the first ones are those of the first step. None for no histograms.
        graph: Whether the graph of the model, traced with the first batch, is written.
        flush_seconds: The longest time in seconds that a value waits in memory.

    Raises:
        ConfigError: `histograms` is not a period.

    Example:
        >>> TensorBoard(histograms="1 epoch").name
        'tensorboard'
    """

    name = "tensorboard"
    only_watches = True

    def __init__(
        self,
        *,
        epoch_axis: bool = False,
        histograms: str | Every | None = None,
        graph: bool = False,
        flush_seconds: float = 10.0,
    ) -> None:
        self.epoch_axis = epoch_axis
        self.histograms = None if histograms is None else Every(histograms)
        self.graph = graph
        self.flush_seconds = flush_seconds
        self._forget()

    def _forget(self) -> None:
        self._writer: EventWriter | None = None
        self._attempts = Attempts("TensorBoard")
        self._last_steps: dict[str, int] = {}
        self._last_histogram: Moment | None = None
        self._charted: set[str] = set()  # metrics with a chart
        self._evaluations, self._log_interval = 0, 1
        self._mark = (0, 0.0)  # step and time from which the speed is measured
        self._graph_is_due = False
        self._group = ""  # the row of the HParams table that the run joins when it has finished

    # The run

    def on_setup(self, runner: Runner) -> None:
        """Forget another run; the file is opened when it is known where this one goes on."""
        self._forget()

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Remove what came after the checkpoint from the files."""
        if runner.in_run:
            self._open(runner)

    def on_train_start(self, runner: Runner) -> None:
        """Open the file of a run that was not resumed; write how it was started."""
        self._log_interval = runner.config.log_interval
        self._evaluations = runner.evaluations
        if self._writer is None:
            self._open(runner)
        self._try(runner, lambda writer: self._write_texts(runner, writer))
        self._restart_clock(runner)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Write the traceback."""
        self._add(runner, lambda: media.text(text.CRASH_TAG, text.crash_text(error)))
        self._try(runner, EventWriter.flush)

    def on_teardown(self, runner: Runner) -> None:
        """Write how the run ended, and close the file."""
        self._try(runner, lambda writer: self._close(runner, writer))
        self._writer = None
        self._attempts.report(runner.logger)

    # Scalars

    def on_log(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Write the values, as one event."""
        values = {shown_tag(tag): value for tag, value in metrics.items()}
        self._try(runner, lambda writer: writer.add_scalars(values, runner.global_step))

    def on_before_step(self, runner: Runner) -> None:
        """Have the norm of the gradients computed where the step will be logged, with the norm."""
        if (runner.global_step + 1) % self._log_interval == 0 and runner.gradients_are_readable:
            _ = runner.grad_norm

    def on_step(self, runner: Runner) -> None:
        """Log the speed, write histograms that are due, and flush when it is time."""
        if runner.is_log_step:
            steps = runner.global_step - self._mark[0]
            seconds = max(time.perf_counter() - self._mark[1], 1e-9)
            runner.log({"perf/steps_per_second": steps / seconds})
            self._restart_clock(runner)
        if self.histograms is not None:
            self._write_histograms(runner, self.histograms)
        if self._writer is not None and self._writer.is_flush_due:
            self._try(runner, EventWriter.flush)

    def on_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Write the graph, with the first batch."""
        if self._graph_is_due:
            self._graph_is_due = False
            self.log_graph(runner, batch[0] if isinstance(batch, (tuple, list)) else batch)

    def on_evaluate_end(self, runner: Runner, split: str, result: Mapping[str, float]) -> None:
        """Make a chart of each metric that is new."""
        if not self._charted.issuperset(result):
            self._charted.update(result)
            self._add(runner, lambda: layout(self._charted))

    def on_epoch_end(self, runner: Runner) -> None:
        """Write the result of the epoch."""
        self._try(runner, lambda writer: self._write_result(runner, writer))
        self._restart_clock(runner)

    def on_checkpoint(self, runner: Runner) -> None:
        """Write the result of an evaluation within the epoch."""
        if runner.evaluations != self._evaluations:
            self._evaluations = runner.evaluations
            self._try(runner, lambda writer: self._write_result(runner, writer))
            self._restart_clock(runner)

    def on_save(self, runner: Runner, path: Path) -> None:
        """Leave the time of the save out of the speed."""
        self._restart_clock(runner)

    # The state

    def state_dict(self) -> dict[str, Any]:
        """The last step of each tag, all of which are on the disk now."""
        if self._writer is None:
            return {}
        with contextlib.suppress(OSError):  # the next flush says so
            self._writer.flush()
        last = None if self._last_histogram is None else list(astuple(self._last_histogram))
        return {"last_steps": dict(self._writer.last_steps), "last_histogram": last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back up to which steps the files are to be kept."""
        self._last_steps = dict(state.get("last_steps", {}))
        last = state.get("last_histogram")
        self._last_histogram = None if last is None else Moment(*last)

    # What `runner.log_image` and the like call

    def log_text(self, runner: Runner, tag: str, markdown: str) -> None:
        """Show a text, written in Markdown."""
        self._add(runner, lambda: media.text(tag, markdown))

    def log_image(self, runner: Runner, tag: str, image: Any) -> None:
        """Show an image, or a batch of them as a grid: see `danling.tensorboard.media.image`."""
        self._add(runner, lambda: media.image(tag, image))

    def log_figure(self, runner: Runner, tag: str, figure: Any) -> None:
        """Show a figure of matplotlib; it stays open."""
        self._add(runner, lambda: media.figure(tag, figure))

    def log_audio(self, runner: Runner, tag: str, samples: Tensor, sample_rate: int) -> None:
        """Let a sound be heard: one channel, samples from -1 to 1."""
        self._add(runner, lambda: media.audio(tag, samples, sample_rate))

    def log_histogram(self, runner: Runner, tag: str, values: Tensor) -> None:
        """Show how values are distributed."""
        self._add(runner, lambda: media.histogram(tag, values))

    def log_pr_curve(self, runner: Runner, tag: str, labels: Tensor, scores: Tensor) -> None:
        """Show precision against recall: labels of 0 and 1, and probabilities."""
        self._add(runner, lambda: media.pr_curve(tag, labels, scores))

    def log_embedding(
        self, runner: Runner, tag: str, vectors: Tensor, labels: Sequence[Any] = ()
    ) -> None:
        """Show points of many dimensions, a row each, with a label each."""
        step = runner.global_step
        self._try(runner, lambda _: media.write_embedding(runner.dir, tag, vectors, labels, step))

    def log_graph(self, runner: Runner, inputs: Any) -> None:
        """Show the graph of the model, traced with an example of its input."""
        self._try(runner, lambda w: w.add_graph(media.graph(runner.unwrapped_model, inputs)))

    # Writing

    def _open(self, runner: Runner) -> None:
        if not (runner.is_main_process and runner.has_dir):
            return
        known, step = self._last_steps, runner.global_step

        def keep(tag: str, at: int) -> bool:
            default = runner.epoch if tag.startswith(_EPOCH) else step
            return not tag.startswith(hparams.TAG_PREFIX) and at <= known.get(tag, default)

        with self._attempts.caught(runner.logger):
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            last_steps = cut_events(runner.dir, keep)
            self._writer = EventWriter(
                runner.dir,
                start_step=step + 1 if last_steps else 0,
                last_steps=last_steps,
                flush_seconds=self.flush_seconds,
            )
            self._graph_is_due = self.graph and not last_steps
            values, self._group = hparams.of_config(runner.config, runner.experiment_id)
            self._writer.add([hparams.session_start(values, runner.id, time.time())], step)

    def _try(self, runner: Runner, write: Callable[[EventWriter], None]) -> None:
        if self._writer is not None:
            with self._attempts.caught(runner.logger):
                write(self._writer)

    def _add(self, runner: Runner, make: Callable[[], Summary.Value]) -> None:
        self._try(runner, lambda writer: writer.add([make()], runner.global_step))

    def _restart_clock(self, runner: Runner) -> None:
        self._mark = (runner.global_step, time.perf_counter())

    def _close(self, runner: Runner, writer: EventWriter) -> None:
        try:
            writer.add(hparams.session_end(runner.status, time.time()), runner.global_step)
        finally:
            writer.close()
        if runner.status in hparams.SUCCESSFUL:
            hparams.join_group(runner.dir, self._group)
        if writer.nonfinite:
            runner.logger.warning("TensorBoard: points that are not finite: %s", writer.nonfinite)
        if writer.dropped:
            runner.logger.warning("TensorBoard: left out, of no new step: %s", writer.dropped)
        with Attempts("the band over the seeds").caught(runner.logger):
            bands.refresh_band(runner.dir, runner.config.experiment_name)

    def _write_texts(self, runner: Runner, writer: EventWriter) -> None:
        model = runner.unwrapped_model if isinstance(runner.unwrapped_model, nn.Module) else None
        texts = text.run_texts(runner.config, runner.paths, model)
        new = writer.newer(texts, runner.global_step)
        writer.add([media.text(tag, markdown) for tag, markdown in new.items()], runner.global_step)
        writer.flush()

    def _write_result(self, runner: Runner, writer: EventWriter) -> None:
        values, step = flatten(runner.latest_result or {}), runner.global_step
        if runner.is_best:
            writer.add_scalars(writer.newer(best_values(values), step), step)
        if self.epoch_axis and runner.epoch_complete:
            by_epoch = {f"{_EPOCH}{tag}": value for tag, value in values.items()}
            writer.add_scalars(writer.newer(by_epoch, runner.epoch), runner.epoch)
        writer.flush()

    def _write_histograms(self, runner: Runner, every: Every) -> None:
        now, last = runner.now(), self._last_histogram
        if self._writer is None or (last is not None and not every.is_due(now, last)):
            return
        self._last_histogram = now
        for name, parameter in runner.unwrapped_model.named_parameters():
            self.log_histogram(runner, shown_tag(f"weights/{name}"), parameter)
            if parameter.grad is not None:
                self.log_histogram(runner, shown_tag(f"gradients/{name}"), parameter.grad)
