"""What is known of a request under way: its id and clock, and what its log line names."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from serving import logs
from serving.identity import Caller
from tallybook.usage import new_event_id

_KEY = "tallybook.trace"
_LONGEST_PATH = 200  # characters of an unknown path in the log; an ellipsis says that there are more


class Stream(Protocol):
    """An answer that goes on after its route has returned."""

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call this once when the answer is over."""
        ...


class Trace:
    """One request. Its id is the id of its usage event, and never a client's."""

    __slots__ = (
        "caller", "code", "completion_tokens", "ended_at", "method", "model_version", "path", "peer",
        "prompt_tokens", "reason", "request_id", "route", "seconds", "started", "status", "stream",
    )  # fmt: skip

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self.request_id = new_event_id()
        self.started = time.monotonic()
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ["PATH_INFO"]
        self.peer: str | None = environ.get("REMOTE_ADDR")
        self.status = 500  # until the answer begins
        self.route: str | None = None  # of ours; None if the path is not
        self.caller: Caller | None = None
        self.model_version: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.stream: Stream | None = None
        self.code: str | None = None
        self.reason: str | None = None  # of a failure that is not the client's
        self.ended_at = self.seconds = 0.0

    def end(self) -> None:
        """Stop its clock."""
        self.seconds = time.monotonic() - self.started
        self.ended_at = time.time()

    def line(self) -> dict[str, Any]:
        """The request's log line, once it has ended."""
        caller = self.caller
        return {
            "time": logs.moment(self.ended_at),
            "level": "info" if self.status < 500 else "error",
            "message": "request",
            "request_id": self.request_id,
            "method": _shortened(self.method),
            "path": _shortened(self.path) if self.route is None else self.route,
            "status": self.status,
            "code": self.code,
            "reason": self.reason,
            "user": caller and caller.user,
            "project": caller and caller.project,
            "client_ip": caller and caller.client_ip,
            "peer": self.peer,
            "model_version": self.model_version,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": round(self.seconds, 6),
        }


def begin(environ: dict[str, Any]) -> Trace:
    """The trace of the request with this WSGI environment, from now on."""
    trace = environ[_KEY] = Trace(environ)
    return trace


def of(environ: Mapping[str, Any]) -> Trace:
    """The trace that was begun with this environment."""
    trace: Trace = environ[_KEY]
    return trace


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_PATH else text[:_LONGEST_PATH] + "…"
