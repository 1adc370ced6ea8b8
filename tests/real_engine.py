"""A real engine for tests: the server of `transformers`, in an environment of its own, on a tiny model.

`make engine` makes the environment; where it is not there, tests that need it are skipped.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tallybook.processes import answers, free_port
from tests.modelservers import wait_until

ENVIRONMENT = Path(os.environ.get("TALLYBOOK_ENGINE_VENV", Path(__file__).parents[1] / "var" / "engine-venv"))
TINY_MODEL = Path(__file__).parent / "tools" / "tiny_llm.py"
NO_ENGINE = f"no engine in {ENVIRONMENT}: `make engine` makes it (torch and transformers, about 1 GB)"

needs_engine = pytest.mark.skipif(not (ENVIRONMENT / ".installed").exists(), reason=NO_ENGINE)


@contextmanager
def real_engine(folder: Path) -> Iterator[tuple[str, Path]]:
    """Its address, and the folder of its model and tokenizer."""
    model, port = folder / "tiny", free_port()
    subprocess.run(  # the fixture's own script
        [ENVIRONMENT / "bin" / "python", TINY_MODEL, model], check=True, capture_output=True, timeout=300
    )
    command = [str(ENVIRONMENT / "bin" / "transformers"), "serve", str(model), "--host", "127.0.0.1"]
    with (folder / "engine.log").open("wb") as log:
        engine = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu", "--default-seed", "7"],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(4):  # it imports torch, which may take longer than what else a test waits for
            with suppress(AssertionError):
                wait_until(lambda: engine.poll() is not None or answers(f"http://127.0.0.1:{port}/health"))
                break
        assert engine.poll() is None, (folder / "engine.log").read_text()
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        engine.terminate()
        engine.wait()
