"""/v1 as it is run: real Granian workers, before a stand-in for an engine."""

import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.apis import USER, ApiProcess, events_in
from tests.engines import (
    MODEL,
    StandInEngine,
    chunk,
    completion,
    stand_in_engine,
    streamed,
    usage_chunk,
    whole,
    write_engines,
)
from tests.modelservers import wait_until
from tests.serving.test_v1 import HELLO, events_of

STREAMS = 100
SLOW = b"POST %s HTTP/1.1\r\nHost: a\r\nX-User-ID: a\r\nContent-Length: 9999\r\n\r\n{"  # and no more


@contextmanager
def running(tmp_path: Path, **settings: str) -> Iterator[tuple[ApiProcess, StandInEngine]]:
    """The API as a process, before a stand-in; the model of /analyze is not there."""
    with stand_in_engine() as engine:
        file = write_engines(tmp_path, {"addresses": [engine.address]})
        api = ApiProcess(tmp_path, tmp_path, "127.0.0.1:9", None, engines_file=str(file), **settings)
        try:
            api.wait_until_listening()
            yield api, engine
        finally:
            api.kill()


CLIENT = httpx.Client(limits=httpx.Limits(max_connections=None), timeout=30, verify=False)  # noqa: S501


def stream(api: ApiProcess) -> Any:
    """A streamed chat; a context manager."""
    body = {"model": MODEL, "messages": HELLO, "stream": True}
    return CLIENT.stream("POST", f"{api.address}/v1/chat/completions", json=body, headers=USER)


def endless(engine: StandInEngine) -> Any:
    """A script that says a word a second until it is left."""

    def script(asked: object) -> Iterator[bytes]:
        yield from streamed(chunk("one"), done=False, end=False)
        for number in range(3000):
            engine.was_left.wait(0.01)
            yield b"" if number % 100 else list(streamed(chunk(" more"), done=False, end=False))[1]

    return script


def test_a_client_that_leaves_is_noticed_and_the_engine_is_told(tmp_path: Path) -> None:
    with running(tmp_path) as (api, engine):

        def script(asked: object) -> Iterator[bytes]:
            yield from streamed(chunk("one "), done=False, end=False)
            for _ in range(3000):
                engine.was_left.wait(0.01)
                yield list(streamed(chunk("more "), done=False, end=False))[1]

        engine.script = script
        with stream(api) as answer:
            assert b"one" in next(answer.iter_raw())
        assert engine.was_left.wait(30)
        [event] = wait_until(lambda: events_in(api.journal_dir))
        assert (event.status, event.usage_estimated) == (499, True)
        assert event.delivered_tokens is not None
        assert event.delivered_tokens <= event.completion_tokens
        assert event.completion_tokens >= 1


def test_chunks_arrive_one_by_one(tmp_path: Path) -> None:
    with running(tmp_path) as (api, engine):
        words = ["one ", "two ", "three "]
        turn: list[bytes] = []

        def arrived(pieces: int) -> bool:
            return len(turn) >= pieces

        def script(asked: object) -> Iterator[bytes]:
            first, *others = streamed(*map(chunk, words), usage_chunk())
            yield first
            for number, piece in enumerate(others):
                wait_until(partial(arrived, min(number, len(words))))
                yield piece

        engine.script = script
        with stream(api) as answer:
            turn.extend(answer.iter_raw())  # one after the other, while the engine waits for them
        assert len(turn) >= len(words) + 1
        assert events_of(b"".join(turn))[-1] == "[DONE]"


def test_a_stop_ends_streams_in_time_and_bills_what_they_had(tmp_path: Path) -> None:
    with running(tmp_path, deadline_seconds="0.5") as (api, engine):
        engine.script = endless(engine)
        with stream(api) as answer:
            pieces = answer.iter_raw()
            got = next(pieces)
            api.process.send_signal(signal.SIGTERM)
            got += b"".join(pieces)
        assert events_of(got)[-1]["error"]["code"] == "overloaded"
        assert api.process.wait(30) == 0
        [event] = events_in(api.journal_dir)
        assert event.status == 503
        assert 1 <= event.completion_tokens <= 3


@pytest.mark.parametrize("begins", [b"", whole(completion("never whole"))[0][:-5]], ids=["silent", "begun"])
def test_a_stop_ends_whole_answers_in_time_and_costs_nothing(tmp_path: Path, begins: bytes) -> None:
    with running(tmp_path, deadline_seconds="0.5") as (api, engine), ThreadPoolExecutor(1) as pool:

        def script(asked: object) -> Iterator[bytes]:
            yield begins
            engine.was_left.wait(30)

        engine.script = script
        body = {"model": MODEL, "messages": HELLO}
        path = f"{api.address}/v1/chat/completions"
        asking = pool.submit(CLIENT.post, path, json=body, headers=USER)
        wait_until(lambda: engine.asked)
        api.process.send_signal(signal.SIGTERM)
        answer = asking.result(30)
        engine.was_left.set()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert api.process.wait(30) == 0
        [event] = events_in(api.journal_dir)
        assert (event.status, event.total_tokens) == (503, 0)


def test_a_client_that_sends_slowly_ends_no_answer_that_others_await(tmp_path: Path) -> None:
    """Though nothing was sent to them for the deadline either."""
    with running(tmp_path, deadline_seconds="1") as (api, engine), ThreadPoolExecutor(2) as pool:
        may_answer = threading.Event()

        def script(asked: Any) -> Iterator[bytes]:
            assert may_answer.wait(30)
            yield from (
                streamed(chunk("at last"), usage_chunk())
                if asked.body.get("stream")
                else whole(completion("at last"))
            )

        engine.script = script
        path = f"{api.address}/v1/chat/completions"
        body = {"model": MODEL, "messages": HELLO}
        asking = [
            pool.submit(CLIENT.post, path, json={**body, "stream": stream}, headers=USER)
            for stream in (False, True)
        ]
        wait_until(lambda: len(engine.asked) == 2)
        with socket.create_connection(("127.0.0.1", api.port), timeout=30) as slow:
            slow.sendall(SLOW % b"/analyze")
            while not select.select([slow], [], [], 0.05)[0]:
                slow.sendall(b" ")
            assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")
        may_answer.set()
        for one in asking:
            assert "at last" in one.result(30).text


def test_many_streams_are_held_and_other_requests_answered_beside_them(tmp_path: Path) -> None:
    with running(tmp_path, engine_requests=str(STREAMS)) as (api, engine), ExitStack() as stack:
        engine.script = endless(engine)
        answers = [stack.enter_context(stream(api)).iter_raw() for _ in range(STREAMS)]
        assert all(b"one" in next(answer) for answer in answers)
        assert httpx.get(f"{api.address}/healthz").status_code == 200
        with stream(api) as one_too_many:
            assert one_too_many.status_code == 503
        stack.close()
        wait_until(lambda: len(events_in(api.journal_dir)) == STREAMS)
        assert {event.status for event in events_in(api.journal_dir)} == {499}


def test_slow_clients_are_refused_beyond_the_threads_and_leave_some_to_probes(tmp_path: Path) -> None:
    with running(tmp_path, threads="1", engine_requests="2") as (api, _), ExitStack() as stack:
        slow = []
        for path in [b"/v1/chat/completions"] * 8 + [b"/v1/quota/requests"] * 8:  # more than all threads
            client = stack.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=30))
            client.sendall(SLOW % path)
            slow.append(client)
        assert httpx.get(f"{api.address}/healthz", timeout=30).status_code == 200
        wait_until(lambda: len(select.select(slow, [], [], 0)[0]) == len(slow) - 1 - 2)
        for refused in select.select(slow, [], [], 0)[0]:
            assert refused.recv(65536).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("engines = 5", "engines_invalid"),
        ("[[engines]", "engines_invalid"),
        ("[[engines]]\nmodel = 'a'\nprice = 5", "engines_invalid"),
        (
            "[[engines]]\nmodel = 'a'\nmodel_version = '1'\naddresses = ['http://a/v1']\nkinds = ['chat']\n"
            "tokenizer = '.'\nmax_context_tokens = 9",
            "tokenizer_invalid",
        ),
    ],
)
def test_a_bad_file_of_engines_is_told_at_the_start(tmp_path: Path, content: str, code: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text(content)
    (tmp_path / "tokenizer.json").write_text('{"nothing": 1}')
    ran = subprocess.run(
        [sys.executable, "-m", "tallybook.cli", "serve"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 1
    assert code in ran.stderr
    assert "models.toml" in ran.stderr or "invalid: a: ." in ran.stderr
