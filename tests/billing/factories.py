"""Usage events, journals and price lists for the tests of billing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson

from billing.prices.price_list import Price
from tallybook.usage import UsageEvent, new_event_id

ZONE = ZoneInfo("Asia/Shanghai")
DAY = date(2026, 11, 21)
NOON = datetime(2026, 11, 21, 12, tzinfo=ZONE)
AFTER = datetime(2026, 11, 22, 1, tzinfo=ZONE)  # when DAY can be closed

_EVENT = UsageEvent(
    id="replaced",
    source="tests",
    time=NOON,
    user="user-a",
    project="search",
    department="retail",
    operation="analyze",
    model="review-sentiment",
    model_version="1",
    tokenizer_fingerprint="f" * 64,
    prompt_tokens=100,
    completion_tokens=20,
    duration_seconds=0.01,
    client_ip="127.0.0.1",
    status=200,
)

# What an event may say since the ledger's second migration.
TRACED: dict[str, Any] = {
    "reasoning_tokens": 3, "delivered_tokens": 2, "api_key_id": "key-1", "trace_id": "0af7651916cd43dd" * 2,
    "prompt_encrypted": "v1.k1.c2VjcmV0",
}  # fmt: skip

_PRICE = Price(
    model="review-sentiment",
    model_version=None,
    effective_from=date(2026, 1, 1),
    currency="CNY",
    per_tokens=1000,
    input=Decimal("0.80"),
    cached_input=Decimal("0.20"),
    output=Decimal("2.40"),
)


def an_event(**changes: Any) -> UsageEvent:
    """A fresh event: user-a's, of 100 + 20 tokens, at noon of DAY, unless changed."""
    return replace(_EVENT, **({"id": new_event_id()} | changes))


def a_price(**changes: Any) -> Price:
    """A price of 0.80 in and 2.40 out per 1,000 tokens from 2026-01-01, unless changed."""
    return replace(_PRICE, **changes)


def write_segment(
    journal: Path, events: Iterable[UsageEvent | bytes], name: str = "1.jsonl", end: bytes = b""
) -> Path:
    """Append events, or raw lines, to a segment; `end` follows without a line end."""
    journal.mkdir(exist_ok=True)
    segment = journal / name
    with segment.open("ab") as file:
        for event in events:
            line = event if isinstance(event, bytes) else orjson.dumps(event.to_record())
            file.write(line + b"\n")
        file.write(end)
    return segment
