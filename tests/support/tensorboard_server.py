"""A real TensorBoard server, asked over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen


class Server:
    """`tensorboard --logdir`, as a context; `fast` is the backend in Rust, else it is Python's."""

    def __init__(self, logdir: Path, *, fast: bool, runs: int = 1) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self._runs = runs
        port = self.url.rpartition(":")[2]
        options = ["--host=127.0.0.1", f"--port={port}", f"--load_fast={str(fast).lower()}"]
        options += ["--reload_interval=1", "--samples_per_plugin=scalars=10000,images=50"]
        self._log = logdir.parent / f"{logdir.name}-server-{port}.log"
        self._command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", *options]

    def __enter__(self) -> Self:
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True, env=os.environ
            )
        try:
            self.wait_until(lambda: len(self.get("runs")) >= self._runs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):  # with the data server, which is its child
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait_until(self, condition: Any, seconds: float = 60.0) -> None:
        """Until the server has loaded what the condition asks for."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(URLError, ConnectionError, HTTPError, KeyError, IndexError):
                if condition():
                    return
            time.sleep(0.1)
        raise TimeoutError(self._log.read_text(errors="replace"))

    def get(self, path: str, **query: str) -> Any:
        """The JSON at `/data/{path}`."""
        return json.loads(self._ask(path, None, query))

    def download(self, path: str, **query: str) -> bytes:
        return self._ask(path, None, query)

    def post(self, path: str, message: Any) -> Any:
        return json.loads(self._ask(path, json.dumps(message).encode(), {}))

    def scalars(self, run: str, tag: str) -> list[tuple[int, float]]:
        points = self.get("plugin/scalars/scalars", run=run, tag=tag)
        return [(step, value) for _, step, value in points]

    def scalar_tags(self, run: str) -> set[str]:
        return set(self.get("plugin/scalars/tags").get(run, {}))

    def text(self, run: str, tag: str) -> str:
        return str(self.get("plugin/text/text", run=run, tag=tag)[-1]["text"])

    def charts(self) -> dict[str, dict[str, Any]]:
        """The charts of the page Custom Scalars by category and title."""
        layout = self.get("plugin/custom_scalars/layout")
        return {
            category["title"]: {chart["title"]: chart for chart in category["chart"]}
            for category in layout.get("category", [])
        }

    def session_groups(self) -> list[dict[str, Any]]:
        """The rows of the HParams table."""
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        request = {
            "allowedStatuses": statuses,
            "sliceSize": 1000,
            "aggregationType": "AGGREGATION_AVG",
        }
        answer = self.post("plugin/hparams/session_groups", request)
        return list(answer.get("sessionGroups", []))

    def hparams(self) -> dict[str, dict[str, Any]]:
        """The columns of the HParams table by name."""
        answer = self.post("plugin/hparams/experiment", {})
        return {column["name"]: column for column in answer.get("hparamInfos", [])}

    def _ask(self, path: str, body: bytes | None, query: dict[str, str]) -> bytes:
        address = f"{self.url}/data/{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(address, body, headers), timeout=30) as answer:
            return bytes(answer.read())
