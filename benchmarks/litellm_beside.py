"""The gateway beside the LiteLLM proxy: `python -m benchmarks.litellm_beside [VENV]`.

Both stand before the same mock engine, take turns, and have the same core for themselves. LiteLLM comes from
PyPI into an environment of its own, var/litellm-venv if no other is named, which is made if it is not there.
It has no database and no keys here: it only passes on. Ours counts, records durably and checks as always.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.__main__ import line
from benchmarks.api import cores, processor_seconds
from benchmarks.gateway import (
    chat_request,
    chat_rows,
    gateway,
    mock_engine,
    raise_file_limit,
    server,
)
from benchmarks.load import run
from benchmarks.model_server import Row, row
from tallybook.processes import answers, free_port

VENV = Path("var/litellm-venv")
_STARTS_SECONDS = 180
_CLIENTS = 4  # that both are asked by at once: with more LiteLLM's answers take seconds


def rows(environment: Path) -> Iterator[Row]:
    """Measure for about half a minute."""
    with ExitStack() as stack:
        raise_file_limit()
        engine = stack.enter_context(mock_engine())
        ours = stack.enter_context(gateway(engine))
        theirs = stack.enter_context(_litellm(environment, engine))
        yield from chat_rows("Tallybook", engine, *ours)
        yield from chat_rows("LiteLLM", engine, *theirs, clients=_CLIENTS)
        found: dict[str, float] = {}
        for name, (port, pid) in (("LiteLLM", theirs), ("Tallybook", ours)):
            before = processor_seconds(pid)
            load = run(("127.0.0.1", port), chat_request(), _CLIENTS, 5.0)
            found[name] = load.requests / (processor_seconds(pid) - before)
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
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(
            "model_list:\n  - model_name: chat\n    litellm_params:\n      model: openai/mock\n"
            f"      api_base: http://127.0.0.1:{engine}/v1\n      api_key: none\n"
        )
        command = [str(environment / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
        variables = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        with server([*command, "--port", str(port), "--num_workers", "1"], variables, cores()[0]) as pid:
            deadline = time.monotonic() + _STARTS_SECONDS
            while not answers(f"http://127.0.0.1:{port}/health/liveliness"):
                if time.monotonic() > deadline:
                    raise TimeoutError("LiteLLM did not start")
                time.sleep(0.5)
            run(("127.0.0.1", port), chat_request(), 1, 10.0)  # its first answers take seconds
            run(("127.0.0.1", port), chat_request(), _CLIENTS, 10.0)
            yield port, pid


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else VENV
    install(chosen)
    for measured in rows(chosen):
        print(line(measured), flush=True)  # noqa: T201 -- a report
