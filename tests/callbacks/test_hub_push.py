from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from danling.callbacks import EMAWeightAveraging, HubPush
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner

pytest.importorskip("huggingface_hub")
safetensors: Any = pytest.importorskip("safetensors.torch")


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return HubPush("user/digits", endpoint="http://127.0.0.1:9")


class Handler(BaseHTTPRequestHandler):
    """The requests of the Hub's interface that a push makes."""

    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        name = urlsplit(self.path).path.rpartition("/")[2]
        self.answer(200 if name in self.hub.files else 404, {})

    def do_GET(self) -> None:
        self.answer(404, {})

    def do_POST(self) -> None:
        self.hub.tokens.add(self.headers["Authorization"])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/repos/create"):
            self.hub.created.append(json.loads(body))
            self.answer(200, {"url": f"{self.hub.url}/user/digits", "id": "1"})
        elif self.path.endswith("/validate-yaml"):
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            about = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self.answer(200, {"files": [{"path": name, **about} for name in names]})
        elif "/commit/" in self.path:
            self.hub.commit([json.loads(line) for line in body.splitlines()])
            url = f"{self.hub.url}/user/digits/commit/abc"
            self.answer(200, {"commitUrl": url, "commitOid": "abc", "success": True})
        else:
            self.answer(404, {})


class Hub:
    """What a server was told and has."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.commits: list[str] = []
        self.tokens: set[str | None] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "header":
                self.commits.append(line["value"]["summary"])
            elif line["key"] == "file":
                value = line["value"]
                self.files[value["path"]] = base64.b64decode(value["content"])


@pytest.fixture
def server(monkeypatch):
    """The hub on this machine, for which `huggingface_hub` is online."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    local = Hub()
    thread = threading.Thread(target=local.server.serve_forever)
    thread.start()
    yield local
    local.server.shutdown()
    thread.join()
    local.server.server_close()


def trained(folder: Any, *callbacks: Any) -> TinyRunner:
    runner = TinyRunner(
        {"project_root": str(folder), "api_key": "sk-1234567890abcdef"},
        callbacks=callbacks,
        default_callbacks=True,
    )
    runner.train()
    return runner


def test_one_commit_has_weights_configuration_and_a_card(tmp_path, server):
    push = HubPush("user/digits", endpoint=server.url)
    runner = trained(tmp_path, push, EMAWeightAveraging(0.5))

    [made] = server.created
    assert made["name"] == "digits"
    assert "private" in (made.get("visibility"), *(key for key in made if made[key] is True))
    assert server.commits == [f"best.pth of {runner.id}"]
    assert push.commit_url == f"{server.url}/user/digits/commit/abc"
    assert set(server.files) == {"model.safetensors", "runner.yaml", "README.md"}
    weights = safetensors.load(server.files["model.safetensors"])
    best, _ = runner.checkpoints.load("best")
    assert torch.equal(weights["weight"], best["model"]["weight"])
    assert f"| val/loss | {runner.best_score:.6g} |" in server.files["README.md"].decode()
    assert b"batch_size: 4" in server.files["runner.yaml"]
    assert b"sk-1234567890abcdef" not in server.files["runner.yaml"]
    assert server.tokens == {"Bearer hf_secret"}
    written = b"".join(path.read_bytes() for path in runner.dir.rglob("*") if path.is_file())
    assert b"hf_secret" not in written


def test_a_card_that_is_there_is_left_alone(tmp_path, server):
    server.files["README.md"] = b"# mine"
    trained(tmp_path, HubPush("user/digits", "latest", endpoint=server.url))

    assert server.files["README.md"] == b"# mine"
    assert "model.safetensors" in server.files


def test_a_hub_that_is_not_there_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    runner = trained(tmp_path, HubPush("user/digits", endpoint="http://127.0.0.1:9"))

    assert runner.status == "finished"
    assert "hub_push: nothing was pushed to user/digits" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [("user/digits/more",), ("user digits",), ("user/digits", "bets")]
)
def test_arguments_are_checked(arguments):
    with pytest.raises(CallbackError, match="HubPush"):
        HubPush(*arguments)
