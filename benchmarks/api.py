"""What a request to the API costs, beside an empty Flask view on the same server.

The server has a core of its own, the load generator another. "per core" counts the processor time that the
server used, so that other work on the machine disturbs it little. All views take turns, so that what
disturbs one disturbs the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.encoder_model import VOCABULARY_SIZE
from benchmarks.load import Load, post, run
from benchmarks.model_server import NAME, Row, row, running_server
from serving.settings import ServingSettings
from tallybook.processes import free_port

if TYPE_CHECKING:
    from flask import Flask

TEXT = "这家酒店的服务态度非常好，房间干净整洁，早餐也很丰富，下次来北京还会选择住在这里，推荐给大家入住。"
CLIENTS = 32
EMPTY = "empty Flask view"
VIEWS = {
    "empty": EMPTY,
    "tokens": "Flask view that counts the text's tokens",
    "bare": "/analyze, model stubbed, without journal",
    "stub": "/analyze, model stubbed, durable journal",
    "real": "/analyze, embedded model server, durable journal",
}
_CORES = sorted(os.sched_getaffinity(0))
_ROUNDS = 5
_SECONDS = 0.8
_WARM_UP_SECONDS = 0.8


def rows(models_dir: Path) -> list[Row]:
    """Measure for some 40 seconds.

    Takes the newest `review-sentiment` in models_dir, or a small encoder made on the spot.
    """
    body = json.dumps({"text": TEXT}, ensure_ascii=False).encode()
    request = post("/analyze", body, "X-User-ID: bench\r\nX-Project-ID: bench\r\n")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not any((models_dir / NAME).glob("*/saved_model.pb")):
            models_dir = folder / "models"
            _export(models_dir / NAME / "1")
        own_core, other_core = cores()
        stack.enter_context(pinned(other_core))  # inherited by the model server
        model_server = stack.enter_context(running_server(models_dir))
        servers = {
            view: stack.enter_context(_serving(view, folder, models_dir, model_server, own_core))
            for view in VIEWS
        }
        return _measure(servers, request)


def _measure(servers: Mapping[str, tuple[int, int]], request: bytes) -> list[Row]:
    found: dict[str, list[tuple[float, Load]]] = {view: [] for view in servers}
    for port, _ in servers.values():
        run(("127.0.0.1", port), request, CLIENTS, _WARM_UP_SECONDS)
    for _ in range(_ROUNDS):
        for view, (port, pid) in servers.items():
            before = processor_seconds(pid)
            load = run(("127.0.0.1", port), request, CLIENTS, _SECONDS)
            found[view].append((processor_seconds(pid) - before, load))
    per_core = {
        view: sum(load.requests for _, load in runs) / sum(seconds for seconds, _ in runs)
        for view, runs in found.items()
    }
    measured = []
    for view, runs in found.items():
        name, loads = VIEWS[view], [load for _, load in runs]
        ratio = None if view == "empty" else per_core[view] / per_core["empty"]
        measured += [
            row(f"API: {name}", per_core[view], "req/s/core", ratio, EMPTY if ratio else None),
            row(
                f"API: {name}, as clients saw it",
                _median(loads, lambda one: one.requests_per_second),
                "req/s",
            ),
            row(f"API: {name}, median", _median(loads, lambda one: one.p50_seconds * 1e3), "ms"),
            row(f"API: {name}, 99th percentile", _median(loads, lambda one: one.p99_seconds * 1e3), "ms"),
        ]
        if failures := sum(load.failures for load in loads):
            measured.append(row(f"API: {name}, answers other than 200", failures, "answers"))
    busiest = max(load.busy for runs in found.values() for _, load in runs)
    return [*measured, row("API: the load generator was busy at most", busiest * 100, "% of time")]


def _median(loads: Sequence[Load], figure: Callable[[Load], float]) -> float:
    return statistics.median(figure(load) for load in loads)


def cores() -> tuple[set[int], set[int]]:
    """A core for the server, and those for everything else, wherever this process is pinned by now."""
    first, *others = _CORES
    return {first}, set(others) or {first}


@contextmanager
def pinned(to: set[int]) -> Iterator[None]:
    """Keep this process, and what it starts meanwhile, on these cores."""
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, _CORES)


@contextmanager
def _serving(
    view: str, folder: Path, models_dir: Path, model_server: str, core: set[int]
) -> Iterator[tuple[int, int]]:
    """The API with this view as a process; gives its port and process id."""
    port = free_port()
    process = subprocess.Popen(  # noqa: S603  our own server
        [sys.executable, "-m", "benchmarks.api", view, str(port), str(folder), str(models_dir), model_server],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a line a request; a container's log costs about as little
        preexec_fn=partial(os.sched_setaffinity, 0, core),
    )
    try:
        if not (process.stdout and process.stdout.readline()):
            raise RuntimeError(f"the API did not start: {VIEWS[view]}")
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def processor_seconds(pid: int) -> float:
    """What a process and its children have used until now."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ticks = 0
    for one in (str(pid), *children):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class _StubModel:
    """Not a model server: answers at once, always the same."""

    def __init__(self, version: int) -> None:
        self._version = version
        self._answer = np.array([0.25, 0.75], np.float32)

    def predict(self, *_: object) -> Any:
        return self._answer

    def version_states(self, *_: object) -> dict[int, str]:
        return {self._version: "AVAILABLE"}

    def close(self) -> None:
        pass


class _NoJournal:
    """Not a journal: keeps nothing. Only here; the API itself can't be told to serve without one."""

    def append(self, *_: object) -> None:
        pass

    def waiting(self) -> int:
        return 0

    def problem(self) -> None:
        return None

    def close(self) -> None:
        pass


def _make_app(view: str, settings: ServingSettings) -> Flask:
    from flask import Flask, request

    from serving.app import build_app
    from serving.routes.analyze import read_body, text_of
    from serving.services import make_services
    from serving.tokenization import load_version

    newest = max(int(path.name) for path in (settings.models_dir / NAME).iterdir() if path.name.isdecimal())
    if view in ("empty", "tokens"):
        app = Flask(__name__, static_folder=None)
        version = load_version(settings.models_dir, NAME, newest)

        @app.post("/analyze")
        def answer() -> bytes:
            if view == "tokens":
                version.prompt_ids(text_of(read_body(request.environ, settings.max_body_bytes)))
            return b""

        return app
    model: Any = None if view == "real" else _StubModel(newest)
    journal: Any = _NoJournal() if view == "bare" else None
    return build_app(make_services(settings, model=model, journal=journal))


def _export(version: Path) -> None:
    """A small encoder with random weights, with a tokenizer of characters and a card."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    command = [sys.executable, "-m", "benchmarks.encoder_model", str(version)]
    subprocess.run(command, check=True)  # noqa: S603  our own
    others = [chr(code) for code in range(0x4E00, 0x9FA5) if chr(code) not in TEXT]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({*TEXT, *map(chr, range(33, 127))}), *others]
    ids = {token: number for number, token in enumerate(tokens[:VOCABULARY_SIZE])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))  # noqa: S106  a token of the vocabulary
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    definition = tokenizer.to_str().encode()
    card = {
        "name": NAME,
        "version": int(version.name),
        "labels": [
            {"name": "negative", "explanation": "这是一条负面评价"},
            {"name": "positive", "explanation": "这是一条正面评价"},
        ],
        "max_length_tokens": 128,
        "tokenizer_fingerprint": hashlib.sha256(definition).hexdigest(),
    }
    assets = version / "assets.extra"
    assets.mkdir()
    (assets / "tokenizer.json").write_bytes(definition)
    (assets / "model_card.json").write_text(json.dumps(card))


def main(arguments: Sequence[str]) -> None:
    """Serve one view, for the process that asked."""
    from serving.server import serve

    view, port, folder, models_dir, model_server = arguments
    settings = ServingSettings(
        port=int(port),
        model=NAME,
        models_dir=Path(models_dir),
        journal_dir=Path(folder) / f"journal-{view}",
        access_url=f"sqlite:///{folder}/access-{view}.db",
        ledger_url=f"sqlite:///{folder}/ledger-{view}.db",
        quota_user_day_tokens=10**12,  # counted, and never reached
        quota_project_month_tokens=10**12,
        quota_requests_per_minute=10**12,
        model_server_address=model_server,
    )
    serve(settings, partial(_make_app, view))


if __name__ == "__main__":
    main(sys.argv[1:])
