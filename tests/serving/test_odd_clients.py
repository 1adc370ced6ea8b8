"""Clients that are slow, leave half-way, or close their side early; and a clock that jumps."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.slow_bodies import SlowBodies
from tests.apis import ApiProcess, events_in, running_api, running_app
from tests.modelservers import running_server, wait_until

BODY = b'{"text":"hotel"}'
HEAD = b"POST /analyze HTTP/1.1\r\nHost: a\r\nX-User-ID: user-a\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, model_versions: Path) -> Iterator[ApiProcess]:
    models_dir = model_versions.parent
    with (
        running_server(models_dir) as server,
        running_api(tmp_path_factory.mktemp("odd"), models_dir, server.address, threads="4") as running,
    ):
        yield running


def connected(api: ApiProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", api.port), timeout=30)


def waiting(clients: list[socket.socket]) -> list[socket.socket]:
    """Those that nothing was answered to."""
    answered, _, _ = select.select(clients, [], [], 0)
    return [client for client in clients if client not in answered]


def test_slow_clients_take_the_threads_and_are_refused_beyond_them_and_cost_nothing(api: ApiProcess) -> None:
    before = len(events_in(api.journal_dir))
    with ExitStack() as stack:
        slow: list[socket.socket] = []

        def one_more() -> None:  # half a body
            slow.append(stack.enter_context(connected(api)))
            slow[-1].sendall(HEAD + BODY[:5])

        def refused() -> bool:
            if api.analyze().status_code == 503:
                return True
            one_more()  # this request may have had the thread that one of them would have taken
            return False

        for _ in range(4):  # as many as there are threads
            one_more()
        wait_until(refused)
        assert api.analyze().json()["error"]["code"] == "overloaded"
        wait_until(lambda: len(waiting(slow)) == 4)
        goes_on = waiting(slow)[0]
        goes_on.sendall(BODY[5:])
        assert goes_on.recv(65536).startswith(b"HTTP/1.1 200")
        assert api.analyze().status_code == 200
    wait_until(lambda: all(api.analyze().status_code == 200 for _ in range(4)))
    events = events_in(api.journal_dir)
    assert len({event.id for event in events}) == len(events) > before + 5


def test_a_client_that_leaves_in_the_middle_of_its_body_has_no_event(api: ApiProcess) -> None:
    before = len(events_in(api.journal_dir))
    for cut in (0, 1, len(HEAD) - 1, len(HEAD), len(HEAD) + 3):
        with connected(api) as leaving:
            leaving.sendall((HEAD + BODY)[:cut])
    assert api.analyze().status_code == 200
    assert len(events_in(api.journal_dir)) == before + 1


def test_a_client_that_closes_its_side_is_answered_or_billed_nothing_twice(api: ApiProcess) -> None:
    before = len(events_in(api.journal_dir))
    with connected(api) as half:
        half.sendall(HEAD + BODY)
        half.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := half.recv(65536):
            answer += chunk
    assert api.analyze().status_code == 200
    events = len(events_in(api.journal_dir)) - before - 1
    # The server may take the closed side for a client that left: then nobody saw the answer to its event.
    assert events in ((1,) if answer.startswith(b"HTTP/1.1 200") else (0, 1))


def test_a_clock_that_jumps_back_loses_and_doubles_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_app(tmp_path) as api:
        answers = [api.analyze().get_json()["request_id"]]
        for moment in (0.0, 4e9, 1.0, 1.0):
            monkeypatch.setattr(time, "time", lambda moment=moment: moment)
            answers.append(api.analyze().get_json()["request_id"])
        events = api.events()
    assert [event.id for event in events] == answers
    assert len(set(answers)) == 5
    assert all(0 <= event.duration_seconds < 60 for event in events)


@pytest.mark.parametrize("path", ["/analyze", "/v1/classify", "/v1/quota/requests"])
@pytest.mark.parametrize(
    ("framing", "start"),
    [
        (b"Content-Length: 1000000", b'{"te'),
        (b"Transfer-Encoding: chunked", b'4\r\n{"te\r\nf0000\r\n'),
    ],
    ids=["of a length", "in chunks"],
)
@pytest.mark.parametrize("trickles", [False, True], ids=["stops", "trickles"])
def test_a_body_that_does_not_come_in_time_is_refused_and_its_connection_closed(
    hasty: ApiProcess, path: str, trickles: bool, framing: bytes, start: bytes
) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nX-User-ID: user-a\r\n%s\r\n\r\n" % (path.encode(), framing)
    with connected(hasty) as slow:
        slow.sendall(head + start)
        while not select.select([slow], [], [], 0.05)[0]:
            if trickles:
                slow.sendall(b" ")
        answer = b"".join(iter(lambda: slow.recv(65536), b""))  # until the server closes
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"body_timeout"' in answer


def test_a_slow_body_behind_an_answered_request_is_refused_too(hasty: ApiProcess) -> None:
    with connected(hasty) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" + HEAD + BODY[:5])
        answers = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answers


def test_a_look_at_slow_clients_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[None] = []

    def look(self: SlowBodies) -> None:
        looks.append(None)
        if len(looks) > 1:
            raise SystemExit  # ends the thread that this test is
        raise RuntimeError

    monkeypatch.setattr(SlowBodies, "look", look)
    with pytest.raises(SystemExit):
        SlowBodies((), 1, deadline_seconds=0.01).watch()
    assert len(looks) == 2


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, model_versions: Path) -> Iterator[ApiProcess]:
    """One with a short deadline."""
    models_dir = model_versions.parent
    with (
        running_server(models_dir) as server,
        running_api(
            tmp_path_factory.mktemp("hasty"), models_dir, server.address, deadline_seconds="0.4"
        ) as running,
    ):
        yield running
