"""Prepaid credit: a project whose wallet is empty is refused, where the setting `prepaid` wants that.

Wallets are the ledger's, and are charged when a day is closed: what was used since then is not in a balance.
The contract is the columns of `wallet_entries` that the query names. A project without a wallet is not
prepaid. While the ledger is away the last balances hold; before the first look everybody may ask.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

import sqlalchemy as sa

from serving.access.errors import WalletEmptyError
from serving.quotas.past import ledger_view
from serving.settings import ServingSettings

_BALANCES = "SELECT project, SUM(amount_minor) FROM wallet_entries GROUP BY project"

log = logging.getLogger(__name__)


class Credit:
    """Knows which projects have used up what they paid for. Safe for many threads."""

    def __init__(self, settings: ServingSettings) -> None:
        """Starts a thread if the setting `prepaid` is on: call it in the process that serves."""
        self._url = settings.ledger_url
        self._balances: Mapping[str, int] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if settings.prepaid:
            self.refresh()
            seconds = settings.prepaid_poll_seconds
            self._thread = threading.Thread(target=self._poll, args=(seconds,), name="credit", daemon=True)
            self._thread.start()

    def check(self, project: str) -> None:
        """Raises: WalletEmptyError: it has a wallet, and nothing is left in it."""
        if self._balances.get(project, 1) <= 0:
            raise WalletEmptyError(f"The project {project} has used up its prepaid credit.")

    def refresh(self) -> None:
        """Look at the wallets."""
        try:
            for connection in ledger_view(self._url, ["wallet_entries"]):
                rows = connection.execute(sa.text(_BALANCES))
                self._balances = {project: int(balance) for project, balance in rows}
        except (sa.exc.SQLAlchemyError, OSError) as error:
            log.warning("wallets can't be read, the last balances hold: %s", " ".join(str(error).split()))

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _poll(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                self.refresh()
            except Exception:
                log.exception("looking at the wallets failed")
