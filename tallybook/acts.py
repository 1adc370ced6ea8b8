"""An administrative act: who decided what, as a CloudEvents 1.0 record in the journal. Standard library only.

A key was made, a quota widened, a version promoted, an alert acknowledged: ingest chains each act into the
ledger's audit chain, once. `record` returns when the act is durable, so say it before the decision takes
effect: then nothing was ever decided that no act tells of.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tallybook.files import sync_folder
from tallybook.segments import SUFFIX, committed
from tallybook.usage import MAX_TEXT, InvalidEventError, instant, new_event_id

ACT_TYPE = "tallybook.act.v1"
KIND = re.compile(r"[a-z][a-z0-9_]{0,31}(?:\.[a-z][a-z0-9_]{0,31}){1,3}")  # thing.deed, such as key.created
MAX_DETAILS_BYTES = 16 << 10
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What somebody decided.

    `who` is a person or a key, as known to `source`, the program that took the decision. `kind` is
    `thing.deed`; `details` is a JSON object that says the rest, never a secret. `id` is unique for ever.
    """

    source: str
    who: str
    kind: str
    details: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_event_id)
    time: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def to_record(self) -> dict[str, Any]:
        """This act as a CloudEvents 1.0 JSON object."""
        return {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": ACT_TYPE,
            "subject": self.who,
            "time": self.time.astimezone(timezone.utc).isoformat(timespec="microseconds"),
            "datacontenttype": "application/json",
            "data": {**self.details, "kind": self.kind},
        }

    @classmethod
    def from_record(cls, record: object) -> Act:
        """Read what `to_record` wrote.

        Raises: InvalidEventError: not an act, or a field is missing or unfit.
        """
        if not isinstance(record, Mapping) or not is_act(record):
            raise InvalidEventError("unknown_type", f"not a CloudEvents 1.0 record of type {ACT_TYPE}")
        data = record.get("data")
        if not isinstance(data, Mapping):
            raise InvalidEventError("invalid_data", "data is not an object")
        absent = [name for name in ("id", "source", "subject", "time") if name not in record]
        absent += [] if "kind" in data else ["data.kind"]
        if absent:
            raise InvalidEventError("missing_field", f"{', '.join(absent)} is missing")
        act = cls(
            id=record["id"],
            source=record["source"],
            who=record["subject"],
            time=instant(record["time"]),
            kind=data["kind"],
            details={name: value for name, value in data.items() if name != "kind"},
        )
        _check(act)
        return act


def is_act(record: object) -> bool:
    """Whether a record claims to be an act; `Act.from_record` says whether it is one."""
    return (
        isinstance(record, Mapping) and record.get("type") == ACT_TYPE and record.get("specversion") == "1.0"
    )


def record(journal_dir: Path, act: Act) -> None:
    """Write an act into the journal folder; it is durable when this returns.

    It is a segment of its own, which gets its name when it is whole: no reader sees half of it.
    Raises: InvalidEventError: the act is unfit. OSError: the folder can't take it, and never will have it.
    """
    _check(act)
    line = _json(act.to_record()) + b"\n"
    journal_dir.mkdir(parents=True, exist_ok=True)
    unborn = journal_dir / f"act-{new_event_id()}.opening"
    try:
        with unborn.open("xb") as file:
            file.write(line + committed(1))
            file.flush()
            os.fsync(file.fileno())
        unborn.rename(unborn.with_suffix(SUFFIX))
    except OSError:
        unborn.unlink(missing_ok=True)
        raise
    sync_folder(journal_dir)


def _check(act: Act) -> None:
    for name in ("id", "source", "who"):
        value = getattr(act, name)
        if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
            raise InvalidEventError("invalid_text", f"{name} must be 1-{MAX_TEXT} printable characters")
    if not isinstance(act.kind, str) or not KIND.fullmatch(act.kind):
        raise InvalidEventError("invalid_kind", "data.kind must be thing.deed, such as key.created")
    try:
        size_bytes = len(_json(act.details)) if _depth(act.details) <= _MAX_DEPTH else None
    except (TypeError, ValueError, RecursionError):  # also half a surrogate pair
        size_bytes = None
    if size_bytes is None or size_bytes > MAX_DETAILS_BYTES:
        told = f"at most {_MAX_DEPTH} levels and {MAX_DETAILS_BYTES} bytes"
        raise InvalidEventError("invalid_details", f"data must be finite JSON of {told}")


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _depth(value: object) -> int:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return 0
    return 1 + max(map(_depth, value), default=0)
