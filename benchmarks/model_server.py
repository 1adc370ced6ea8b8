"""How fast the embedded model server answers, beside an empty gRPC call and the same model called directly.

Server and clients are processes of their own, as in production; the clients are the API's own client,
one thread each. The direct calls run in a third process, one batch of as many texts as there are clients.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from serving.inference import ModelClient

NAME = "review-sentiment"
CLIENTS = (1, 8, 32)
_SECONDS = 1.5
_WARM_UP_SECONDS = 0.3
_TIMEOUT_SECONDS = 10.0
_TEXTS = 256
_COMPUTE_THREADS = 1  # of the direct calls, as the server takes on two cores

Row = dict[str, Any]


def rows(models_dir: Path) -> list[Row]:
    """Measure for some 25 seconds: requests a second and latencies; `ratio` is to the limit named in `of`.

    Takes the newest `review-sentiment` in models_dir, or a small encoder made on the spot.
    """
    with tempfile.TemporaryDirectory() as scratch:
        kind = "trained"
        if not any((models_dir / NAME).glob("*/saved_model.pb")):
            kind, models_dir = "random weights", Path(scratch)
            _python("-m", "benchmarks.encoder_model", str(models_dir / NAME / "1"))
        version = max(int(path.parent.name) for path in (models_dir / NAME).glob("*/saved_model.pb"))
        direct = json.loads(_python("-m", "benchmarks.model_server", str(models_dir / NAME / str(version))))
        with running_server(models_dir) as address:
            return _measure(address, version, kind, direct)


def _measure(address: str, version: int, kind: str, direct: dict[str, float]) -> list[Row]:
    texts = _texts()
    measured: list[Row] = []
    client = ModelClient(address)
    for clients in CLIENTS:

        def empty(_: int) -> object:
            return client.version_states(NAME, _TIMEOUT_SECONDS)

        def predict(turn: int) -> object:
            return client.predict(NAME, version, texts[turn % _TEXTS], _TIMEOUT_SECONDS)

        who = f"{clients} client{'s' if clients > 1 else ''}"
        idle, _ = _load(empty, clients)
        real, milliseconds = _load(predict, clients)
        alone = direct[str(clients)]
        limit, of = min((idle, f"empty call, {who}"), (alone, f"direct call, batch of {clients}"))
        measured += [
            row(f"model server: empty call, {who}", idle, "requests/s"),
            row(f"model server: direct call, batch of {clients} ({kind})", alone, "texts/s"),
            row(f"model server: Predict, {who} ({kind})", real, "requests/s", real / limit, of),
            row(f"model server: Predict, {who}, median", milliseconds[0], "ms"),
            row(f"model server: Predict, {who}, 99th percentile", milliseconds[1], "ms"),
        ]
    client.close()
    return measured


def row(name: str, value: float, unit: str, ratio: float | None = None, of: str | None = None) -> Row:
    """One measurement, as every benchmark gives it."""
    return {"name": name, "value": value, "unit": unit, "ratio": ratio, "of": of}


def _load(call: Callable[[int], object], clients: int) -> tuple[float, tuple[float, float]]:
    """Call from so many threads at once: calls a second, and the median and 99th percentile in ms."""
    seconds: list[list[float]] = [[] for _ in range(clients)]
    counting_from = time.perf_counter() + _WARM_UP_SECONDS
    until = counting_from + _SECONDS

    def work(number: int) -> None:
        turn = number
        while (start := time.perf_counter()) < until:
            call(turn)
            if start >= counting_from:
                seconds[number].append(time.perf_counter() - start)
            turn += clients

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = np.concatenate([np.array(own) for own in seconds])
    median, slow = np.percentile(every, (50, 99)) * 1_000
    return len(every) / (time.perf_counter() - counting_from), (float(median), float(slow))


def _texts() -> list[list[int]]:
    """Token ids of texts as long as reviews are: mostly some dozens of tokens, a few over a hundred."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3.4, 0.6, _TEXTS).astype(int), 5, 128)
    return [[2, *random.integers(5, 1_000, int(length) - 2).tolist(), 3] for length in lengths]


def _direct(folder: Path) -> dict[str, float]:
    """Texts a second of the same model and texts without server or protocol, by size of the batch."""
    from serving.model_server.batcher import join
    from serving.model_server.loaded_model import LoadedModel

    model = LoadedModel(folder, _COMPUTE_THREADS)
    arrays = [np.array([ids], np.int32) for ids in _texts()]
    inputs = [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in arrays]
    # Texts of about the same length together, as the server does.
    inputs.sort(key=lambda one: one["input_ids"].shape[1])
    found = {}
    for size in CLIENTS:
        batches = [join(batch) for batch in _chunks(inputs, size)]
        done, counting_from = 0, 0.0
        started = time.perf_counter()
        while (now := time.perf_counter()) < started + _WARM_UP_SECONDS + 1:
            if not counting_from and now >= started + _WARM_UP_SECONDS:
                done, counting_from = 0, now
            model.run("serving_default", batches[done % len(batches)])
            done += 1
        found[str(size)] = done * size / (time.perf_counter() - counting_from)
    return found


def _chunks(inputs: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]


@contextmanager
def running_server(models_dir: Path) -> Iterator[str]:
    """The embedded model server as a process of its own; gives its address."""
    command = "from serving.model_server.cli import serve_model; serve_model()"
    process = subprocess.Popen(  # noqa: S603  our own server
        [sys.executable, "-c", command, "--port", "0", "--models-dir", str(models_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        ready = process.stdout.readline() if process.stdout else ""
        if not ready.startswith("Model server ready on "):
            raise RuntimeError(f"the model server did not start, and said {ready!r}")
        yield ready.split()[4].rstrip(":")
    finally:
        process.terminate()
        process.wait()


def _python(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603  our own


def main(arguments: Sequence[str]) -> None:
    """Measure and print; given the folder of one version instead of models_dir, its direct calls only."""
    target = Path(arguments[0] if arguments else "models")
    if (target / "saved_model.pb").exists():
        print(json.dumps(_direct(target)))  # noqa: T201  for the process that asked
        return
    for measured in rows(target):
        share = f"{measured['ratio']:7.0%} of {measured['of']}" if measured["of"] else ""
        print(f"{measured['name']:62} {measured['value']:9,.1f} {measured['unit']:10} {share}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
