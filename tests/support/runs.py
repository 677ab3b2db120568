"""Directories of runs as training writes them, without any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD: dict[str, Any] = {
    "schema": 1,
    "name": "tiny-run",
    "run_id": "b" * 32,
    "experiment_id": "a" * 32,
    "status": "finished",
    "reason": None,
    "created": "2026-01-01T00:00:00+00:00",
    "started": "2026-01-01T00:00:00+00:00",
    "ended": "2026-01-01T00:01:00+00:00",
    "launches": [
        {
            "host": "node1",
            "argv": ["python", "train.py"],
            "cwd": "/nowhere",
            "start_time": "2026-01-01T00:00:00+00:00",
            "end_time": "2026-01-01T00:01:00+00:00",
        }
    ],
    "code": {"commit": "0" * 40, "dirty": False, "source": "git", "tree": "1" * 40},
    "environment": {"host": "node1", "python": "3.11.0"},
}


def make_run(root: Path, number: int = 1, *, score: float | None = 0.5, **changes: Any) -> Path:
    """Write the directory of a run; `config` holds keys of its configuration.

    The larger its number, the newer it is.
    """
    config = {"seed": 0, "optim": {"lr": 0.1}, "monitor": "val/accuracy", "monitor_mode": "max"}
    config |= changes.pop("config", {})
    uuid = f"{number:08x}-0000-4000-8000-000000000000"
    minutes, hours = number % 60, number // 60
    created = f"2026-01-{hours // 24 % 28 + 1:02}T{hours % 24:02}:{minutes:02}:00+00:00"
    record = {**RECORD, "uuid": uuid, "hash_inputs": config, "created": created, **changes}
    record["id"] = f"{record['experiment_id']:.8}-{record['run_id']:.8}-{number:08x}"
    path = root / f"{record['name']}-{record['id']}"
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(record))
    (path / "runner.json").write_text(json.dumps(config))
    if score is not None:
        results = [
            {
                "epoch": epoch,
                "global_step": 4 * epoch,
                "val": {"accuracy": value, "loss": 1 - value},
            }
            for epoch, value in ((1, score / 2), (2, score))
        ]
        for name, content in (("results", results), ("best", results[1]), ("latest", results[1])):
            (path / f"{name}.json").write_text(json.dumps(content))
        rows = [
            {"global_step": r["global_step"], "time": 1.0, "val/accuracy": r["val"]["accuracy"]}  # type: ignore[index]
            for r in results
        ]
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path
