"""Every test starts as in a new process: an empty directory, no cluster, no network, no git."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before torch is imported, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GIT_CONFIG_GLOBAL"] = os.environ["GIT_CONFIG_SYSTEM"] = os.devnull
for person in ("AUTHOR", "COMMITTER"):
    os.environ[f"GIT_{person}_NAME"] = "tester"
    os.environ[f"GIT_{person}_EMAIL"] = "tester@example.org"
# A bare checkout is found by child processes too, as `pythonpath` has it found by this one.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# A worker of pytest-xdist is started with `python -c`, whose text would be code of every run.
if getattr(sys.modules["__main__"], "__file__", None) is None:
    sys.modules["__main__"].__file__ = pytest.__file__

# As in a terminal: under nohup and in the background they are ignored, and so by children.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

LAUNCHERS = ("ACCELERATE_", "DANLING_", "FSDP_", "MASTER_", "PMI_", "SLURM_", "TORCHELASTIC_")
RANKS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK"}
GIT_PLACES = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"}


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test writes to a relative path lands in its own `tmp_path`."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def single_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the tests run under a scheduler, or from a git hook, makes no difference."""
    for name in list(os.environ):
        if name.startswith(LAUNCHERS) or name in RANKS | GIT_PLACES:
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine is an error."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in {"localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}:
            raise OSError(f"the tests have no network, and this one wants {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(autouse=True)
def untouched_process() -> Iterator[None]:
    """Signal handlers and the root logger are after a test what they were before it."""
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
    handlers = {number: signal.getsignal(number) for number in signals}
    root = logging.getLogger()
    # pytest's own capturing handlers come and go with the phases of a test
    ours = [handler for handler in root.handlers if not _is_pytests(handler)]

    yield

    changed = {number.name for number in signals if signal.getsignal(number) != handlers[number]}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    added = [h for h in root.handlers if h not in ours and not _is_pytests(h)]
    for handler_left in added:
        root.removeHandler(handler_left)
    assert changed == set(), "the test left signal handlers behind"
    assert added == [], "the test left handlers on the root logger"


@pytest.fixture(autouse=True)
def fresh_torch() -> Iterator[None]:
    """One thread, and none of the state that torch and Accelerate keep for a whole process."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)

    yield

    if "torch" in sys.modules:
        import torch

        torch.use_deterministic_algorithms(False)
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def _is_pytests(handler: logging.Handler) -> bool:
    return type(handler).__module__.startswith("_pytest.")
