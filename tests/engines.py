"""A stand-in for an engine, for what no real engine does when it is told to: break, stall, lie.

The real engine of the tests is in tests/real_engine.py.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

MODEL = "chat"
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} </> {% endfor %}<assistant>"
)
_HEAD = "HTTP/1.1 {} OK\r\nContent-Type: {}\r\n"


class Asked:
    """A request that came to the stand-in."""

    def __init__(self, head: str, body: bytes) -> None:
        self.line = head.split("\r\n", 1)[0]
        self.headers = {
            name.lower(): value for name, value in (line.split(": ", 1) for line in head.split("\r\n")[1:])
        }
        self.body: dict[str, Any] = json.loads(body)


Script = Callable[[Asked], Iterable[bytes]]  # what goes over the wire, piece by piece


class StandInEngine:
    """Answers each request as its script says; ends the connection when the script raises."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.script: Script = lambda asked: whole(completion("all good here"))
        self.asked: list[Asked] = []
        self.connections = 0
        self.was_left = threading.Event()  # somebody closed a connection in the middle of an answer
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening, and end what is open."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def open_connections(self) -> int:
        """How many nobody has closed."""
        return sum(connection.fileno() != -1 for connection in self._open)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, EOFError):
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    data += _more(connection)
                head, _, rest = data.partition(b"\r\n\r\n")
                asked = Asked(head.decode(), b"{}")
                length = int(asked.headers["content-length"])
                while len(rest) < length:
                    rest += _more(connection)
                asked = Asked(head.decode(), rest[:length])
                data = rest[length:]
                self.asked.append(asked)
                for piece in self.script(asked):
                    try:
                        connection.sendall(piece)
                    except OSError:
                        self.was_left.set()
                        raise
                    if _has_left(connection):
                        self.was_left.set()
                        raise EOFError


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise EOFError
    return data


def _has_left(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.setblocking(True)


@contextmanager
def stand_in_engine() -> Iterator[StandInEngine]:
    """A stand-in that is listening."""
    engine = StandInEngine()
    try:
        yield engine
    finally:
        engine.close()


def whole(document: object, status: int = 200, headers: str = "") -> list[bytes]:
    """A whole answer."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    head = _HEAD.format(status, "application/json") + headers
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body]


def streamed(*chunks: object, done: bool = True, end: bool = True) -> Iterator[bytes]:
    """An answer by server-sent events, a chunk of HTTP for each; bytes go as they are."""
    yield (_HEAD.format(200, "text/event-stream") + "Transfer-Encoding: chunked\r\n\r\n").encode()
    for chunk in chunks:
        yield framed(chunk if isinstance(chunk, bytes) else b"data: " + json.dumps(chunk).encode() + b"\n\n")
    if done:
        yield framed(b"data: [DONE]\n\n")
    if end:
        yield b"0\r\n\r\n"


def framed(data: bytes) -> bytes:
    """A chunk of HTTP."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def usage(prompt: int = 7, completion: int = 3, **more: Any) -> dict[str, Any]:
    """What an engine says of tokens."""
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, **more}


def completion(text: str, said: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A whole answer's document, with usage unless it is told none."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "name-there",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        **({} if said == {} else {"usage": said or usage()}),
        **more,
    }


def chunk(text: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """A chunk of a stream; without a text one that only begins."""
    delta = {"role": "assistant", "content": ""} if text is None else {"content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "name-there",
        "choices": [{"index": index, "delta": delta, "finish_reason": None}],
        **more,
    }


def usage_chunk(said: dict[str, Any] | None = None) -> dict[str, Any]:
    """The chunk that only says the usage."""
    return {**chunk(), "choices": [], "usage": said or usage()}


def write_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """A tokenizer for which a token is what stands between spaces."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))  # noqa: S106  a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {} if chat_template is None else {"chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_engines(folder: Path, *engines: dict[str, Any]) -> Path:
    """A models.toml with these engines, completed by what an entry must have; their tokenizer beside it."""
    write_tokenizer(folder / "tokenizer")
    lines = []
    for engine in engines:
        entry = {
            "model": MODEL,
            "model_version": "2026-11",
            "kinds": ["chat", "completions", "embeddings"],
            "tokenizer": "tokenizer",
            "engine_model": "name-there",
            "max_context_tokens": 1000,
            **engine,
        }
        lines += ["[[engines]]", *(f"{name} = {json.dumps(value)}" for name, value in entry.items()), ""]
    file = folder / "models.toml"
    file.write_text("\n".join(lines))
    return file
