"""Releases under load: canary, promote and roll back by the command line, while clients ask steadily."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.apis import MODEL, ApiProcess, running_api
from tests.drills.killing import model_server
from tests.modelservers import wait_until

_CLIENTS = 10
_PATIENT = {"deadline_seconds": "60"}  # what is drilled is releases, not how busy the machine is


@dataclass
class Drill:
    """What came of it: each answered request's version and tokens by its id, and whatever went wrong."""

    journal_dir: Path
    answered: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def versions(self) -> Counter[str]:
        """How many requests each version has answered."""
        return Counter(version for version, _, _ in list(self.answered.values()))

    def asked_more(self, before: int, requests: int) -> bool:
        """Whether so many more requests were answered than `before`."""
        return len(self.answered) + len(self.failed) >= before + requests


def release_under_load(folder: Path, versions: Path, per_second: int, pause_requests: int) -> Drill:
    """Version 1 answers; 2 is its canary, promoted, rolled back; then a canary again, rolled back.

    `per_second` requests are sent all the while; between two steps `pause_requests` are answered.
    """
    models_dir = folder / "models"
    shutil.copytree(versions / "1", models_dir / MODEL / "1")
    drill = Drill(folder / "journal")
    with model_server(models_dir) as address, running_api(folder, models_dir, address, **_PATIENT) as api:
        commands = _Commands(folder, models_dir, address, drill, pause_requests)
        commands.run("adopt")
        stop = threading.Event()
        clients = [
            threading.Thread(target=_send, args=(number, per_second / _CLIENTS, api, drill, stop))
            for number in range(_CLIENTS)
        ]
        began = time.monotonic()
        for client in clients:
            client.start()
        try:
            shutil.copytree(versions / "2", models_dir / MODEL / ".2")
            (models_dir / MODEL / ".2").rename(models_dir / MODEL / "2")
            commands.run("stage")
            commands.run("canary", "--share", "40")
            commands.run("canary", "--share", "80")
            commands.run("promote")
            commands.run("rollback")
            commands.run("canary", "2", "--share", "50")
            commands.run("rollback")
        finally:
            stop.set()
            for client in clients:
                client.join()
        drill.seconds = time.monotonic() - began
    return drill


class _Commands:
    """`tallybook release`, as an operator runs it; waits for some requests after each step."""

    def __init__(
        self, folder: Path, models_dir: Path, address: str, drill: Drill, pause_requests: int
    ) -> None:
        self._environment = {
            **os.environ,
            "TALLYBOOK_CONFIG": str(folder / "no.toml"),
            "TALLYBOOK_MODELS_DIR": str(models_dir),
            "TALLYBOOK_JOURNAL_DIR": str(drill.journal_dir),
            "TALLYBOOK_MODEL_SERVER_ADDRESS": address,
        }
        self._drill = drill
        self._pause_requests = pause_requests

    def run(self, step: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "tallybook.cli", "release", step, MODEL, *arguments, "--by", "drill"]
        told = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=120)
        assert told.returncode == 0, told.stdout + told.stderr
        if step != "adopt":
            before = len(self._drill.answered) + len(self._drill.failed)
            wait_until(lambda: self._drill.asked_more(before, self._pause_requests))


def _send(number: int, per_second: float, api: ApiProcess, drill: Drill, stop: threading.Event) -> None:
    """Ask at a steady rate, as one of many users each time; a slow answer is caught up with."""
    turn, began = 0, time.monotonic()
    with httpx.Client(base_url=api.address, timeout=90) as client:
        while not stop.wait(max(0.0, began + turn / per_second - time.monotonic())):
            turn += 1
            headers = {"X-User-ID": f"user-{number}-{turn % 20}"}
            try:
                response = client.post("/analyze", json={"text": "hotel " * (1 + turn % 9)}, headers=headers)
                body = response.json()
                if response.status_code != 200:
                    drill.failed.append(response.text)
                    continue
                usage = body["usage"]
                told = (body["model_version"], usage["prompt_tokens"], usage["completion_tokens"])
                drill.answered[body["request_id"]] = told
            except httpx.TransportError as error:
                drill.failed.append(repr(error))
