"""Two machines, as two network namespaces with an address each, that share one directory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.processes import ROOT, launcher_environment

pytestmark = [pytest.mark.distributed, pytest.mark.exhaustive]

EXAMPLE = ROOT / "examples" / "distributed.py"
NETWORK = "10.213.7."


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """The names of two namespaces that are connected."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and iproute2")
    names = [f"dl{os.getpid()}-{number}" for number in (0, 1)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        links = [f"v{os.getpid()}a", f"v{os.getpid()}b"]
        ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for number, (name, link) in enumerate(zip(names, links, strict=True), start=1):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "link", "set", link, "name", "eth0")
            ip("-n", name, "addr", "add", f"{NETWORK}{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


def launch(launcher: str, node: int) -> list[str]:
    if launcher == "torchrun":
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NETWORK}1:29400"]
        nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "job"]
        # the namespaces have one host name, by which torchrun would tell who opens the store
        address = ["--local-addr", f"{NETWORK}{node + 1}", "--rdzv-conf", f"is_host={node == 0}"]
        return ["torch.distributed.run", *nodes, *rendezvous, *address]
    return [
        *["accelerate.commands.accelerate_cli", "launch", "--multi_gpu"],
        *["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(node)],
        *["--main_process_ip", f"{NETWORK}1", "--main_process_port", "29400"],
    ]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_machines_train_one_model(launcher: str, machines: list[str], tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    processes = []
    for node, name in enumerate(machines):
        own = tmp_path / f"machine-{node}"
        own.mkdir()
        script = [str(EXAMPLE), "--max_epochs", "2", "--project_root", str(shared)]
        command = ["ip", "netns", "exec", name, sys.executable, "-m", *launch(launcher, node)]
        processes.append(
            subprocess.Popen(
                [*command, *script],
                cwd=own,
                env=launcher_environment({"GLOO_SOCKET_IFNAME": "eth0"}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )

    outputs = [process.communicate(timeout=150)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum(output.count("2 processes, 38 steps of 64") for output in outputs) == 1
    (record,) = shared.glob("*/run.json")
    assert json.loads(record.read_text())["status"] == "finished"
    assert [list((tmp_path / f"machine-{node}").iterdir()) for node in (0, 1)] == [[], []]
