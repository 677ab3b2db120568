"""A file of metrics in step with a run: cut back to a checkpoint, and no training ends for it."""

from __future__ import annotations

import logging
from pathlib import Path

from danling.run.metrics_file import MetricsFile, read_metrics
from danling.run.metrics_log import MetricsLog

LOGGER = logging.getLogger("danling.test")


def written(path: Path, *steps: int) -> MetricsLog:
    log = MetricsLog("writing metrics.jsonl")
    log.open(MetricsFile(path), 0, LOGGER)
    for step in steps:
        log.add(step, 0, {"train/loss": 1.0 / step}, LOGGER)
    log.close(LOGGER)
    return log


def test_a_log_goes_on_where_the_checkpoint_was(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    written(path, 10, 20, 30)

    log = MetricsLog("writing metrics.jsonl")
    log.load_state_dict({"rows": 2})
    log.open(MetricsFile(path), 20, LOGGER, tmp_path / "aside.jsonl")
    log.add(25, 0, {"train/loss": 0.5}, LOGGER)
    log.close(LOGGER)

    assert [row["global_step"] for row in read_metrics(path)] == [10, 20, 25]
    assert [row["global_step"] for row in read_metrics(tmp_path / "aside.jsonl")] == [30]


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.mkdir()

    written(path, 10, 20)

    assert "writing metrics.jsonl" in caplog.text
