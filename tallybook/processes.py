"""Child processes that serve: started, watched until ready, and ended together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class ProcessFailedError(Exception):
    """A child ended though it should serve, or was not ready in time; the message holds its last words."""


class Processes:
    """A group of child processes; leaving the block ends each of them, gently first."""

    def __init__(self) -> None:
        self._running: list[tuple[str, subprocess.Popen[bytes], Path | None]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        module: str = "tallybook.cli",
    ) -> None:
        """Start a Python module, `tallybook` itself if none is named, with these arguments.

        Its output goes to `log`, else where ours goes.
        """
        output = log.open("ab") if log else None
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *command],
                env={**os.environ, **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,  # a Ctrl-C reaches us only: we end the children in order
            )
        finally:
            if output:
                output.close()
        self._running.append((name, process, log))

    def wait_until(self, ready: Callable[[], bool], timeout_seconds: float) -> None:
        """Wait for readiness. Raises: ProcessFailedError: a child has ended, or the time is over."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                names = ", ".join(name for name, _, _ in self._running)
                raise ProcessFailedError(
                    f"{names}: not ready after {timeout_seconds:.0f} s{self._last_words()}"
                )
            time.sleep(0.1)

    def check(self) -> None:
        """Raises: ProcessFailedError: a child has ended."""
        for name, process, log in self._running:
            status = process.poll()
            if status is not None:
                raise ProcessFailedError(f"{name} ended with status {status}{_tail(log)}")

    def stop(self, grace_seconds: float = 15.0) -> None:
        """End the children, the last started first: each finishes what it has accepted."""
        while self._running:
            _, process, _ = self._running.pop()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace_seconds)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it, or what it left behind: each leads a group
            process.wait()

    def _last_words(self) -> str:
        return "".join(_tail(log) for _, _, log in self._running)


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a GET of this address answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _tail(log: Path | None, lines: int = 15) -> str:
    if log is None:
        return ""
    last = log.read_text("utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join(["", f"the end of {log}:", *last])
