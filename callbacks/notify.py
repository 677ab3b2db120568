"""A message when a run begins, ends or fails."""

from __future__ import annotations

import json
import os
import smtplib
import ssl
import threading
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import Request, urlopen

from danling.callback import Callback, Priority
from danling.errors import CallbackError, did_you_mean

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["Notify"]

_EVENTS = ("start", "epoch", "end", "error")
_SCHEMES = ("http", "https", "smtp", "smtps")


class Notify(Callback):
    """Post a line to a webhook, as Slack's, or by e-mail when a run begins, ends or fails.

    The address is in an environment variable, so that it is in no file of the run. Without it
    nothing is sent, with a line in the log. A webhook, `https://...`, gets JSON with the key
    `text`. A mail goes through `smtp://user:password@host:587?to=you@example.org`, with `from=` in
    it where the sender is another than the first receiver; the connection is encrypted where the
    server offers it, and a password is sent over an encrypted one alone. `smtps://` is encrypted
    from the beginning.

    A message is sent by a thread with a time-out, and what goes wrong is a warning that does not
    show the address. The main process sends, in order. A step costs nothing, and there is no state.

    Args:
        on: The occasions: any of `"start"`, `"epoch"`, `"end"` and `"error"`.
        variable: The environment variable that holds the address.
        timeout: The number of seconds that a message may take.

    Raises:
        CallbackError: There is no such occasion, or the time-out is not positive.

    Example:
        >>> Notify(on=("end", "error")).variable
        'DANLING_WEBHOOK'
    """

    name = "notify"
    priority = Priority.VERY_LOW
    only_watches = True

    def __init__(
        self,
        on: tuple[str, ...] = ("start", "end", "error"),
        *,
        variable: str = "DANLING_WEBHOOK",
        timeout: float = 10.0,
    ) -> None:
        for occasion in on:
            if occasion not in _EVENTS:
                near = did_you_mean(str(occasion), _EVENTS)
                raise CallbackError(f"Notify(on={occasion!r}): {near}")
        if not timeout > 0:
            raise CallbackError(f"Notify(timeout={timeout!r}): must be positive")
        self.on = on
        self.variable = variable
        self.timeout = timeout
        self._threads: list[threading.Thread] = []
        self._url: str | None = None

    def on_setup(self, runner: Runner) -> None:
        """Read the address."""
        self._url = os.environ.get(self.variable) if runner.is_main_process else None
        if self._url is None and runner.is_main_process:
            runner.logger.info("%s: %s is not set, nothing is sent", self.name, self.variable)
        elif self._url is not None and (problem := problem_of(self._url)):
            self._url = None
            runner.logger.warning(
                "%s: what is in %s %s, nothing is sent", self.name, self.variable, problem
            )

    def on_train_start(self, runner: Runner) -> None:
        """Tell that it begins."""
        self._tell(runner, "start", f"{runner.name}: training begins at epoch {runner.epoch}")

    def on_epoch_end(self, runner: Runner) -> None:
        """Tell the score of an epoch."""
        self._tell(runner, "epoch", f"{runner.name}: epoch {runner.epoch}, {_score(runner)}")

    def on_train_end(self, runner: Runner) -> None:
        """Tell that it ends, and how."""
        reason = f" ({runner.stop_reason})" if runner.stop_reason else ""
        text = f"{runner.name}: training ends at epoch {runner.epoch}{reason}, {_score(runner)}"
        self._tell(runner, "end", text)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Tell what went wrong, without its values."""
        text = f"{runner.name}: {type(error).__name__} at global step {runner.global_step}"
        self._tell(runner, "error", text)

    def on_teardown(self, runner: Runner) -> None:
        """Wait for what is being sent, no longer than the time-outs."""
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.join(self.timeout)

    def _tell(self, runner: Runner, occasion: str, text: str) -> None:
        if self._url is None or occasion not in self.on:
            return
        before = self._threads[-1] if self._threads else None
        thread = threading.Thread(
            target=self._send, args=(runner.logger, self._url, text, before), daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _send(self, logger: Any, url: str, text: str, before: threading.Thread | None) -> None:
        if before is not None:
            before.join(self.timeout)
        send = post if url.startswith("http") else mail
        try:
            send(url, text, self.timeout)
        except (OSError, ValueError) as error:  # those of smtplib are among them
            logger.warning("%s: a message was not sent (%s)", self.name, type(error).__name__)


def problem_of(url: str) -> str | None:
    """What is wrong with an address; None for one that can be used.

    Example:
        >>> problem_of("https://example.org/hook"), problem_of("smtp://localhost?to=a@example.org")
        (None, None)
        >>> problem_of("smtp://localhost")
        "names no receiver: add '?to=you@example.org'"
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is no address"
    if parts.scheme not in _SCHEMES or not parts.hostname or port == 0:
        return f"is no address of {', '.join(f'{scheme}://' for scheme in _SCHEMES)}"
    if parts.scheme.startswith("smtp") and not values_of(url).get("to"):
        return "names no receiver: add '?to=you@example.org'"
    return None


def values_of(url: str) -> dict[str, list[str]]:
    """The values after the question mark; a plus sign is one, as it may be in an address."""
    return parse_qs(urlsplit(url).query.replace("+", "%2B"))


def post(url: str, text: str, timeout: float) -> None:
    """Post a text to a webhook."""
    body = json.dumps({"text": text}).encode()
    with urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=timeout):
        return


def mail(url: str, text: str, timeout: float) -> None:
    """Send a text as the subject and the body of a mail.

    Raises:
        OSError: The server cannot be reached or refuses; or it wants a password in the clear.
    """
    parts, values = urlsplit(url), values_of(url)
    receivers = [address for value in values["to"] for address in value.split(",")]
    message = EmailMessage()
    message["Subject"] = " ".join(text.split())
    message["From"], message["To"] = values.get("from", receivers)[0], ", ".join(receivers)
    message.set_content(text)
    encrypted = parts.scheme == "smtps"
    connect: type[smtplib.SMTP] = smtplib.SMTP_SSL if encrypted else smtplib.SMTP
    with connect(parts.hostname or "", parts.port or 0, timeout=timeout) as server:
        server.ehlo()
        if not encrypted and server.has_extn("starttls"):
            # a relay nearby seldom has a certificate that anybody knows; a password needs one
            server.starttls(context=ssl.create_default_context() if parts.username else None)
            encrypted = True
        if parts.username and not encrypted:
            raise smtplib.SMTPNotSupportedError("the server does not encrypt: no password is sent")
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
        server.send_message(message)


def _score(runner: Runner) -> str:
    best = runner.best_score
    return f"best {runner.monitor} {best:.6g}" if best is not None else "no score yet"
