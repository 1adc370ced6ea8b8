"""An audit chain as an older version wrote it."""

from __future__ import annotations

from collections.abc import Collection

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import chain
from billing.tables import audit_records


def chain_without(connection: Connection, names: Collection[str] = (), kinds: Collection[str] = ()) -> None:
    """Write the chain anew, without these names in its records and without records of these kinds."""
    rows = connection.execute(sa.select(audit_records).order_by(audit_records.c.number)).all()
    connection.execute(audit_records.delete())
    for row in rows:
        body = {name: value for name, value in orjson.loads(row.body).items() if name not in names}
        if row.kind not in kinds:
            chain.append(connection, row.kind, body, row.recorded_at)
