"""The view of a run in TensorBoard: its event files, and what is in them.

Begin with `pages`, then read `event_file`. The package may import `run`, `files`, `identity`,
`metrics`, `config` and `errors`; the callback `TensorBoard` uses it in a training.

- `pages`: under which tags values are shown, the layout of charts, and an event file made anew.
- `bands`: the mean and the range over the seeds of a configuration.
- `hparams`: the table of the values that runs were started with, and of their results.
- `text`: the texts of a run: its configuration, its command, its code, and how it failed.
- `media`: images, figures, sounds and histograms as values of an event.
- `event_file`: event files: they are written through a buffer, read, and cut back on resume.
- `tfrecord`: the framing of event files, and its checksum.
"""

from __future__ import annotations

from danling.tensorboard.pages import best_values, close_killed, layout, rebuild, shown_tag

__all__ = ["best_values", "close_killed", "layout", "rebuild", "shown_tag"]
