"""The gateway beside the LiteLLM proxy: `python -m benchmarks.litellm_beside [VENV]`.

Both stand before the same mock engine, take turns, and have the same core for themselves. LiteLLM comes from
PyPI into an environment of its own, var/litellm-venv if no other is named, which is made if it is not there.
It has no database and no keys here: it only passes on. Ours counts, records durably and checks as always.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.__main__ import line
from benchmarks.api import cores, processor_seconds
from benchmarks.gateway import (
    chat_request,
    chat_rows,
    gateway,
    mock_engine,
    raise_file_limit,
)
from benchmarks.load import run
from benchmarks.model_server import Row, row
from tallybook.processes import answers, free_port

VENV = Path("var/litellm-venv")
_STARTS_SECONDS = 90
_CLIENTS = 4  # that both are asked by at once: with more LiteLLM's answers take seconds
_SECONDS = 4.0
_VARIABLES = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks the internet for prices first
    "LITELLM_LOG": "ERROR",
    # Without a key it does not start, and with one it would check it at each request.
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}


def rows(environment: Path) -> Iterator[Row]:
    """Measure for about half a minute, once LiteLLM has started, which takes as long."""
    with ExitStack() as stack:
        raise_file_limit()
        engine = stack.enter_context(mock_engine())
        ours = stack.enter_context(gateway(engine))
        theirs = stack.enter_context(_litellm(environment, engine))
        found: dict[str, float] = {}
        for name, (port, pid) in (("Tallybook", ours), ("LiteLLM", theirs)):
            yield from chat_rows(name, engine, port, pid, _CLIENTS)
        for name, (port, pid) in (("LiteLLM", theirs), ("Tallybook", ours)):
            before = processor_seconds(pid)
            load = run(("127.0.0.1", port), chat_request(), _CLIENTS, _SECONDS)
            found[name] = (load.requests - load.failures) / (processor_seconds(pid) - before)
        name = "Tallybook beside LiteLLM: requests a second of a core"
        yield row(name, found["Tallybook"], "req/s/core", found["Tallybook"] / found["LiteLLM"], "LiteLLM")


def install(environment: Path) -> None:
    """Make the environment, if it is not there."""
    if not (environment / "bin" / "litellm").exists():
        venv.create(environment, with_pip=True)
        command = [str(environment / "bin" / "pip"), "install", "--quiet", "litellm[proxy]"]
        subprocess.run(command, check=True)  # noqa: S603 -- our own


@contextmanager
def _litellm(environment: Path, engine: int) -> Iterator[tuple[int, int]]:
    """The proxy before the mock, warmed up; gives its port and process id.

    Raises: RuntimeError: it ended. TimeoutError: it did not begin to answer.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(
            "model_list:\n  - model_name: chat\n    litellm_params:\n      model: openai/mock\n"
            f"      api_base: http://127.0.0.1:{engine}/v1\n      api_key: none\n"
        )
        command = [str((environment / "bin" / "litellm").absolute()), "--config", "config.yaml"]
        complaints = folder / "stderr"
        process = subprocess.Popen(  # noqa: S603 -- from PyPI, as the reader asked for
            [*command, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
            cwd=folder,
            env={**os.environ, **_VARIABLES},
            stdout=subprocess.DEVNULL,  # it talks a lot, and would wait for a pipe that nobody reads
            stderr=complaints.open("wb"),
            preexec_fn=partial(os.sched_setaffinity, 0, cores()[0]),
        )
        try:
            _wait_for(process, port, complaints)
            run(("127.0.0.1", port), chat_request(), 1, 5.0)  # its first answers take seconds
            yield port, process.pid
        finally:
            process.terminate()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, complaints: Path) -> None:
    deadline = time.monotonic() + _STARTS_SECONDS
    while not answers(f"http://127.0.0.1:{port}/health/liveliness"):
        if process.poll() is not None:
            raise RuntimeError(f"LiteLLM ended: {complaints.read_text()[-1000:]}")
        if time.monotonic() > deadline:
            raise TimeoutError("LiteLLM did not begin to answer")
        time.sleep(0.5)


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else VENV
    install(chosen)
    for measured in rows(chosen):
        print(line(measured), flush=True)  # noqa: T201 -- a report
