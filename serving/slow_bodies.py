"""Ends connections whose clients send a request's body too slowly; the request is then told 408.

Granian waits for a body as long as it takes, in a call that nothing interrupts, and does not say on which
connection. So while a body is overdue the connections themselves are looked at: one on which nothing was sent
for the deadline is ended, unless a request awaits its answer there. Such a request's connection is known by
the moment at which its last bytes came. A connection that idles may be ended too, as any server may do.
"""

from __future__ import annotations

import logging
import math
import socket
import struct
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from serving.observability.trace import Trace  # which the process that forks the workers does without

_MOST_SECONDS_BETWEEN_LOOKS = 1.0
_SLACK_SECONDS = 1.0  # between the moment at which bytes came, and that at which a thread knows of them
_TCP_INFO = struct.Struct("@8B12I")  # the beginning of Linux's struct tcp_info
_SENT, _RECEIVED = 17, 19  # its fields with the milliseconds since data was last sent, and received

log = logging.getLogger(__name__)


class _Seen(NamedTuple):
    """A connection: from when on nothing was sent on it, and whether a request had come by then."""

    since: float
    is_asked: bool


class SlowBodies:
    """The clients of this process at one port. For one thread."""

    def __init__(self, under_way: Collection[Trace], port: int, deadline_seconds: float) -> None:
        self._under_way = under_way
        self._port = port
        self._deadline_seconds = deadline_seconds
        self._seen: dict[object, _Seen] = {}

    def watch(self) -> None:
        """Look for ever. Returns at once where the system does not tell of its connections."""
        while hasattr(socket, "TCP_INFO"):
            time.sleep(min(_MOST_SECONDS_BETWEEN_LOOKS, self._deadline_seconds / 4))
            try:
                self.look()
            except Exception:  # without this thread slow clients would stay
                log.exception("looking for slow clients failed")

    def look(self) -> None:
        """End what has been slow for the deadline; costs next to nothing while nobody is."""
        now = time.monotonic()
        requests = list(self._under_way)
        slow = self._deadline_seconds / 4
        if not any(one.body_at == math.inf and now - one.started > slow for one in requests):
            self._seen = {}
            return
        awaiting = [
            one for one in requests if one.body_at < math.inf and now - one.started >= self._deadline_seconds
        ]
        seen: dict[object, _Seen] = {}
        for connection in sockets_at(self._port):
            with connection:
                self._examine(connection, now, awaiting, seen)
        self._seen = seen

    def _examine(
        self, connection: socket.socket, now: float, awaiting: Iterable[Trace], seen: dict[object, _Seen]
    ) -> None:
        try:
            peer = connection.getpeername()
            told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        except OSError:  # it listens, or was closed by now
            return
        info = _TCP_INFO.unpack(told)
        sent_at, received_at = now - info[_SENT] / 1000, now - info[_RECEIVED] / 1000
        is_asked = received_at > sent_at
        before = self._seen.get(peer)
        if before is None or sent_at > before.since or (is_asked and not before.is_asked):
            seen[peer] = _Seen(now, is_asked)
            return
        seen[peer] = before
        if now - before.since >= self._deadline_seconds and not any(
            one.started - _SLACK_SECONDS <= received_at <= one.body_at + _SLACK_SECONDS for one in awaiting
        ):
            with suppress(OSError):  # it was closed by now
                connection.shutdown(socket.SHUT_RD)


def sockets_at(port: int) -> Iterator[socket.socket]:
    """Duplicates of this process's sockets at a port of its own, to be closed; Granian does not show them."""
    for descriptor in list(Path("/dev/fd").iterdir()):
        # `fromfd` never closes its duplicate of what is no socket: a journal's would keep its lock.
        if not descriptor.is_socket():
            continue
        try:
            candidate = socket.fromfd(int(descriptor.name), socket.AF_INET, socket.SOCK_STREAM)
        except OSError:  # closed by now
            continue
        if _is_at(candidate, port):
            yield candidate
        else:
            candidate.close()


def _is_at(candidate: socket.socket, port: int) -> bool:
    try:
        return bool(candidate.getsockname()[1] == port)
    except (OSError, IndexError):
        return False
