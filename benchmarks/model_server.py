"""How fast the embedded model server answers, beside the same SavedModel called in process.

Server and clients are processes of their own, as in production; the clients are the API's own client,
one thread each. The direct calls run in a third process, one batch of as many texts as there are clients,
eight of BERT-base at most, whose texts cost the same in any larger batch.
TALLYBOOK_BENCH_FULL=1 measures BERT-base as well, which takes two minutes more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encoder_model import SIZES
from serving.errors import ApiError
from serving.inference import ModelClient

NAME = "review-sentiment"  # the trained model, which other benchmarks serve
CLIENTS = (1, 8, 32, 128)
LENGTHS = (32, 128)
LONG = 2_000
_SECONDS = {"small": 1.5, "bert-base": 4.0}  # of counting, after half as long of warming up
_LARGEST_DIRECT = {"small": 128, "bert-base": 8}
_PATIENCE_SECONDS = 20.0
_COMPUTE_THREADS = 1  # of the direct calls, as the server takes on two cores

Row = dict[str, Any]


def rows(models_dir: Path) -> list[Row]:
    """Measure for about a minute: requests a second; `ratio` is to direct calls, by `of`.

    The models have random weights, so `models_dir` is not looked at.
    """
    measured: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in SIZES if os.environ.get("TALLYBOOK_BENCH_FULL") else ("small",):
            _python("-m", "benchmarks.encoder_model", str(folder / name / "1"), name)
            direct = json.loads(_python("-m", "benchmarks.model_server", str(folder / name / "1"), name))
            with running_server(folder) as address:
                client = ModelClient(address)
                measured += _throughput(client, name, direct)
                if name == "small":
                    measured += _behind_a_long_one(client, name)
                client.close()
    return measured


def _throughput(client: ModelClient, name: str, direct: dict[str, float]) -> Iterator[Row]:
    for length in LENGTHS:
        ids = _ids(length)
        for clients in CLIENTS:
            answered, _ = _load(client, name, ids, clients, _SECONDS[name])
            batch = min(clients, _LARGEST_DIRECT[name])
            alone = direct[f"{length}/{batch}"]
            who = f"{clients} client{'s' if clients > 1 else ''}"
            yield row(
                f"model server: {name}, {length} tokens, {who}",
                answered,
                "requests/s",
                answered / alone,
                f"{alone:,.1f}/s in process, batch of {batch}",
            )


def _behind_a_long_one(client: ModelClient, name: str) -> Iterator[Row]:
    """Latencies of eight clients' short texts, alone and while one more client sends long ones."""
    _, alone = _load(client, name, _ids(32), 8, 2.0)
    stop = threading.Event()

    def send_long() -> None:
        while not stop.is_set():
            client.predict(name, 1, _ids(LONG), _PATIENCE_SECONDS)

    sender = threading.Thread(target=send_long)
    sender.start()
    _, beside = _load(client, name, _ids(32), 8, 2.0)
    stop.set()
    sender.join()
    for percentile, one, other in zip(("median", "99th percentile"), alone, beside, strict=True):
        yield row(
            f"model server: {name}, 32 tokens, {percentile} beside texts of {LONG:,}",
            other,
            "ms",
            other / one,
            f"{one:.1f} ms without them",
        )


def row(name: str, value: float, unit: str, ratio: float | None = None, of: str | None = None) -> Row:
    """One measurement, as every benchmark gives it."""
    return {"name": name, "value": value, "unit": unit, "ratio": ratio, "of": of}


def _ids(length: int) -> list[int]:
    random = np.random.default_rng(length)
    return [2, *random.integers(5, 1_000, length - 2).tolist(), 3]


def _load(
    client: ModelClient, name: str, ids: list[int], clients: int, seconds: float
) -> tuple[float, tuple[float, float]]:
    """Ask from so many threads at once: answers a second, and the median and 99th percentile in ms."""
    finished: list[list[tuple[float, float]]] = [[] for _ in range(clients)]
    counting_from = time.perf_counter() + seconds / 2
    until = counting_from + seconds

    def work(number: int) -> None:
        while (start := time.perf_counter()) < until:
            try:
                # Who is not answered by the end need not be answered.
                client.predict(name, 1, ids, max(0.05, until - start))
            except ApiError:
                continue
            finished[number].append((start, time.perf_counter()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [pair for own in finished for pair in own if counting_from <= pair[1] <= until]
    if not every:
        return 0.0, (float("nan"), float("nan"))
    median, slow = np.percentile([end - start for start, end in every], (50, 99)) * 1_000
    return len(every) / seconds, (float(median), float(slow))


def _direct(folder: Path, name: str) -> dict[str, float]:
    """Texts a second of the same model without server or protocol, by "length/batch"."""
    from serving.model_server.loaded_model import LoadedModel

    model = LoadedModel(folder, _COMPUTE_THREADS)
    found = {}
    for length in LENGTHS:
        for size in sorted({min(clients, _LARGEST_DIRECT[name]) for clients in CLIENTS}):
            ids = np.array([_ids(length)] * size, np.int32)
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            model.run("serving_default", inputs)
            done, started = 0, time.perf_counter()
            while time.perf_counter() < started + _SECONDS[name] / 2:
                model.run("serving_default", inputs)
                done += 1
            found[f"{length}/{size}"] = done * size / (time.perf_counter() - started)
    return found


@contextmanager
def running_server(models_dir: Path) -> Iterator[str]:
    """The embedded model server as a process of its own; gives its address."""
    command = "from serving.model_server.cli import serve_model; serve_model()"
    ports = ["--port", "0", "--rest-port", "0"]
    process = subprocess.Popen(  # noqa: S603  our own server
        [sys.executable, "-c", command, *ports, "--models-dir", str(models_dir)],
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
    """Measure and print; given the folder of a version and its size, its direct calls only."""
    if len(arguments) == 2:
        print(json.dumps(_direct(Path(arguments[0]), arguments[1])))  # noqa: T201  for the process that asked
        return
    for measured in rows(Path("models")):
        share = f"{measured['ratio']:7.2f} of {measured['of']}" if measured["of"] else ""
        print(f"{measured['name']:66} {measured['value']:9,.1f} {measured['unit']:10} {share}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
