import json
from pathlib import Path

from danling_heartbeat import Heartbeat

from danling.testing import CallbackContract, TinyRunner


class TestContract(CallbackContract):
    default_callbacks = True  # it writes into the directory of the run

    def make(self) -> Heartbeat:
        return Heartbeat("1 step")


def test_the_last_beat_is_that_of_the_last_period(tmp_path: Path) -> None:
    runner = TinyRunner(
        {"max_steps": 8, "project_root": str(tmp_path)},
        callbacks=[Heartbeat("3 steps")],
        default_callbacks=True,
    )

    runner.train()

    assert json.loads((runner.dir / "heartbeat.json").read_text())["global_step"] == 6
