"""Kills the API under load, again and again, and remembers what its clients saw."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.apis import ApiProcess
from tests.modelservers import wait_until

CLIENTS = 12
_MOST_ANSWERS = 150  # between a restart and the next kill


@dataclass
class Drill:
    """What came of it."""

    journal_dir: Path
    answered: dict[str, dict[str, int]] = field(default_factory=dict)  # usage by request id
    unanswered: int = 0  # requests that ended in a broken connection
    refused: dict[str, int] = field(default_factory=dict)  # answers other than 200, by their code

    def has_answered(self, enough: int) -> bool:
        """Whether so many requests were answered."""
        return len(self.answered) >= enough


def kill_under_load(folder: Path, models_dir: Path, kills: int, seed: int = 0) -> Drill:
    """SIGKILL all of the API's processes so many times while a dozen users send texts, then end it gently.

    The kills fall after random numbers of answers. `answered` holds every request that a client saw
    answered with 200; their events must be in `journal_dir`, each once, with the same tokens.
    """
    drill = Drill(folder / "journal")
    where = random.Random(seed)  # noqa: S311  when to kill, no secret
    with model_server(models_dir) as address:
        api = ApiProcess(folder, models_dir, address)
        api.wait_until_ready()
        stop = threading.Event()
        clients = [
            threading.Thread(target=_send, args=(f"user-{number}", api.address, drill, stop))
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        try:
            for _ in range(kills):
                enough = len(drill.answered) + where.randint(1, _MOST_ANSWERS)
                wait_until(partial(drill.has_answered, enough))
                api.kill()
                api = ApiProcess(folder, models_dir, address, port=api.port)
                api.wait_until_ready()
        finally:
            stop.set()
            for client in clients:
                client.join()
            api.process.send_signal(signal.SIGTERM)
            assert api.process.wait(30) == 0
    return drill


def _send(user: str, address: str, drill: Drill, stop: threading.Event) -> None:
    turn = 0
    headers = {"X-User-ID": user, "X-Project-ID": f"project-{user[-1]}"}
    with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
        while not stop.is_set():
            turn += 1
            try:
                response = client.post("/analyze", json={"text": f"hotel {turn} " + "很" * (turn % 40)})
            except httpx.ConnectError:  # nothing was sent
                stop.wait(0.02)
                continue
            except httpx.TransportError:
                drill.unanswered += 1
                continue
            _note(drill, response.status_code, response.json())


def _note(drill: Drill, status: int, body: dict[str, Any]) -> None:
    if status == 200:
        drill.answered[body["request_id"]] = body["usage"]
    else:
        code = body["error"]["code"]
        drill.refused[code] = drill.refused.get(code, 0) + 1


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
