"""A week of experiments in under a minute: thirty tiny runs to try the `danling` command on.

    python examples/week.py week && cd week && danling ls

Three learning rates, two weight decays, five seeds. Two of the runs are killed and one fails, and
half way the code is edited without a commit: the model moves to a file of its own, which nobody
adds to git. Every run is a process of its own: they are forked from one that has imported torch,
which is what takes the time.
"""

import errno
import os
import runpy
import subprocess
import sys
from itertools import product
from pathlib import Path

import danling as dl
from danling.files.failpoints import set_failpoints

SCRIPT = Path(__file__).with_name("moons.py").read_text()
MODEL = "model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))\n"
WIDER = (
    "from torch import nn\n\nmodel = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))\n"
)
DISK_FULL = f"raise:{errno.ENOSPC}"
ACCIDENTS = {  # what happens when a checkpoint is written, and at which one
    ("0.1", "0.0", 1): "kill@5",
    ("0.01", "0.001", 1): "kill@5",
    ("1.0", "0.001", 0): f"{DISK_FULL}@3",
}


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=A Reader", "-c", "user.email=reader@example.org"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def run(lr: str, decay: str, seed: int) -> None:
    """Train in a process of its own, as `python train.py --optim.lr ...` would."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    sys.argv = ["train.py", "--optim.lr", lr, "--optim.weight_decay", decay, "--seed", str(seed)]
    sys.orig_argv = [sys.executable, *sys.argv]
    sys.path[0] = os.getcwd()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    accident = ACCIDENTS.get((lr, decay, seed))
    set_failpoints(f"checkpoint.before_write={accident}" if accident else "")
    code = 1
    try:
        runpy.run_path("train.py", run_name="__main__")
        code = 0
    finally:
        os._exit(code)


def main(folder: str = "week", seeds: str = "5") -> None:
    Path(folder).mkdir(parents=True)
    os.chdir(folder)
    Path("train.py").write_text(SCRIPT)
    git("init", "--quiet")
    git("add", "train.py")
    git("commit", "--quiet", "--message", "A tiny network on two half-moons")
    _ = dl.AccelerateRunner, dl.Config  # imported once, for all the processes to come
    for decay in ("0.0", "0.001"):
        if decay != "0.0":  # an edit that nobody commits
            Path("train.py").write_text(SCRIPT.replace(MODEL, "from network import model\n"))
            Path("network.py").write_text(WIDER)
        for lr, seed in product(["1.0", "0.1", "0.01"], range(int(seeds))):
            run(lr, decay, seed)
    print(f"cd {folder} && danling ls")


main(*sys.argv[1:])
