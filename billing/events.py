"""A usage event as a row of the ledger, and the digest that tells whether it was altered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Any, NamedTuple

import orjson

from billing.merkle import leaf_hash
from billing.rating import context_band
from billing.tables import COUNTS
from tallybook.calendar import billing_day, billing_hour
from tallybook.usage import (
    DATA_NAMES,
    ENVELOPE_NAMES,
    EVENT_TYPE,
    MAX_TEXT,
    MAX_TOKENS,
    InvalidEventError,
    UsageEvent,
)

# The columns of `usage_events` that hold what the event said, in the order of `EventRow.said`.
SAID = (
    "id", "source", "time", "user_id", "project", "department", "operation", "model", "model_version",
    "model_label", "latency_class", "tokenizer_fingerprint", "prompt_tokens", "completion_tokens",
    "cached_tokens", "usage_estimated", "duration_seconds", "time_to_first_token_seconds", "client_ip",
    "status", "prompt_sha256", "prompt_prefix", "extra",
)  # fmt: skip
_TIME, _PREFIX = SAID.index("time"), SAID.index("prompt_prefix")
_PROMPT, _CACHED, _COMPLETION = (SAID.index(n) for n in COUNTS)
_NO_LABEL = "-"  # a name like any other, which stands where there is no label
_MINUTE = timedelta(minutes=1)
_REMEMBERED = 200_000  # of a kind: some 30 MB


class EventRow(NamedTuple):
    """An event, when and where it counts, and the digest of what it said.

    `said` has the values of the columns in SAID; `time` in it and `hour` are RFC 3339 text in UTC to the
    microsecond.
    """

    id: str
    day: date
    hour: str
    context_band: int
    content_sha256: bytes
    said: tuple[Any, ...]

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Prompt, cached and completion tokens."""
        return self.said[_PROMPT], self.said[_CACHED], self.said[_COMPLETION]


class EventReader:
    """Reads journal lines into rows, for one billing time zone; remembers the names and minutes it has seen.

    What `UsageEvent.from_record` decides in 13 µs is decided here in 3 for an event that is written as
    ours are; anything else is left to `from_record`, which is the rule.
    """

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._names: set[str] = {_NO_LABEL}
        self._texts: set[str] = set()
        self._minutes: dict[str, tuple[date, str]] = {}

    def read(self, raw: bytes) -> EventRow:
        """The row of a line. Raises: InvalidEventError: it is not a usage event."""
        try:
            record = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise InvalidEventError("not_json", f"not JSON: {error}") from None
        said = self._plain(record)
        if said is not None:
            day, hour = self._minutes[said[2][:16]]
        else:
            event = UsageEvent.from_record(record)
            day, hour = self._learn(event)
            said = _said(event, _extra(record))
        return EventRow(said[0], day, hour, context_band(said[_PROMPT]), _digest(said), said)

    def _learn(self, event: UsageEvent) -> tuple[date, str]:
        """Remember the names, texts and minute of a good event; the day and hour that it lies in."""
        for memory in (self._names, self._texts, self._minutes):
            if len(memory) > _REMEMBERED:
                memory.clear()
        self._names |= {
            event.user, event.project, event.department, event.model, event.model_version,
            event.model_label or _NO_LABEL, event.latency_class,
        }  # fmt: skip
        self._texts |= {event.source, event.tokenizer_fingerprint, event.client_ip, event.operation}
        found = self._when(event.time)
        minute = event.time.replace(second=0, microsecond=0)
        if self._when(minute) == found == self._when(minute + _MINUTE - timedelta.resolution):
            self._minutes[_text_of(event.time)[:16]] = found
        return found

    def _when(self, time: datetime) -> tuple[date, str]:
        return billing_day(time, self._zone), _text_of(billing_hour(time, self._zone))

    def _plain(self, record: Any) -> tuple[Any, ...] | None:
        """What an event said that needs no second look, or None."""
        try:
            data = record["data"]
            if (
                record["type"] != EVENT_TYPE
                or record["specversion"] != "1.0"
                or record.keys() != ENVELOPE_NAMES
                or not data.keys() <= DATA_NAMES
            ):
                return None
            event_id, source, time = record["id"], record["source"], record["time"]
            get = data.get
            label, latency_class = get("model_label"), get("latency_class", "standard")
            names = (
                record["subject"], data["project"], data["department"], data["model"], data["model_version"],
                label or _NO_LABEL, latency_class,
            )  # fmt: skip
            fingerprint, ip, operation = data["tokenizer_fingerprint"], data["client_ip"], data["operation"]
            prompt_sha256, prefix = get("prompt_sha256"), get("prompt_prefix")
            prompt, completion = data["prompt_tokens"], data["completion_tokens"]
            cached, status = get("cached_tokens", 0), data["status"]
            estimated, seconds = get("usage_estimated", False), data["duration_seconds"]
            first = get("time_to_first_token_seconds")
            known = (
                self._names.issuperset(names)
                and label != ""
                and type(prompt) is type(completion) is type(cached) is type(status) is int
                and 0 <= cached <= prompt <= MAX_TOKENS
                and 0 <= completion <= MAX_TOKENS
                and get("total_tokens", prompt + completion) == prompt + completion
                and 100 <= status <= 599
                and type(estimated) is bool
                and type(seconds) is float
                and 0 <= seconds < 1e9
                and (first is None or (type(first) is float and 0 <= first < 1e9))
                and (prefix is None or type(prefix) is str)
                and len(time) == 32
                and time[:16] in self._minutes  # so these are a date, an hour and a minute
                and time[16] == ":"
                and time[17] < "6"
                and time[19] == "."
                and time[26:] == "+00:00"
                and time.isascii()
                and (time[17:19] + time[20:26]).isdecimal()
                and self._texts.issuperset((source, fingerprint, ip, operation))
                and _is_text(event_id)
                and (prompt_sha256 is None or _is_text(prompt_sha256))
            )
        except (KeyError, TypeError, AttributeError, IndexError):
            return None
        if not known:
            return None
        return (
            event_id, source, time, names[0], names[1], names[2], operation, names[3], names[4], label or "",
            latency_class, fingerprint, prompt, completion, cached, estimated, seconds, first, ip, status,
            prompt_sha256, prefix, None,
        )  # fmt: skip


def content_sha256(row: Mapping[Any, Any]) -> bytes:
    """The digest that a row's columns come to now: another than the one kept says that it was altered."""
    said = [row[name] for name in SAID]
    said[_TIME] = _text_of(row["time"])
    said[_PREFIX] = None if row["prompt_prefix"] is None else row["prompt_prefix"].decode()
    return _digest(said)


def _said(event: UsageEvent, extra: str | None) -> tuple[Any, ...]:
    first = event.time_to_first_token_seconds
    return (
        event.id, event.source, _text_of(event.time), event.user, event.project, event.department,
        event.operation, event.model, event.model_version, event.model_label or "", event.latency_class,
        event.tokenizer_fingerprint, event.prompt_tokens, event.completion_tokens, event.cached_tokens,
        event.usage_estimated, float(event.duration_seconds), None if first is None else float(first),
        event.client_ip, event.status, event.prompt_sha256, event.prompt_prefix, extra,
    )  # fmt: skip


def _extra(record: Mapping[str, Any]) -> str | None:
    """What a newer producer sends besides the fields known here, as canonical JSON."""
    extra = {
        part: more
        for part, found, known in (("data", record["data"], DATA_NAMES), ("envelope", record, ENVELOPE_NAMES))
        if (more := {name: value for name, value in found.items() if name not in known})
    }
    return orjson.dumps(extra, option=orjson.OPT_SORT_KEYS).decode() if extra else None


def _digest(said: Sequence[Any]) -> bytes:
    """The hash of JSON of what was said, in the order of SAID; also the event's leaf in the Merkle trees."""
    return leaf_hash(orjson.dumps(said))


def _text_of(time: datetime) -> str:
    return time.astimezone(timezone.utc).isoformat(timespec="microseconds")


def _is_text(value: str) -> bool:
    # Narrower than the rule of `UsageEvent`: ASCII without control characters.
    return 0 < len(value) <= MAX_TEXT and value.isascii() and value.isprintable()
