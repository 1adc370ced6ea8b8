"""HTTP to an engine: kept connections, one request at a time on each, and an answer that is read as it comes.

Written on sockets and the parser of Node (httptools) because it stands in every request: 37 µs of processor
time for a request and its answer, where http.client takes 215 and urllib3 420 (docs/decisions/0015).
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import struct
import time
from collections.abc import Mapping

import httptools

from serving.engines.address import EngineAddress, is_readable
from serving.errors import (
    ApiError,
    ModelRejectedError,
    ModelTimeoutError,
    ModelUnavailableError,
    OverloadedError,
)

_TIMEVAL = struct.Struct("@ll")  # struct timeval
_READ_BYTES = 2 * 1024  # at first; held while a thread waits, so that much of each open stream
_MOST_READ_BYTES = 64 * 1024
_MOST_HEAD_BYTES = 64 * 1024
_MOST_ANSWER_BYTES = 256 << 20
_LEAST_WAIT_SECONDS = 0.001
_DOWN_SECONDS = 1.0  # an address that refused is asked last for so long


class _StaleError(Exception):
    """A kept connection that the engine had closed."""


class Answer:
    """An answer that is under way. For one thread at a time; `cut` may come from any.

    `status` and `headers` (names in lower case) are there once made. `ended`: the body was read whole.
    """

    def __init__(self, address: EngineAddress, connection: socket.socket) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.ended = False
        self.was_cut = False
        self._address = address
        self._connection = connection
        self._head_bytes = 0
        self._read_bytes = _READ_BYTES
        self._in_body = False
        self._may_be_kept = False
        self._closed = False
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    @property
    def has_begun(self) -> bool:
        """Whether a byte has come."""
        return self._head_bytes > 0

    # What the parser calls.
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._in_body = self.status >= 200
        if not self._in_body:  # 100 Continue: the answer proper follows
            self.headers.clear()

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def on_message_complete(self) -> None:
        self.ended = self._in_body
        self._may_be_kept = self.ended and self._parser.should_keep_alive()  # the parser only knows now

    def read_head(self, timeout_seconds: float) -> None:
        """Wait for the answer's head.

        Raises: OSError, ConnectionError: as the socket does; ModelRejectedError: no HTTP.
        """
        until = time.monotonic() + timeout_seconds
        while not self._in_body:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            data = self._receive(left)
            if not data:
                raise ConnectionResetError("the engine closed the connection before it answered")
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES and not self._parts:
                raise ModelRejectedError("The engine's answer has a head without end.")
            self._feed(data)

    def read(self, timeout_seconds: float) -> bytes:
        """What has come of the body, waiting for more if there is none; empty only if it has ended.

        What is there already is read however little time is left.
        Raises: TimeoutError: nothing came, and reading may go on. ModelRejectedError: it broke off.
            OverloadedError: it was cut.
        """
        while not self._parts and not self.ended:
            try:
                data = self._receive(timeout_seconds)
            except TimeoutError:
                raise
            except OSError as error:
                self.check_not_cut()
                raise ModelRejectedError(f"The engine broke off: {error.strerror or error}.") from error
            if data:
                self._feed(data)
                continue
            self.check_not_cut()
            if _has_length(self.headers):
                raise ModelRejectedError("The engine closed the connection in the middle of its answer.")
            self.ended = True
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken

    def read_all(self, deadline: float) -> bytes:
        """The whole body. Raises: ModelTimeoutError; ModelRejectedError; OverloadedError: it was cut."""
        whole, size_bytes = [], 0
        while not self.ended or self._parts:
            try:
                whole.append(self.read(deadline - time.monotonic()))
                size_bytes += len(whole[-1])
            except TimeoutError:
                raise ModelTimeoutError("The engine did not answer in time.") from None
            if size_bytes > _MOST_ANSWER_BYTES:
                raise ModelRejectedError("The engine's answer is without end.")
        return b"".join(whole)

    def at_hand(self) -> bytes:
        """What has come already, without waiting for more; empty also after a failure."""
        if not self.ended and not self._parts and is_readable(self._connection):
            with contextlib.suppress(OSError, ApiError):
                return self.read(0)
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken

    def cut(self) -> None:
        """Have the thread that reads this answer see its end now."""
        self.was_cut = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def check_not_cut(self) -> None:
        """Raises: OverloadedError: it was."""
        if self.was_cut:
            raise OverloadedError("The server is stopping; the answer ends here.")

    def close(self) -> None:
        """Give the connection back if the answer was read whole; else close it, which cancels the request.

        Once: what comes after that does nothing, for the connection may be somebody else's by then.
        """
        if self._closed:
            return
        self._closed = True
        if self._may_be_kept and not self.was_cut and _has_length(self.headers):
            self._address.keep(self._connection)
        else:
            self._connection.close()
        del self._parser  # it refers to us: a cycle would wait for the garbage collector

    def _receive(self, timeout_seconds: float) -> bytes:
        """Raises: TimeoutError; OSError."""
        try:
            _wait_at_most(self._connection, timeout_seconds, socket.SO_RCVTIMEO)
            data = self._connection.recv(self._read_bytes)
        except BlockingIOError:
            raise TimeoutError from None
        if len(data) == self._read_bytes < _MOST_READ_BYTES:
            self._read_bytes *= 2  # there is more than was asked for
        return data

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise ModelRejectedError("The engine's answer is not HTTP.") from error


class Upstream:
    """All addresses of one engine, asked in turn. Safe for many threads."""

    def __init__(self, addresses: list[str], api_key: str | None, connect_seconds: float) -> None:
        self._addresses = [EngineAddress(one, api_key, connect_seconds) for one in addresses]
        self._turn = itertools.count()
        self._under_way: set[Answer] = set()
        self._is_stopping = False

    def post(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout_seconds: float,
    ) -> Answer:
        """Ask, and return when the head of the answer is there. Close the answer in the end.

        Nobody is asked twice, except that a kept connection may turn out to be closed.
        Raises: ModelUnavailableError: no address takes a connection. ModelTimeoutError. ModelRejectedError.
            OverloadedError: this process is stopping.
        """
        for address in self._in_turn():
            request = address.request(path, body, headers)
            kept = address.kept()
            if kept is not None:
                with contextlib.suppress(_StaleError):
                    return self._exchange(address, kept, request, timeout_seconds, kept=True)
            try:
                connection = address.connect()
            except OSError:
                address.down_until = time.monotonic() + _DOWN_SECONDS
                continue
            return self._exchange(address, connection, request, timeout_seconds, kept=False)
        raise ModelUnavailableError("The engine of this model can't be reached.")

    def is_reachable(self) -> bool:
        """Whether an address takes a connection now; each has half a second for it."""
        return any(address.takes_connections() for address in self._addresses)

    def cut_all(self) -> None:
        """End every answer that is under way, or will be."""
        self._is_stopping = True
        for answer in list(self._under_way):
            answer.cut()

    def done(self, answer: Answer) -> None:
        """Close an answer."""
        self._under_way.discard(answer)
        answer.close()

    def close(self) -> None:
        """Close what is idle."""
        for address in self._addresses:
            address.close()

    def _in_turn(self) -> list[EngineAddress]:
        addresses = self._addresses
        if len(addresses) == 1:
            return addresses
        first = next(self._turn) % len(addresses)
        now = time.monotonic()
        turned = addresses[first:] + addresses[:first]
        return sorted(turned, key=lambda address: address.down_until > now)

    def _exchange(
        self,
        address: EngineAddress,
        connection: socket.socket,
        request: bytes,
        timeout_seconds: float,
        *,
        kept: bool,
    ) -> Answer:
        """Send, and read the answer's head.

        Raises: _StaleError: a kept connection was closed before anything came. As `post` does.
        """
        answer = Answer(address, connection)
        self._under_way.add(answer)
        if self._is_stopping:
            answer.cut()
        try:
            _send(connection, request, timeout_seconds)
            answer.read_head(timeout_seconds)
        except TimeoutError:
            self.done(answer)
            raise ModelTimeoutError("The engine did not begin to answer in time.") from None
        except OSError as error:
            self.done(answer)
            answer.check_not_cut()
            if kept and not answer.has_begun:
                raise _StaleError from None
            raise ModelRejectedError(f"The engine broke off: {error.strerror or error}.") from error
        except BaseException:
            self.done(answer)
            raise
        return answer


def _send(connection: socket.socket, data: bytes, timeout_seconds: float) -> None:
    """Raises: TimeoutError: the engine takes nothing for so long. OSError."""
    try:
        _wait_at_most(connection, timeout_seconds, socket.SO_SNDTIMEO)
        connection.sendall(data)
    except BlockingIOError:
        raise TimeoutError from None


def _wait_at_most(connection: socket.socket, seconds: float, option: int) -> None:
    """Bound the next call by the system's own timeout, which raises BlockingIOError.

    No time, or less, is as much as it takes to see what has come: to the system, 0 would be for ever.
    Python's polls before each call, and each poll lets go of the interpreter: switching between a worker's
    threads then costs more than the call. TLS knows only Python's.
    """
    seconds = max(seconds, _LEAST_WAIT_SECONDS)
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(seconds)
    else:
        whole, rest = divmod(int(seconds * 1e6), 1_000_000)
        connection.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(whole, rest))


def _has_length(headers: Mapping[bytes, bytes]) -> bool:
    return b"content-length" in headers or b"transfer-encoding" in headers
