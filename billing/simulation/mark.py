"""The mark of a ledger whose usage is simulated, which everything that shows its numbers tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.errors import SimulationError
from billing.tables import event_ids, ledger_facts

SIMULATED = "simulated"
TOLD = "This ledger holds simulated usage: nobody asked for it, and nobody is to pay for it."


def is_simulated(connection: Connection) -> bool:
    """Whether simulated usage was ever brought into this ledger."""
    return _mark(connection) is not None


def mark_simulated(connection: Connection, facts: Mapping[str, Any], *, force: bool = False) -> None:
    """Mark the ledger as holding this simulated history, before its first event comes.

    Raises: SimulationError: the ledger holds real events (code ledger_is_real) or another simulated history
        (simulated_otherwise), and `force` is not given.
    """
    mark, told = _mark(connection), orjson.dumps(facts, option=orjson.OPT_SORT_KEYS).decode()
    if mark is None:
        if not force and connection.scalar(sa.select(event_ids.c.id).limit(1)) is not None:
            raise SimulationError(
                "ledger_is_real",
                "the ledger holds real events; simulated ones among them could never be told from its bills",
            )
        connection.execute(ledger_facts.insert().values(name=SIMULATED, value=told))
    elif mark != told and not force:
        raise SimulationError("simulated_otherwise", f"the ledger holds another simulated history: {mark}")


def _mark(connection: Connection) -> str | None:
    return connection.scalar(sa.select(ledger_facts.c.value).where(ledger_facts.c.name == SIMULATED))
