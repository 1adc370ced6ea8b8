"""What /v1/chat/completions adds to calling an engine directly; the engine is a mock that says so.

The gateway has a core of its own; the mock and the load generator share the others.
`benchmarks.litellm_beside` measures the LiteLLM proxy in the same way.
"""

from __future__ import annotations

import json
import os
import re
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.api import TEXT, cores, pinned, processor_seconds
from benchmarks.load import Load, post, run
from benchmarks.model_server import Row, row
from tallybook.processes import free_port

CHAT = "/v1/chat/completions"
DIRECT = "the mock engine directly"
_MOST_FILES = 8192
CLIENTS = 32
_SECONDS = 3.0
_ROUNDS = 3
_STREAMS = 32  # while the time of each chunk is looked at
_CHUNK_SECONDS = 0.05
_CHUNKS = 60
_OPEN = 1000
_TUNABLES = "glibc.malloc.tcache_count=0"  # or each thread keeps what a request once needed: 40 KB
_HEAD = "Content-Type: application/json\r\nX-User-ID: bench\r\nX-Project-ID: bench\r\n"
_SENT_AT = re.compile(rb'"content": ?"(\d+) "')


def rows(_models_dir: Path) -> Iterator[Row]:
    """Measure for some 40 seconds."""
    raise_file_limit()
    with ExitStack() as stack:
        engine = stack.enter_context(mock_engine())
        port, pid = stack.enter_context(gateway(engine))
        yield from chat_rows("/v1 chat", engine, port, pid)
        yield from _stream_rows(engine, port)
        yield from _open_rows(port, pid)


def chat_rows(name: str, engine: int, port: int, pid: int, clients: int = CLIENTS) -> Iterator[Row]:
    """Whole answers: latency beside the mock's, one request at a time; requests a second of a busy core."""
    request = chat_request()
    run(("127.0.0.1", port), request, clients, _SECONDS)
    alone: dict[int, list[Load]] = {engine: [], port: []}
    for _ in range(_ROUNDS):  # in turn, so that what disturbs one disturbs the other
        for which, loads in alone.items():
            loads.append(run(("127.0.0.1", which), request, 1, _SECONDS / _ROUNDS))
    for quantile in ("p50", "p99"):
        ours, direct = (
            sorted(getattr(load, f"{quantile}_seconds") for load in loads)[_ROUNDS // 2] * 1e3
            for loads in (alone[port], alone[engine])
        )
        yield row(f"{name}: added latency, {quantile}", ours - direct, "ms", ours / direct, DIRECT)
    before = processor_seconds(pid)
    load = run(("127.0.0.1", port), request, clients, _SECONDS)
    used = processor_seconds(pid) - before
    yield row(f"{name}: requests a second of a core", load.requests / used, "req/s/core")
    yield row(f"{name}: {clients} clients, as they saw it", load.requests_per_second, "req/s")
    if failures := load.failures + sum(one.failures for one in alone[port]):
        raise RuntimeError(f"{name} gave {failures} answers other than 200: nothing was measured")


def chat_request(**more: object) -> bytes:
    """A chat with one text of 50 characters."""
    messages = [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": TEXT}]
    body = json.dumps({"model": "chat", "messages": messages, "max_tokens": 100, **more}, ensure_ascii=False)
    return post(CHAT, body.encode(), _HEAD)


def _stream_rows(engine: int, port: int) -> Iterator[Row]:
    request = chat_request(stream=True, mock_chunks=_CHUNKS, mock_seconds=_CHUNK_SECONDS)
    run_streams(port, request, 4, _CHUNKS)
    direct = run_streams(engine, request, _STREAMS, _CHUNKS)
    ours = run_streams(port, request, _STREAMS, _CHUNKS)
    rate = _STREAMS / _CHUNK_SECONDS
    for quantile in (0.5, 0.99):
        there, here = (one[int(len(one) * quantile)] * 1e3 for one in (direct, ours))
        name = (
            f"/v1 streams: added to a chunk, {_STREAMS} streams, {rate:.0f} chunks/s, p{quantile * 100:.0f}"
        )
        yield row(name, here - there, "ms", here / there, DIRECT)


def run_streams(port: int, request: bytes, streams: int, chunks: int) -> list[float]:
    """How long each chunk was under way, in seconds, sorted."""
    selector = selectors.DefaultSelector()
    rests: dict[socket.socket, bytes] = {}
    connection: socket.socket
    for number in range(streams):
        connection = socket.create_connection(("127.0.0.1", port))
        selector.register(connection, selectors.EVENT_READ, connection)
        rests[connection] = b""
        connection.sendall(request)
        time.sleep(_CHUNK_SECONDS / streams if number else 0)  # so that they don't speak in one breath
    times: list[float] = []
    while rests:
        for key, _ in selector.select(10):
            connection = key.data
            data, now = connection.recv(65536), time.monotonic_ns()
            *lines, rest = (rests[connection] + data).split(b"\n")
            rests[connection] = rest
            times += [(now - int(sent)) / 1e9 for line in lines for sent in _SENT_AT.findall(line)]
            if not data or b"data: [DONE]" in lines:
                selector.unregister(connection)
                connection.close()
                del rests[connection]
    if len(times) != streams * chunks:
        raise RuntimeError(f"{len(times)} chunks came of {streams * chunks}")
    return sorted(times)


def _open_rows(port: int, pid: int) -> Iterator[Row]:
    """Many streams open at once, each saying something every two seconds."""
    request = chat_request(stream=True, mock_chunks=1000, mock_seconds=2.0)
    before = _resident_kilobytes(pid)
    connections = []
    for _ in range(_OPEN):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request)
        connections.append(connection)
        time.sleep(0.002)
    time.sleep(4.0)
    alive = sum(len(_SENT_AT.findall(connection.recv(65536))) > 0 for connection in connections)
    grown = _resident_kilobytes(pid) - before
    for connection in connections:
        connection.close()
    yield row(f"/v1 streams: held of {_OPEN} opened", alive, "streams")
    yield row("/v1 streams: memory for each, GLIBC_TUNABLES as in docker/", grown / _OPEN, "KB")


@contextmanager
def mock_engine() -> Iterator[int]:
    """The mock as a process; gives its port."""
    port = free_port()
    _, other_cores = cores()
    command = [sys.executable, "-m", "benchmarks.mock_engine", str(port)]
    with server(command, {}, other_cores), pinned(other_cores):  # the load generator's too
        yield port


@contextmanager
def gateway(engine: int) -> Iterator[tuple[int, int]]:
    """The API before the mock, as a process; gives its port and process id."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        (folder / "models.toml").write_text(
            f'[[engines]]\nmodel = "chat"\nmodel_version = "1"\nengine_model = "mock"\nkinds = ["chat"]\n'
            f'addresses = ["http://127.0.0.1:{engine}/v1"]\ntokenizer = "tokenizer"\n'
            "max_context_tokens = 32768\n"
        )
        settings = {
            "engines_file": folder / "models.toml",
            "journal_dir": folder / "journal",
            "access_url": f"sqlite:///{folder / 'access.db'}",
            "models_dir": folder / "models",
            "model_server_address": "127.0.0.1:9",
            "engine_requests": 2048,
            "quota_user_day_tokens": 10**12,  # counted, and never reached
            "quota_project_month_tokens": 10**12,
            "quota_requests_per_minute": 10**12,
            "ledger_url": f"sqlite:///{folder / 'ledger.db'}",
            "config": folder / "none.toml",
        }
        environment = {f"TALLYBOOK_{name.upper()}": str(value) for name, value in settings.items()}
        environment["GLIBC_TUNABLES"] = _TUNABLES
        command = [sys.executable, "-m", "tallybook.cli", "serve", "--port", str(port)]
        with server(command, environment, cores()[0]) as pid:
            yield port, pid


@contextmanager
def server(command: Sequence[str], environment: Mapping[str, str], on: set[int]) -> Iterator[int]:
    """A server that prints a line when it is ready, on a core of its own; gives its process id."""
    process = subprocess.Popen(  # noqa: S603 -- our own
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=partial(os.sched_setaffinity, 0, on),
    )
    try:
        if not (process.stdout and process.stdout.readline()):
            raise RuntimeError(f"did not start: {' '.join(command)}")
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def raise_file_limit() -> None:
    """Allow as many open connections as are measured; servers that are started later inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_MOST_FILES, most), most))


def _resident_kilobytes(pid: int) -> int:
    """Of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = [Path(f"/proc/{one}/status").read_text() for one in (str(pid), *children)]
    return sum(int(line.split()[1]) for text in status for line in text.splitlines() if "VmRSS" in line)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of characters with a chat template, as costly as a small real one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokens = [
        "[UNK]",
        *sorted({*TEXT, *map(chr, range(33, 127)), *(f"##{chr(code)}" for code in range(33, 127))}),
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106  a token
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}<assistant>"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


if __name__ == "__main__":
    from benchmarks.__main__ import line

    for measured in rows(Path("models")):
        print(line(measured), flush=True)  # noqa: T201 -- a report
