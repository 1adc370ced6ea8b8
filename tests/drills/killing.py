"""Kills the API under load, again and again, and remembers what its clients saw."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson

from tests.apis import ApiProcess
from tests.engines import (
    MODEL,
    Asked,
    chunk,
    completion,
    stand_in_engine,
    streamed,
    usage,
    usage_chunk,
    whole,
    write_engines,
)
from tests.modelservers import wait_until

USERS = [f"user-{number}" for number in range(12)]
_MOST_ANSWERS = 150  # between a restart and the next kill


@dataclass
class Drill:
    """What came of it."""

    journal_dir: Path
    answered: dict[str, dict[str, int]] = field(default_factory=dict)  # usage by request id
    unanswered: int = 0  # requests that ended in a broken connection
    refused: dict[str, int] = field(default_factory=dict)  # answers other than 200, by their code
    used: dict[str, int] = field(default_factory=dict)  # by user, as the API's quotas have it in the end
    reserved: int = 0  # tokens, likewise

    def has_answered(self, enough: int) -> bool:
        """Whether so many requests were answered."""
        return len(self.answered) >= enough


def kill_under_load(folder: Path, models_dir: Path, kills: int, seed: int = 0, **settings: str) -> Drill:
    """SIGKILL all of the API's processes so many times while a dozen users ask, then end it gently.

    They send texts to /analyze, chats, and streamed chats in turn. The engine of the chats is a stand-in.
    The kills fall after random numbers of answers. `answered` holds every request that a client saw
    answered with 200; their events must be in `journal_dir`, each once, with the same tokens.
    """
    drill = Drill(folder / "journal")
    where = random.Random(seed)  # noqa: S311  when to kill, no secret
    with model_server(models_dir) as address, stand_in_engine() as engine:
        engine.script = _chat
        settings["engines_file"] = str(write_engines(folder, {"addresses": [engine.address]}))
        api = ApiProcess(folder, models_dir, address, None, **settings)
        api.wait_until_ready()
        stop = threading.Event()
        clients = [threading.Thread(target=_send, args=(user, api.address, drill, stop)) for user in USERS]
        for client in clients:
            client.start()
        try:
            for _ in range(kills):
                enough = len(drill.answered) + where.randint(1, _MOST_ANSWERS)
                wait_until(partial(drill.has_answered, enough))
                api.kill()
                api = ApiProcess(folder, models_dir, address, api.port, **settings)
                api.wait_until_ready()
        finally:
            stop.set()
            for client in clients:
                client.join()
            _look_at_quotas(drill, api.address)
            api.process.send_signal(signal.SIGTERM)
            assert api.process.wait(30) == 0
    return drill


def _look_at_quotas(drill: Drill, address: str) -> None:
    with httpx.Client(base_url=address, timeout=30) as client:
        for user in USERS:
            told = client.get("/v1/quota", headers=_headers(user)).json()["quotas"]["user_day_tokens"]
            drill.used[user] = told["used"]
        [reserved] = re.findall(
            r"^tallybook_reserved_tokens (\S+)$", client.get("/metrics").text, re.MULTILINE
        )
        drill.reserved = int(float(reserved))


def _headers(user: str) -> dict[str, str]:
    return {"X-User-ID": user, "X-Project-ID": f"project-{user[-1]}"}


def _send(user: str, address: str, drill: Drill, stop: threading.Event) -> None:
    turn = 0
    headers = _headers(user)
    with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
        while not stop.is_set():
            turn += 1
            try:
                _ASK[turn % len(_ASK)](client, drill, turn)
            except httpx.ConnectError:  # nothing was sent
                stop.wait(0.02)
                continue
            except httpx.TransportError:
                drill.unanswered += 1


def _chat(asked: Asked) -> Iterable[bytes]:
    """What the engine says; how much depends on what it was asked."""
    said = usage(len(str(asked.body)), 2)
    if asked.body.get("stream"):
        return streamed(chunk("all "), chunk("good"), usage_chunk(said))
    return whole(completion("all good", said))


def _send_text(client: httpx.Client, drill: Drill, turn: int) -> None:
    _note(drill, client.post("/analyze", json={"text": f"hotel {turn} " + "很" * (turn % 40)}))


def _send_chat(client: httpx.Client, drill: Drill, turn: int) -> None:
    _note(drill, client.post("/v1/chat/completions", json=_asked(turn)))


def _send_stream(client: httpx.Client, drill: Drill, turn: int) -> None:
    """An answer that ended without [DONE] was not one."""
    body = {**_asked(turn), "stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        _note(drill, response)
        return
    *chunks, done = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")] or [""]
    if done != "[DONE]":
        raise httpx.RemoteProtocolError("the stream broke off")
    drill.answered[response.headers["x-request-id"]] = orjson.loads(chunks[-1])["usage"]


def _asked(turn: int) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": f"hotel {turn}"}]}


def _note(drill: Drill, response: httpx.Response) -> None:
    body = response.json()
    if response.status_code == 200:
        drill.answered[response.headers["x-request-id"]] = body["usage"]
    else:
        code = body["error"]["code"]
        drill.refused[code] = drill.refused.get(code, 0) + 1


_ASK = (_send_text, _send_chat, _send_stream)


@contextmanager
def model_server(models_dir: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tallybook.cli",
            "serve-model",
            "--port",
            "0",
            "--rest-port",
            "0",
            "--models-dir",
            str(models_dir),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TALLYBOOK_CONFIG": str(models_dir / "no.toml")},
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("Model server ready on "), ready
        yield ready.split()[4].rstrip(":")
    finally:
        process.terminate()
        process.wait()
