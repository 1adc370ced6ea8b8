"""A worker's process with clients that use up a quota in Redis; its last line is what they used.

`python -m tests.quotaclients URL FOLDER LIMIT CLIENTS`: begins when a line comes in. Imports little, for a
test starts several.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from serving.access.identity import Caller
from serving.access.known import Known
from serving.errors import QuotaExceededError
from serving.quotas.in_redis import RedisQuotas
from serving.quotas.limits import LimitBook
from serving.settings import ServingSettings

_TURNS = 15


def main(url: str, folder: Path, limit: int, clients: int) -> None:
    """Ask, settle and release from all clients at once."""
    settings = ServingSettings(
        redis_url=url,
        journal_dir=folder / "journal",
        ledger_url=f"sqlite:///{folder / 'ledger.db'}",
        quota_user_day_tokens=limit,
        quota_requests_per_minute=1_000_000,
    )
    quotas = RedisQuotas(settings, LimitBook(settings, Known), lease_seconds=60)
    used: list[int] = []
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()

    def ask(client: int) -> None:
        for turn in range(_TURNS):
            most = 7 + (client + turn) % 5
            try:
                lease = quotas.reserve(Caller("anna", "search", "retail", "127.0.0.1"), "m", most)
            except QuotaExceededError:
                continue
            if turn % 4 == 0:
                lease.release()
            else:
                used.append(most - turn % 3)
                lease.settle(used[-1])

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(f"{sum(used)}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
