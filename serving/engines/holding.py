"""Holds the reservations of requests to engines, as long as they take and whatever their clients do.

In a thread of its own: that of a stream waits in the server while its client takes nothing. If the
reservation ended meanwhile, the client could begin as many streams beside it as it likes.
"""

from __future__ import annotations

import logging
import threading

from serving.quotas.contract import Reservation

_RENEWALS = 3  # in the time of a lease

log = logging.getLogger(__name__)


class Holding:
    """Renews the reservations that are held. Safe for many threads. Make it in the process that uses it."""

    def __init__(self, lease_seconds: float) -> None:
        """`lease_seconds`: how long a reservation lasts that is not renewed."""
        self._pause_seconds = lease_seconds / _RENEWALS
        self._held: set[Reservation] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="holding", daemon=True)
        self._thread.start()

    def hold(self, reservation: Reservation) -> None:
        """Renew it from now on."""
        self._held.add(reservation)

    def let_go(self, reservation: Reservation) -> None:
        """Renew it no longer."""
        self._held.discard(reservation)

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._pause_seconds):
            for reservation in list(self._held):
                try:
                    reservation.renew()
                except Exception:
                    log.exception("a reservation is not renewed")
