"""A load generator: one process and raw keep-alive sockets, with little work of its own for a request."""

from __future__ import annotations

import selectors
import socket
import time
from dataclasses import dataclass

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length: "


@dataclass(frozen=True)
class Load:
    """What a run of the generator saw."""

    requests: int
    failures: int  # answers other than 200
    seconds: float
    p50_seconds: float
    p99_seconds: float
    busy: float  # share of the time that the generator itself worked; near 1 it was the bottleneck

    @property
    def requests_per_second(self) -> float:
        """Answered requests a second."""
        return self.requests / self.seconds


def post(path: str, body: bytes, headers: str = "") -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


class _Connection:
    __slots__ = ("answer", "sent_at", "socket")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer = b""
        self.sent_at = 0.0

    def send(self, request: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def finished(self) -> bool:
        """Read what is there; whether the answer is whole."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError("the server closed a connection")
        self.answer += chunk
        head, found, body = self.answer.partition(_HEAD_END)
        if not found:
            return False
        start = head.lower().index(_LENGTH) + len(_LENGTH)
        return len(body) >= int(head[start:].split(b"\r", 1)[0])


def run(address: tuple[str, int], request: bytes, clients: int, seconds: float) -> Load:
    """Keep so many connections busy for a time, each sending its next request when it has its answer.

    Raises: TimeoutError: nothing was answered. OSError: a connection failed.
    """
    selector = selectors.DefaultSelector()
    connections = [_Connection(address) for _ in range(clients)]
    latencies: list[float] = []
    failures = 0
    worked, began = time.process_time(), time.perf_counter()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send(request)
    end = began + seconds
    while time.perf_counter() < end:
        for key, _ in selector.select(timeout=1.0):
            connection = key.data
            if connection.finished():
                latencies.append(time.perf_counter() - connection.sent_at)
                failures += not connection.answer.startswith(b"HTTP/1.1 200")
                connection.answer = b""
                connection.send(request)
    took, busy = time.perf_counter() - began, time.process_time() - worked
    for connection in connections:
        connection.socket.close()
    selector.close()
    if not latencies:
        raise TimeoutError(f"no answer from {address[0]}:{address[1]} within {seconds:g} s")
    latencies.sort()
    return Load(
        requests=len(latencies),
        failures=failures,
        seconds=took,
        p50_seconds=latencies[len(latencies) // 2],
        p99_seconds=latencies[len(latencies) * 99 // 100],
        busy=busy / took,
    )
