from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from danling.experiments.sweeps.locking import locked


def test_one_process_holds_it(tmp_path: Path):
    path = tmp_path / "0.lock"
    held = locked(path)
    assert held is not None
    assert locked(path) is None

    held.close()

    again = locked(path)
    assert again is not None
    again.close()


def test_a_process_that_inherits_it_holds_it_after_its_maker_has_ended(tmp_path: Path):
    path = tmp_path / "0.lock"
    held = locked(path)
    assert held is not None
    reading, writing = os.pipe()
    program = f"import os; os.read({reading}, 1)"
    child = subprocess.Popen(
        [sys.executable, "-c", program], pass_fds=[held.fileno(), reading], close_fds=True
    )

    held.close()

    assert locked(path) is None
    os.write(writing, b"x")
    child.wait()
    again = locked(path)
    assert again is not None
    again.close()
    os.close(reading)
    os.close(writing)
