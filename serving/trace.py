"""What is known of a request under way: its id and clock, and who and what its log line names."""

from __future__ import annotations

import time

from flask import request

from serving import logs
from serving.identity import Caller
from tallybook.usage import new_event_id

_KEY = "tallybook.trace"
_LONGEST_PATH = 200  # characters of an unknown path in the log; an ellipsis says that there are more


class Trace:
    """One request. Its id is the id of its usage event, and never a client's."""

    __slots__ = (
        "caller", "code", "completion_tokens", "model_version", "prompt_tokens", "request_id", "started",
    )  # fmt: skip

    def __init__(self) -> None:
        self.request_id = new_event_id()
        self.started = time.monotonic()
        self.caller: Caller | None = None
        self.model_version: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.code: str | None = None

    def log(self, status: int, seconds: float) -> None:
        """Write the request's log line."""
        caller = self.caller
        rule = request.url_rule
        logs.write(
            {
                "time": logs.now(),
                "level": "info" if status < 500 else "error",
                "message": "request",
                "request_id": self.request_id,
                "method": _shortened(request.method),
                "path": _shortened(request.path) if rule is None else rule.rule,
                "status": status,
                "code": self.code,
                "user": caller and caller.user,
                "project": caller and caller.project,
                "client_ip": caller and caller.client_ip,
                "peer": request.remote_addr,
                "model_version": self.model_version,
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "seconds": round(seconds, 6),
            }
        )


def begin() -> None:
    """Start the trace of the request that Flask has just begun."""
    request.environ[_KEY] = Trace()


def current() -> Trace:
    """The trace of the request under way."""
    trace: Trace = request.environ[_KEY]
    return trace


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_PATH else text[:_LONGEST_PATH] + "…"
