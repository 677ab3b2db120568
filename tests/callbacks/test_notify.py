from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from danling.callbacks import Notify
from danling.errors import CallbackError
from danling.testing import CallbackContract, Failing, TinyRunner


class TestContract(CallbackContract):
    def make(self):
        return Notify()


@pytest.fixture
def webhook(monkeypatch):
    """A server that keeps what is posted to it."""
    texts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            texts.append(json.loads(body)["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("DANLING_WEBHOOK", f"http://127.0.0.1:{server.server_port}/secret")
    yield texts
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_tells_of_start_epochs_and_end_in_order(webhook):
    runner = TinyRunner(callbacks=[Notify(("start", "epoch", "end"))])
    runner.train()

    assert [text.partition(": ")[2].split(",")[0] for text in webhook] == [
        "training begins at epoch 0",
        "epoch 1",
        "epoch 2",
        "training ends at epoch 2",
    ]
    assert f"best val/loss {runner.best_score:.6g}" in webhook[-1]


def test_it_tells_of_an_error_without_its_values(webhook):
    with pytest.raises(ZeroDivisionError):
        TinyRunner(callbacks=[Notify(), Failing("on_epoch_end")]).train()

    assert webhook[-1].endswith("ZeroDivisionError at global step 4")


def test_a_server_that_is_not_there_is_a_warning_without_the_address(monkeypatch, caplog):
    monkeypatch.setenv("DANLING_WEBHOOK", "http://127.0.0.1:9/secret")
    runner = TinyRunner(callbacks=[Notify()])
    runner.train()

    assert runner.status == "finished"
    assert "a message was not sent" in caplog.text
    assert "secret" not in caplog.text


def test_an_address_of_another_kind_is_not_used(monkeypatch, caplog):
    monkeypatch.setenv("DANLING_WEBHOOK", "file:///etc/secret")
    TinyRunner(callbacks=[Notify()]).train()

    assert "no http(s) address" in caplog.text
    assert "secret" not in caplog.text


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="did you mean 'end'"):
        Notify(on=("ende",))
    with pytest.raises(CallbackError, match="must be positive"):
        Notify(timeout=0)
