"""A usage event as a row of the ledger, and the digest that tells whether it was altered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import tzinfo
from hashlib import sha256
from typing import Any

import orjson

from tallybook.calendar import billing_day
from tallybook.usage import DATA_NAMES, ENVELOPE_NAMES, UsageEvent

# Where each field of an event is stored.
_COLUMN = {f.name: "user_id" if f.name == "user" else f.name for f in fields(UsageEvent)}


def event_row(record: Any, zone: tzinfo) -> dict[str, Any]:
    """The columns of `usage_events` for a CloudEvents record, all but `bill_day`.

    What a newer producer sends besides the fields known here is kept in `extra`.
    Raises: InvalidEventError: the record is not a usage event.
    """
    event = UsageEvent.from_record(record)
    extra = {
        part: more
        for part, found, known in (("data", record["data"], DATA_NAMES), ("envelope", record, ENVELOPE_NAMES))
        if (more := {name: value for name, value in found.items() if name not in known})
    }
    row = {column: getattr(event, name) for name, column in _COLUMN.items()}
    return row | {
        "day": billing_day(event.time, zone),
        "extra": extra or None,
        "content_sha256": _digest(event, extra or None),
    }


def content_sha256(row: Mapping[Any, Any]) -> str:
    """The digest that a row's columns come to now: another than its own says that it was altered."""
    event = UsageEvent(**{name: row[column] for name, column in _COLUMN.items()})
    return _digest(event, row["extra"])


def _digest(event: UsageEvent, extra: dict[str, Any] | None) -> str:
    """SHA-256 over canonical JSON: equal for equal content, however it was written."""
    return sha256(orjson.dumps([event.to_record(), extra], option=orjson.OPT_SORT_KEYS)).hexdigest()
