"""`tallybook serve-model` as a process: one line when ready, an orderly end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.inference import ModelClient
from tests.savedmodels import tiny_probabilities

TIMEOUT_SECONDS = 60.0
NAME = "review-sentiment"


@contextmanager
def process(models_dir: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", "from serving.model_server.cli import serve_model; serve_model()"]
    running = subprocess.Popen(
        [*command, "--models-dir", str(models_dir), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def test_it_says_when_it_is_ready_answers_and_ends_in_order(models_dir: Path) -> None:
    with process(models_dir, "--port", "0", "--rest-port", "0") as running:
        assert running.stdout is not None
        ready = running.stdout.readline()
        found = re.fullmatch(r"Model server ready on (127\.0\.0\.1:\d+): review-sentiment 1\n", ready)
        assert found, ready + running.communicate()[1]
        client = ModelClient(found[1])
        assert client.predict(NAME, 1, [2, 9], TIMEOUT_SECONDS) == pytest.approx(
            tiny_probabilities([2, 9]), abs=1e-6
        )
        client.close()
        running.send_signal(signal.SIGTERM)
        out, errors = running.communicate(timeout=TIMEOUT_SECONDS)
        assert running.returncode == 0, errors
        assert out == ""
        assert "Traceback" not in errors
        assert "review-sentiment 1 is unloaded" in errors


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with process(tmp_path, "--port", str(port), "--rest-port", "0") as running:
            _, errors = running.communicate(timeout=TIMEOUT_SECONDS)
    assert running.returncode == 1
    assert f"Error: can't listen on 127.0.0.1:{port}: is another server running there?" in errors
    assert "Traceback" not in errors
