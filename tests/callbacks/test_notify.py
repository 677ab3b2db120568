from __future__ import annotations

import email
import json
import socketserver
import threading
from email.message import Message
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

    assert "is no address of http://, https://, smtp://, smtps://" in caplog.text
    assert "secret" not in caplog.text


class MailServer(socketserver.StreamRequestHandler):
    """Says yes to whatever a client of SMTP says, and keeps the messages (RFC 5321)."""

    mails: list[Message]
    said: list[str]

    def answer(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())

    def handle(self):
        self.answer("220 here")
        for raw in self.rfile:
            line = raw.decode().strip()
            self.said.append(line)
            if line.lower() == "data":
                self.answer("354 go on")
                text = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.mails.append(email.message_from_bytes(text))
            if line.lower().startswith("ehlo"):
                self.answer("250-here")
                self.answer("250-AUTH PLAIN LOGIN")  # it takes passwords, and does not encrypt
            self.answer("221 bye" if line.lower() == "quit" else "250 yes")
            if line.lower() == "quit":
                return


@pytest.fixture
def mail_server():
    """A local server of SMTP: its address, its mails and what it was told."""
    mails: list[Message] = []
    said: list[str] = []
    handler = type("Handler", (MailServer,), {"mails": mails, "said": said})
    with socketserver.TCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}", mails, said
        server.shutdown()
        thread.join()


def test_a_mail_is_sent_for_each_occasion(mail_server, monkeypatch):
    host, mails, said = mail_server
    monkeypatch.setenv(
        "DANLING_WEBHOOK",
        f"smtp://{host}?to=me+runs@example.org,you@example.org&from=x@example.org",
    )
    runner = TinyRunner(callbacks=[Notify(("start", "end"))])
    runner.train()

    assert [mail["Subject"].partition(": ")[2].split(",")[0] for mail in mails] == [
        "training begins at epoch 0",
        "training ends at epoch 2",
    ]
    assert (mails[0]["From"], mails[0]["To"]) == (
        "x@example.org",
        "me+runs@example.org, you@example.org",
    )
    assert f"best val/loss {runner.best_score:.6g}" in str(mails[1].get_payload())
    assert said.count("rcpt TO:<you@example.org>") == 2


def test_no_password_is_sent_in_the_clear(mail_server, monkeypatch, caplog):
    host, mails, said = mail_server
    monkeypatch.setenv("DANLING_WEBHOOK", f"smtp://user:secret@{host}?to=me@example.org")
    TinyRunner(callbacks=[Notify(("end",))]).train()

    assert "a message was not sent (SMTPNotSupportedError)" in caplog.text
    assert mails == []
    assert not any("AUTH" in line.upper() for line in said)
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("smtp://localhost", "names no receiver"),
        ("smtp://localhost:port?to=me@example.org", "is no address"),
        ("mailto:me@example.org", "is no address of"),
    ],
)
def test_an_address_that_names_nobody_is_said_at_once(url, problem, monkeypatch, caplog):
    monkeypatch.setenv("DANLING_WEBHOOK", url)
    TinyRunner(callbacks=[Notify()]).train()

    assert problem in caplog.text


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="did you mean 'end'"):
        Notify(on=("ende",))
    with pytest.raises(CallbackError, match="must be positive"):
        Notify(timeout=0)
