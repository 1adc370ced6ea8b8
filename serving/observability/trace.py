"""What is known of a request under way: its id and clock, its place in a trace, and what its log line names.

The trace is that of W3C Trace Context (https://www.w3.org/TR/trace-context): the client's, if it sent a
`traceparent` that means anything; else one whose id is that of the request, so that either is found by the
other. What the client sent is passed on to what answers, with a span of ours in between.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from serving.access.idempotency import Attempt
from serving.access.identity import Caller
from serving.observability import logs
from tallybook.usage import new_event_id

_KEY = "tallybook.trace"
_TRACEPARENT = re.compile(
    # A version to come may add fields behind these.
    r"(?!ff)(?:00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
    r"|(?!00)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?)",
    re.ASCII,
)
_LONGEST_TRACESTATE = 512
_LONGEST_PATH = 200  # characters of an unknown path in the log; an ellipsis says that there are more


class Stream(Protocol):
    """An answer that goes on after its route has returned."""

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call this once when the answer is over."""
        ...

    def stop(self) -> None:
        """End it from outside, though its client takes nothing."""
        ...


class Parent(NamedTuple):
    """The span of the client, in whose trace the request is."""

    trace_id: str
    span_id: str
    flags: str


class Trace:
    """One request. Its id is the id of its usage event, and never a client's."""

    __slots__ = (
        "attempt", "body_at", "caller", "code", "completion_tokens", "ended_at", "is_counted", "method",
        "model", "model_version", "operation", "parent", "path", "peer", "prompt_tokens", "reason",
        "request_id", "route", "seconds", "span_id",
        "started", "status", "stream", "tracestate",
    )  # fmt: skip

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self.request_id = new_event_id()
        self.started = self.body_at = time.monotonic()  # when its body was there; infinity: not yet
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ["PATH_INFO"]
        self.peer: str | None = environ.get("REMOTE_ADDR")
        self.parent = _parent(environ.get("HTTP_TRACEPARENT"))
        self.tracestate: str | None = environ.get("HTTP_TRACESTATE")
        self.span_id: str | None = None  # made when somebody needs it
        self.status = 500  # until the answer begins
        self.route: str | None = None  # of ours; None if the path is not
        self.caller: Caller | None = None
        self.attempt: Attempt | None = None  # for its Idempotency-Key
        self.is_counted = False  # among the requests of the caller's minute
        self.operation: str | None = None
        self.model: str | None = None
        self.model_version: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.stream: Stream | None = None
        self.code: str | None = None
        self.reason: str | None = None  # of a failure that is not the client's
        self.ended_at = self.seconds = 0.0

    @property
    def trace_id(self) -> str:
        """The client's trace, or the request's own."""
        return self.request_id.replace("-", "") if self.parent is None else self.parent.trace_id

    @property
    def client_trace_id(self) -> str | None:
        """The client's trace, if it has one."""
        return None if self.parent is None else self.parent.trace_id

    def span(self) -> str:
        """The id of this request's span: the random end of its own id."""
        if self.span_id is None:
            self.span_id = self.request_id.replace("-", "")[16:]
        return self.span_id

    def passed_on(self) -> dict[str, str]:
        """Headers for what answers: W3C Trace Context, and our request id."""
        flags = "00" if self.parent is None else self.parent.flags
        headers = {
            "traceparent": f"00-{self.trace_id}-{self.span()}-{flags}",
            "x-request-id": self.request_id,
        }
        # It belongs to the client's trace, and a header that is too long, or no header, is not passed on.
        state = self.tracestate
        if self.parent is not None and state and len(state) <= _LONGEST_TRACESTATE and _is_plain(state):
            headers["tracestate"] = state
        return headers

    @property
    def known_caller(self) -> Caller:
        """Who asks. Raises: LookupError: nobody has been identified yet."""
        if self.caller is None:
            raise LookupError("the caller has not been identified")
        return self.caller

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
            "trace_id": self.trace_id,
            "method": _shortened(self.method),
            "path": _shortened(self.path) if self.route is None else self.route,
            "status": self.status,
            "code": self.code,
            "reason": self.reason,
            "user": caller and caller.user,
            "project": caller and caller.project,
            "client_ip": caller and caller.client_ip,
            "peer": self.peer,
            "model": self.model,
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


def _parent(header: str | None) -> Parent | None:
    """What a client's `traceparent` says; None if it says nothing that can be followed."""
    match = None if header is None else _TRACEPARENT.fullmatch(header.strip())
    return None if match is None else Parent(*(group for group in match.groups() if group is not None))


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_PATH else text[:_LONGEST_PATH] + "…"
