"""A file that tells from outside that a training is alive."""

import json
import os
import time

from danling import AccelerateRunner, Callback, Every
from danling.triggers import Moment


class Heartbeat(Callback):
    """Writes the step and the time to `heartbeat.json` in the directory of the run.

    Args:
        every: How often, as "10 steps" or "30 s".
    """

    name = "heartbeat"
    only_watches = True  # attached or not, it is the same run

    def __init__(self, every: str = "10 steps") -> None:
        self.every = Every(every)
        self.last = Moment()

    def on_train_start(self, runner: AccelerateRunner) -> None:
        self.last = runner.now()

    def on_step(self, runner: AccelerateRunner) -> None:
        now = runner.now()
        if self.every.is_due(now, self.last) and runner.is_main_process and runner.has_dir:
            self.last = now
            path = runner.dir / "heartbeat.json"
            beat = {"global_step": runner.global_step, "time": time.time()}
            path.with_suffix(".new").write_text(json.dumps(beat))
            os.replace(path.with_suffix(".new"), path)  # whoever reads it finds all of it
