"""Requests that versions of a model have answered, as the API's journal has them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

from tallybook.segments import committed
from tallybook.usage import UsageEvent, new_event_id

MODEL = "review-sentiment"


def write_requests(
    journal: Path, label: str, version: str, seconds: float, count: int, later: timedelta = timedelta()
) -> None:
    """So many answered requests of one version, each of so many seconds, so much later than now."""
    journal.mkdir(exist_ok=True)
    events = [
        UsageEvent(
            id=new_event_id(),
            source="tests",
            time=datetime.now(timezone.utc) + later,
            user="user-a",
            project="search",
            department="retail",
            operation="analyze",
            model=MODEL,
            model_version=version,
            model_label=label,
            tokenizer_fingerprint="f" * 64,
            prompt_tokens=10,
            completion_tokens=20,
            duration_seconds=seconds,
            client_ip="127.0.0.1",
            status=200,
        )
        for _ in range(count)
    ]
    lines = b"".join(json.dumps(event.to_record()).encode() + b"\n" for event in events)
    (journal / f"{label}-{version}.jsonl").write_bytes(lines + committed(len(events)))
