"""A real SLURM on this machine: munge, a controller and a node, on loopback and free ports."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={controller}
SlurmdPort={node}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=2
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why SLURM cannot be started here; empty if nothing is known to be in the way."""
    if os.name != "posix" or os.getuid() != 0:
        return "SLURM's daemons want to be started by root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"apt-get install slurm-wlm munge: there is no {', '.join(absent)}" if absent else ""


@contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """Start SLURM, and end it; the value is its configuration, for `SLURM_CONF`.

    Raises:
        RuntimeError: It does not start.
    """
    for name in ("state", "spool", "log"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=_host(),
            folder=folder,
            controller=_free_port(),
            node=_free_port(),
            cpus=os.cpu_count() or 1,
        )
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
    conf = str(configuration)
    with ExitStack() as daemons:
        daemons.enter_context(_daemon(munge, folder))
        _wait(lambda: (folder / "munge.socket").exists(), "munged", folder)
        daemons.enter_context(_daemon(["slurmctld", "-D", "-f", conf], folder))
        daemons.enter_context(_daemon(["slurmd", "-D", "-f", conf, "-N", _host()], folder))
        _wait(lambda: _state(conf) == "idle", "the node", folder)
        yield configuration


@contextmanager
def _daemon(command: list[str], folder: Path) -> Iterator[None]:
    with open(folder / "log" / f"{command[0]}.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _state(configuration: str) -> str:
    environment = {**os.environ, "SLURM_CONF": configuration}
    command = ["sinfo", "--noheader", "--format=%t"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.stdout.strip()


def _wait(is_there: object, what: str, folder: Path) -> None:
    assert callable(is_there)
    deadline = time.monotonic() + 60
    while not is_there():
        if time.monotonic() > deadline:
            logs = [path.read_text(errors="replace")[-500:] for path in folder.glob("log/*")]
            raise RuntimeError(f"{what} does not come up: {' '.join(logs)}")
        time.sleep(0.2)


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
