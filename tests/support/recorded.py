"""A tiny runner whose hooks are recorded."""

from __future__ import annotations

from danling.testing import RecordingCallback, TinyRunner

BATCHES = 4  # of a TinyRunner's epoch


def recorded(config=None, *callbacks, samples=16) -> tuple[TinyRunner, RecordingCallback]:
    recording = RecordingCallback()
    return TinyRunner(config, samples=samples, callbacks=[recording, *callbacks]), recording


def by_steps(runner) -> None:
    for batch in runner.batches():
        runner.step(runner.train_step(batch))
