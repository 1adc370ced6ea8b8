import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.observability import trace
from tests.apis import USER, StandIn, running_app
from tests.engines import MODEL, completion, whole
from tests.serving.test_v1 import HELLO, Gateway, gateway

__all__ = ["gateway"]
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def a_trace(**headers: str) -> trace.Trace:
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/analyze", **headers}
    return trace.begin(environ)


@pytest.mark.parametrize(
    ("header", "followed"),
    [
        (PARENT, True),
        (f" {PARENT} ", True),
        (PARENT.replace("00-", "01-", 1), True),
        (PARENT.replace("00-", "cc-", 1) + "-what-comes", True),
        (PARENT + "-what-comes", False),  # version 00 has four fields
        (PARENT.replace("00-", "ff-", 1), False),
        (PARENT.upper(), False),
        (PARENT.replace(TRACE_ID, "0" * 32), False),
        (PARENT.replace(SPAN_ID, "0" * 16), False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_a_traceparent_is_followed_if_it_means_anything(header: str, followed: bool) -> None:
    made = a_trace(HTTP_TRACEPARENT=header)
    assert (made.trace_id == TRACE_ID) is followed
    assert made.trace_id == (TRACE_ID if followed else made.request_id.replace("-", ""))


@given(st.text())
def test_what_is_passed_on_is_well_formed_whatever_came(header: str) -> None:
    headers = a_trace(HTTP_TRACEPARENT=header, HTTP_TRACESTATE=header).passed_on()
    assert TRACEPARENT.fullmatch(headers["traceparent"])
    assert "tracestate" not in headers


def test_the_clients_state_goes_with_its_trace_and_the_span_is_ours() -> None:
    made = a_trace(HTTP_TRACEPARENT=PARENT, HTTP_TRACESTATE="vendor=1")
    headers = made.passed_on()
    match = TRACEPARENT.fullmatch(headers["traceparent"])
    assert match is not None
    assert (match[1], match[3]) == (TRACE_ID, "01")
    assert match[2] != SPAN_ID
    assert headers == made.passed_on()
    assert headers["tracestate"] == "vendor=1"


class Listening(StandIn):
    """Remembers what it was told besides the ids."""

    def predict(self, *arguments: Any) -> Any:
        self.told = arguments[-1]
        return super().predict(*arguments)


def test_the_model_server_gets_the_trace_and_the_event_keeps_it(tmp_path: Path) -> None:
    server = Listening()
    with running_app(tmp_path, server) as api:
        api.analyze(**{"traceparent": PARENT})
        assert dict(server.told)["traceparent"].startswith(f"00-{TRACE_ID}-")
        api.analyze()
        first, second = api.events()
    assert (first.trace_id, second.trace_id) == (TRACE_ID, None)


def test_an_engine_gets_the_trace_and_the_event_keeps_it(gateway: Gateway) -> None:
    gateway.engine.script = lambda asked: whole(completion("all good here"))
    gateway.api.client.post(
        "/v1/chat/completions",
        json={"model": MODEL, "messages": HELLO},
        headers={**USER, "traceparent": PARENT, "tracestate": "vendor=1"},
    )
    [asked] = gateway.engine.asked
    assert asked.headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert asked.headers["tracestate"] == "vendor=1"
    [event] = gateway.api.events()
    assert event.trace_id == TRACE_ID
