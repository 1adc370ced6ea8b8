"""The usage event: one served request, as a CloudEvents 1.0 record. Standard library only."""

from __future__ import annotations

import os
import re
import time as clock
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from typing import Any

EVENT_TYPE = "tallybook.usage.v1"
NAME = re.compile(r"[A-Za-z0-9._@:\-]{1,128}")  # users, projects, departments, models, versions
MAX_TOKENS = 1_000_000_000  # of one request; above it a count is an error, not a request
MAX_TEXT = 512
MAX_ENCRYPTED = 2 << 20  # characters of a captured text, encrypted
_RFC_3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}", re.ASCII)
_ENCRYPTED = re.compile(rf"[\x21-\x7e]{{1,{MAX_ENCRYPTED}}}", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class InvalidEventError(ValueError):
    """A record that is not a usage event; `code` is stable, the message names the field."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """Who used which model version for how many tokens.

    Token counts are whole numbers; `cached_tokens` are part of `prompt_tokens`, `total_tokens` is
    prompt plus completion. `time` is the moment the answer was complete, in UTC. `id` is unique for
    ever and made by the server, never taken from a client. `tokenizer_fingerprint` is the SHA-256 of
    the tokenizer that counted. `model_label` is the label that the version was served under, such as
    `canary`; `latency_class` is how fast the answer had to be, where prices depend on that.
    `reasoning_tokens` are part of `completion_tokens`, and so are `delivered_tokens`, those that reached the
    client; None: all did. `trace_id` is that of W3C Trace Context. `prompt_encrypted` is the whole captured
    text, encrypted, in printable ASCII without spaces.
    """

    id: str
    source: str
    time: datetime
    user: str
    project: str
    department: str
    operation: str
    model: str
    model_version: str
    model_label: str | None = None
    latency_class: str = "standard"
    tokenizer_fingerprint: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    usage_estimated: bool = False
    duration_seconds: float
    time_to_first_token_seconds: float | None = None
    client_ip: str
    status: int
    prompt_sha256: str | None = None
    prompt_prefix: str | None = None
    reasoning_tokens: int = 0
    delivered_tokens: int | None = None
    api_key_id: str | None = None
    trace_id: str | None = None
    prompt_encrypted: str | None = None

    @property
    def total_tokens(self) -> int:
        """Prompt plus completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    def to_record(self) -> dict[str, Any]:
        """This event as a CloudEvents 1.0 JSON object; fields without a value are left out."""
        data = {f: getattr(self, f) for f in _DATA_FIELDS}
        data["total_tokens"] = self.total_tokens
        return {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": EVENT_TYPE,
            "subject": self.user,
            "time": self.time.astimezone(timezone.utc).isoformat(timespec="microseconds"),
            "datacontenttype": "application/json",
            "data": {name: value for name, value in data.items() if value is not None},
        }

    @classmethod
    def from_record(cls, record: object) -> UsageEvent:
        """Read a CloudEvents object that `to_record` or another producer wrote.

        Raises: InvalidEventError: not an event of this type, or a field is missing, of another type,
            out of range or contradictory. Unknown fields are allowed: a newer producer may add some.
        """
        if not isinstance(record, Mapping):
            raise InvalidEventError("not_an_object", "an event is a JSON object")
        if record.get("type") != EVENT_TYPE or record.get("specversion") != "1.0":
            raise InvalidEventError("unknown_type", f"not a CloudEvents 1.0 record of type {EVENT_TYPE}")
        data = record.get("data")
        if not isinstance(data, Mapping):
            raise InvalidEventError("invalid_data", "data is not an object")
        known = {name: data[name] for name in _DATA_FIELDS if data.get(name) is not None}
        try:
            event = cls(
                id=record["id"],
                source=record["source"],
                user=record["subject"],
                time=instant(record["time"]),
                **known,
            )
        except KeyError as missing:
            raise InvalidEventError("missing_field", f"{missing.args[0]} is missing") from None
        except TypeError:
            absent = sorted(_REQUIRED_DATA - known.keys())
            raise InvalidEventError("missing_field", f"data.{', data.'.join(absent)} is missing") from None
        _check(event)
        if data.get("total_tokens", event.total_tokens) != event.total_tokens:
            raise InvalidEventError("contradiction", "total_tokens is not prompt_tokens + completion_tokens")
        return event


ENVELOPE_NAMES = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"}
)
_ENVELOPE = {"id", "source", "time", "user"}
DATA_NAMES = frozenset({f.name for f in fields(UsageEvent)} - _ENVELOPE | {"total_tokens"})
_DATA_FIELDS = [f.name for f in fields(UsageEvent) if f.name not in _ENVELOPE]
_OPTIONAL = {
    "model_label", "latency_class", "cached_tokens", "usage_estimated", "time_to_first_token_seconds",
    "prompt_sha256", "prompt_prefix", "reasoning_tokens", "delivered_tokens", "api_key_id", "trace_id",
    "prompt_encrypted",
}  # fmt: skip
_REQUIRED_DATA = set(_DATA_FIELDS) - _OPTIONAL
_NAMES = ("user", "project", "department", "model", "model_version", "model_label", "latency_class")
_TEXTS = ("id", "source", "operation", "tokenizer_fingerprint", "client_ip", "prompt_sha256", "api_key_id")
_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "delivered_tokens")
# What is a part of what.
_PARTS = (
    ("cached_tokens", "prompt_tokens"), ("reasoning_tokens", "completion_tokens"),
    ("delivered_tokens", "completion_tokens"),
)  # fmt: skip
_SECONDS = ("duration_seconds", "time_to_first_token_seconds")


def new_event_id(now_seconds: float | None = None) -> str:
    """A fresh UUID of version 7 (RFC 9562): unique, and in order of time, which keeps indexes dense."""
    milliseconds = int((clock.time() if now_seconds is None else now_seconds) * 1000)
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def is_trace_id(value: object) -> bool:
    """Whether this is a trace id of W3C Trace Context."""
    return isinstance(value, str) and _TRACE_ID.fullmatch(value) is not None


def is_encrypted(value: object) -> bool:
    """Whether this can be an encrypted text: printable ASCII without spaces, not too long."""
    return isinstance(value, str) and _ENCRYPTED.fullmatch(value) is not None


def instant(text: object) -> datetime:
    """The moment, in UTC, that an RFC 3339 text names. Raises: InvalidEventError: it names none."""
    match = _RFC_3339.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidEventError("invalid_time", "time is not RFC 3339, such as 2026-11-22T08:30:00.25Z")
    seconds, fraction, offset = match.groups()
    # Python 3.10 reads three or six digits of a second only; finer ones decide no bill.
    digits = f"{fraction or '':0<6}"[:6]
    try:
        instant = datetime.fromisoformat(f"{seconds}.{digits}{offset.upper().replace('Z', '+00:00')}")
        return instant.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise InvalidEventError("invalid_time", "time is no moment of the calendar") from None


def _check(event: UsageEvent) -> None:
    for name in _NAMES:
        value = getattr(event, name)
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise InvalidEventError("invalid_name", f"{name} must be 1-128 of letters, digits and ._@:-")
    for name in _TEXTS:
        value = getattr(event, name)
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or _UNPRINTABLE.search(value):
            raise InvalidEventError("invalid_text", f"{name} must be 1-{MAX_TEXT} printable characters")
    if event.prompt_prefix is not None and not isinstance(event.prompt_prefix, str):
        raise InvalidEventError("invalid_text", "prompt_prefix must be a string")
    if event.trace_id is not None and not is_trace_id(event.trace_id):
        raise InvalidEventError("invalid_text", "trace_id must be 32 lower-case hex digits, not all zero")
    if event.prompt_encrypted is not None and not is_encrypted(event.prompt_encrypted):
        raise InvalidEventError(
            "invalid_text", f"prompt_encrypted must be 1-{MAX_ENCRYPTED} of printable ASCII without spaces"
        )
    for name in _COUNTS:
        value = getattr(event, name)
        if value is None and name in _OPTIONAL:
            continue
        if type(value) is not int or not 0 <= value <= MAX_TOKENS:
            raise InvalidEventError("invalid_count", f"{name} must be a whole number from 0 to {MAX_TOKENS}")
    for part, of in _PARTS:
        if (getattr(event, part) or 0) > getattr(event, of):
            raise InvalidEventError("contradiction", f"{part} is more than {of}")
    for name in _SECONDS:
        value = getattr(event, name)
        if value is not None and (type(value) not in (int, float) or not 0 <= value < 1e9):
            raise InvalidEventError("invalid_seconds", f"{name} must be a number of seconds, 0 or more")
    if type(event.status) is not int or not 100 <= event.status <= 599:
        raise InvalidEventError("invalid_status", "status must be an HTTP status")
    if type(event.usage_estimated) is not bool:
        raise InvalidEventError("invalid_flag", "usage_estimated must be true or false")
