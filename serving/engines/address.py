"""One address of an engine: how it is asked, and the connections to it that are kept."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from urllib.parse import urlsplit

_IDLE_SECONDS = 4.0  # uvicorn, which most engines run on, closes after 5
_PROBE_SECONDS = 0.5


class EngineAddress:
    """One address of an engine and its idle connections. Safe for many threads."""

    def __init__(self, address: str, api_key: str | None, connect_seconds: float) -> None:
        parts = urlsplit(address)
        secure = parts.scheme == "https"
        self.down_until = 0.0
        self._host = parts.hostname or ""  # never empty: checked when models.toml was read
        self._port = parts.port or (443 if secure else 80)
        self._tls = ssl.create_default_context() if secure else None
        self._connect_seconds = connect_seconds
        self._idle: deque[tuple[socket.socket, float]] = deque()
        self._is_swept = False
        self._prefix = parts.path.rstrip("/")
        authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = f" HTTP/1.1\r\nHost: {parts.netloc}\r\n{authorization}"

    def request(self, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """The bytes of a POST; header values are ours and checked."""
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {self._prefix}{path}{self._head}{more}Content-Length: {len(body)}\r\n\r\n"
        return head.encode("ascii") + body

    def kept(self) -> socket.socket | None:
        """An idle connection that is still open, or None."""
        while self._idle:
            try:
                connection, since = self._idle.pop()  # the youngest
            except IndexError:
                return None
            if time.monotonic() - since < _IDLE_SECONDS and not is_readable(connection):
                return connection
            connection.close()
        return None

    def connect(self) -> socket.socket:
        """A new connection. Raises: OSError."""
        connection = socket.create_connection((self._host, self._port), self._connect_seconds)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                return self._tls.wrap_socket(connection, server_hostname=self._host)
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return connection

    def takes_connections(self) -> bool:
        """Whether somebody listens there."""
        with contextlib.suppress(OSError):
            socket.create_connection((self._host, self._port), _PROBE_SECONDS).close()
            return True
        return False

    def keep(self, connection: socket.socket) -> None:
        """Take a connection back whose answer was read whole."""
        self._idle.append((connection, time.monotonic()))
        if not self._is_swept:
            self._is_swept = True
            threading.Thread(target=self._sweep, name="idle engine connections", daemon=True).start()

    def close(self) -> None:
        """Close what is idle."""
        self._close_before(math.inf)

    def _sweep(self) -> None:
        """Close what idles too long, though nobody asks: the engine may have closed its side."""
        while self._idle:
            time.sleep(_IDLE_SECONDS)
            self._close_before(time.monotonic() - _IDLE_SECONDS)
        self._is_swept = False

    def _close_before(self, moment: float) -> None:
        with contextlib.suppress(IndexError):
            while self._idle[0][1] <= moment:
                connection, since = self._idle.popleft()
                if since > moment:  # another thread took the older one
                    self._idle.appendleft((connection, since))
                    return
                connection.close()


def is_readable(connection: socket.socket) -> bool:
    """Whether there is something to read: on an idle connection that is its end."""
    if isinstance(connection, ssl.SSLSocket) and connection.pending():
        return True
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))
