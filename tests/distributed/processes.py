"""Several processes of one run on this machine, started as a launcher does, and how each ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# Seconds after which processes are said to hang. No machine is so slow that they need them.
TIMEOUT = 200.0


@dataclass(frozen=True)
class Ended:
    """How the processes of a run ended.

    Attributes:
        codes: The exit code of each rank, negative for a signal.
        output: What all of them wrote, in the order in which they wrote it.
        timed_out: Whether some were still there after the time-out, and were killed.
    """

    codes: list[int]
    output: str
    timed_out: bool = False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What a launcher tells a process; a single one is as if there had been none."""
    launched = {
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    own = {"ACCELERATE_USE_CPU": "true", "RANK": str(rank), "WORLD_SIZE": str(size)}
    return own | (launched if size > 1 else {})


def start(size: int, work: Callable[..., object], *args: Any, output: Path) -> list[int]:
    """Fork processes that each do the same work; everything is imported by then."""
    port = free_port()
    return [_fork(rank_environment(rank, size, port), work, args, output) for rank in range(size)]


def together(
    size: int,
    work: Callable[..., object],
    *args: Any,
    folder: Path,
    terminates: bool = True,
    timeout: float = TIMEOUT,
) -> Ended:
    """Do something in several processes at once, and wait for them.

    Args:
        size: How many.
        work: What each of them does.
        args: For the work.
        folder: Where they write what they print.
        terminates: Whether the others get a SIGTERM when one has failed, as launchers do.
        timeout: Seconds after which they are killed.
    """
    output = folder / "output.txt"
    output.unlink(missing_ok=True)
    pids = start(size, work, *args, output=output)
    return wait(pids, output, terminates=terminates, timeout=timeout)


def wait(
    pids: Sequence[int], output: Path, *, terminates: bool = True, timeout: float = TIMEOUT
) -> Ended:
    """Wait for processes of `start`, and end them as a launcher does when one has failed."""
    codes: dict[int, int] = {}
    deadline, timed_out, told = time.monotonic() + timeout, False, False
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
        left = [pid for pid in pids if pid not in codes]
        if left and time.monotonic() > deadline:
            timed_out = True
            _signal(left, signal.SIGKILL)
        elif terminates and not told and any(codes.values()):
            told = True
            time.sleep(0.1)  # how often torchrun looks
            _signal(left, signal.SIGTERM)
        time.sleep(0.01)
    return Ended([codes[pid] for pid in pids], output.read_text(), timed_out)


def succeed(size: int, work: Callable[..., object], *args: Any, folder: Path) -> None:
    """Do something in several processes, none of which fails."""
    ended = together(size, work, *args, folder=folder)
    assert ended.codes == [0] * size, ended.output


def results(folder: Path, size: int) -> list[Any]:
    """What each rank left by `leave`."""
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(size)]


def leave(folder: Path, result: Any) -> None:
    """Leave a result for the test, from within a process."""
    (folder / f"result-{os.environ['RANK']}.json").write_text(json.dumps(result))


def torchrun(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script under torchrun."""
    return _run([sys.executable, "-m", "torch.distributed.run", *map(str, args)], **options)


def accelerate_launch(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script under accelerate launch."""
    module = "accelerate.commands.accelerate_cli"
    return _run([sys.executable, "-m", module, "launch", *map(str, args)], **options)


def launcher_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a launcher on this machine, for processes on the CPU."""
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(extra or {})}


def _run(
    command: list[str], env: Mapping[str, str] | None = None, timeout: float = TIMEOUT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=launcher_environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def _fork(
    env: Mapping[str, str], work: Callable[..., object], args: Sequence[Any], output: Path
) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest's own threads hold no locks
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(env)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        code = _exit_code(work, args)
    finally:
        os._exit(code)


def _exit_code(work: Callable[..., object], args: Sequence[Any]) -> int:
    try:
        work(*args)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        print(f"[rank {os.environ['RANK']}] {traceback.format_exc()}", file=sys.stderr)
        return 1
    return 0


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)
