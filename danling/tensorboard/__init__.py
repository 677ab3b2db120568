"""TensorBoard: its files, and pages that need no training.

Begin with `pages`. It may import `run`, `files`, `identity`, `metrics`, `config` and `errors`.

- `pages`: the layout of charts, and a run made anew from its record.
- `bands`: the mean and the range over the seeds of a configuration.
- `hparams`: the table of the values that runs were started with, and what came of them.
- `text`: a run in words.
- `media`: images, figures, sounds, histograms as values of an event.
- `event_file`: event files: written through a buffer, read fast, cut back on resume.
- `tfrecord`: the framing of event files, and its checksum.
"""

from __future__ import annotations

from danling.tensorboard.pages import best_values, close_killed, layout, rebuild

__all__ = ["best_values", "close_killed", "layout", "rebuild"]
