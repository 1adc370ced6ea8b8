"""Runs the migrations on the connection, and in the transaction, that `billing.ledger` hands over."""

from __future__ import annotations

from typing import Literal

from alembic import context

import billing.alerts.tables  # noqa: F401  its tables are the ledger's too
from billing.tables import Instant, metadata


def _plain_types(kind: str, item: object, _context: object) -> str | Literal[False]:
    """Keep Tallybook's own types out of the migrations, which must outlive them."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, Instant) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="ledger_version",
    render_item=_plain_types,
    render_as_batch=True,  # SQLite alters a table by making it anew
)
with context.begin_transaction():
    context.run_migrations()
