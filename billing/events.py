"""A usage event as a row of the ledger, and the digest that tells whether it was altered."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import orjson

from billing.csv_lines import csv_line
from billing.merkle import leaf_hash
from billing.rating import CONTEXT_BANDS, context_band
from tallybook.calendar import billing_day, billing_hour
from tallybook.usage import (
    DATA_NAMES,
    ENVELOPE_NAMES,
    MAX_TEXT,
    MAX_TOKENS,
    NAME,
    InvalidEventError,
    UsageEvent,
    is_encrypted,
    is_trace_id,
)

# The columns of `usage_events` that hold what the event said, in the order in which it is hashed.
SAID = (
    "id", "source", "time", "user_id", "project", "department", "operation", "model", "model_version",
    "model_label", "latency_class", "tokenizer_fingerprint", "prompt_tokens", "completion_tokens",
    "cached_tokens", "usage_estimated", "duration_seconds", "time_to_first_token_seconds", "client_ip",
    "status", "prompt_sha256", "prompt_prefix", "extra", "reasoning_tokens", "delivered_tokens", "api_key_id",
    "trace_id", "prompt_encrypted",
)  # fmt: skip
LINE_COLUMNS = (*SAID, "day", "batch_id", "hour", "context_band")
VALUE_COLUMNS = (*SAID, "hour", "context_band")  # the day and the batch are the same for all of a batch
# Stands for the number of a batch. No text of an event holds it: control characters are refused or escaped.
BATCH = b"\x01"
# What the columns behind `extra` hold when the event does not say them. Such values are left out of the
# digest from its end, so that an event has one digest, whichever columns the ledger has got since.
_SINCE = SAID.index("extra") + 1
_UNSAID = (0, None, None, None, None)
# The same as CSV: what a line of COPY lacks when the JSON of the event ends at this column.
_REST_OF_LINE = {
    end: b"".join(b",0" if value == 0 else b",null" for value in _UNSAID[end - _SINCE :])
    for end in range(_SINCE, len(SAID) + 1)
}
_TIME, _PREFIX = SAID.index("time"), SAID.index("prompt_prefix")
_PROMPT, _CACHED, _COMPLETION = (
    SAID.index(name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
)
_NO_LABEL = "-"  # a name like any other, which stands where there is no label
_REST_OF_TIME = re.compile(r":[0-5]\d\.\d{6}\+00:00", re.ASCII)
_MINUTE = re.compile(r"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d", re.ASCII)
_SECOND_BAND = CONTEXT_BANDS[1]
_REMEMBERED = 50_000  # of a kind: some 8 MB


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, lt=1e9)]


class _Data(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    project: str
    department: str
    operation: str
    model: str
    model_version: str
    tokenizer_fingerprint: str
    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    duration_seconds: _Seconds
    client_ip: str
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    total_tokens: int
    model_label: str | None = None
    latency_class: str = "standard"
    cached_tokens: _Tokens = 0
    usage_estimated: bool = False
    time_to_first_token_seconds: _Seconds | None = None
    prompt_sha256: str | None = None
    prompt_prefix: str | None = None
    reasoning_tokens: _Tokens = 0
    delivered_tokens: _Tokens | None = None
    api_key_id: str | None = None
    trace_id: str | None = None
    prompt_encrypted: str | None = None


class _Record(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    specversion: Literal["1.0"]
    id: str
    source: str
    type: Literal["tallybook.usage.v1"]
    subject: str
    time: str
    datacontenttype: Literal["application/json"]
    data: _Data


_decode = msgspec.json.Decoder(_Record).decode


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """An event as its database takes it, the day on which it counts, and the digest of what it said.

    `time` is RFC 3339 text in UTC to the microsecond. `ready` is either a line for COPY with its end, the
    values of LINE_COLUMNS, with BATCH in the place of its batch's number; or the values of VALUE_COLUMNS.
    """

    id: str
    time: str
    day: date
    content_sha256: bytes
    tokens: tuple[int, int, int]  # prompt, cached and completion
    ready: Any


class _When(NamedTuple):
    """The billing day and hour of a moment, and what of a line for COPY is behind what was said."""

    day: date
    hour: str
    first_band: bytes

    def rest_of_line(self, prompt_tokens: int) -> bytes:
        return b"%b%d\n" % (self.first_band.removesuffix(b"0\n"), context_band(prompt_tokens))


class EventReader:
    """Reads journal lines into rows, for one billing time zone; remembers the names and minutes it has seen.

    `for_copy`: rows are made ready as lines, else as values. What `UsageEvent.from_record` decides in 13 µs
    is decided here in 3 for an event that is written as ours are; anything else is left to `from_record`,
    which is the rule.
    """

    def __init__(self, zone: tzinfo, *, for_copy: bool) -> None:
        self._zone = zone
        self._for_copy = for_copy
        self._names: set[str] = {_NO_LABEL}
        self._texts: set[str] = {_NO_LABEL}
        self._minutes: dict[str, _When] = {}

    def read(self, raw: bytes) -> EventRow:
        """The row of a line. Raises: InvalidEventError: it is not a usage event."""
        try:
            said = self._plain(_decode(raw))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            said = None
        if said is not None:
            when = self._minutes[said[2][:16]]
        else:
            event, said = _by_the_rule(raw)
            when = self._when(event.time)
        told, end = _told(said)
        prompt = said[_PROMPT]
        ready: Any
        if self._for_copy:
            start = told[1:-1] + _REST_OF_LINE[end] if b"\\" not in told else _escaped_line(said)
            ready = start + (when.first_band if prompt < _SECOND_BAND else when.rest_of_line(prompt))
        else:
            ready = (*_stored(said), when.hour, context_band(prompt))
        tokens = (prompt, said[_CACHED], said[_COMPLETION])
        return EventRow(said[0], said[2], when.day, leaf_hash(told), tokens, ready)

    def _plain(self, record: _Record) -> tuple[Any, ...] | None:
        """What an event said that needs no second look, or None."""
        data, time, id_ = record.data, record.time, record.id
        label, key, sha256 = data.model_label, data.api_key_id, data.prompt_sha256
        prompt, completion = data.prompt_tokens, data.completion_tokens
        first = data.time_to_first_token_seconds
        names = (
            record.subject, data.project, data.department, data.model, data.model_version,
            _NO_LABEL if label is None else label, data.latency_class,
        )  # fmt: skip
        texts = (
            record.source, data.tokenizer_fingerprint, data.client_ip, data.operation,
            _NO_LABEL if key is None else key,
        )  # fmt: skip
        if not (
            (self._names.issuperset(names) or self._are_names(names))
            and (self._texts.issuperset(texts) or self._are_texts(texts))
            and data.cached_tokens <= prompt
            and data.reasoning_tokens <= completion
            and (data.delivered_tokens is None or data.delivered_tokens <= completion)
            and data.total_tokens == prompt + completion
            and len(time) == 32
            and (time[:16] in self._minutes or self._is_minute(time[:16]))
            and _REST_OF_TIME.fullmatch(time, 16)
            and 0 < len(id_) <= MAX_TEXT
            and id_.isascii()
            and id_.isprintable()
            and (sha256 is None or _is_text(sha256))
            and (data.trace_id is None or is_trace_id(data.trace_id))
            and (data.prompt_encrypted is None or is_encrypted(data.prompt_encrypted))
        ):
            return None
        return (
            id_, record.source, time, record.subject, data.project, data.department, data.operation,
            data.model, data.model_version, label or "", data.latency_class, data.tokenizer_fingerprint,
            prompt, completion, data.cached_tokens, data.usage_estimated, data.duration_seconds + 0.0,
            None if first is None else first + 0.0, data.client_ip, data.status, sha256,
            data.prompt_prefix, None, data.reasoning_tokens, data.delivered_tokens, key,
            data.trace_id, data.prompt_encrypted,
        )  # fmt: skip

    def _are_names(self, names: Iterable[str]) -> bool:
        return _remembered(self._names, names, lambda name: NAME.fullmatch(name) is not None)

    def _are_texts(self, texts: Iterable[str]) -> bool:
        return _remembered(self._texts, texts, _is_text)

    def _is_minute(self, text: str) -> bool:
        """Whether `text`, such as 2026-11-22T08:30, is a minute that lies in one billing hour."""
        if not _MINUTE.fullmatch(text):
            return False
        try:
            start = datetime.fromisoformat(f"{text}:00+00:00")
            found = self._when(start)
        except ValueError:  # also of an event at an end of the calendar
            return False
        if found != self._when(start + timedelta(seconds=59.999999)):
            return False
        if len(self._minutes) > _REMEMBERED:
            self._minutes.clear()
        self._minutes[text] = found
        return True

    def _when(self, time: datetime) -> _When:
        try:
            day, hour = billing_day(time, self._zone), _text_of(billing_hour(time, self._zone))
        except OverflowError:
            raise InvalidEventError("invalid_time", "time is on a day that the calendar cuts off") from None
        return _When(day, hour, b',"%b",%b,"%b",0\n' % (day.isoformat().encode(), BATCH, hour.encode()))


def content_sha256(row: Mapping[Any, Any]) -> bytes:
    """The digest that a row's columns come to now: another than the one kept says that it was altered."""
    said = [row[name] for name in SAID]
    said[_TIME] = _text_of(row["time"])
    prefix = row["prompt_prefix"]
    try:
        said[_PREFIX] = None if prefix is None else prefix.decode()
    except UnicodeDecodeError:  # altered: no event says a list, whatever text its prefix is
        said[_PREFIX] = [prefix.hex()]
    return leaf_hash(_told(said)[0])


def _by_the_rule(raw: bytes) -> tuple[UsageEvent, tuple[Any, ...]]:
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidEventError("not_json", f"not JSON: {error}") from None
    event = UsageEvent.from_record(record)
    first = event.time_to_first_token_seconds
    # Seconds as floats; + 0.0 makes -0.0, which SQLite does not keep, 0.0.
    return event, (
        event.id, event.source, _text_of(event.time), event.user, event.project, event.department,
        event.operation, event.model, event.model_version, event.model_label or "", event.latency_class,
        event.tokenizer_fingerprint, event.prompt_tokens, event.completion_tokens, event.cached_tokens,
        event.usage_estimated, event.duration_seconds + 0.0, None if first is None else first + 0.0,
        event.client_ip, event.status, event.prompt_sha256, event.prompt_prefix, _extra(record),
        event.reasoning_tokens, event.delivered_tokens, event.api_key_id, event.trace_id,
        event.prompt_encrypted,
    )  # fmt: skip


def _extra(record: Mapping[str, Any]) -> str | None:
    """What a newer producer sends besides the fields known here, as canonical JSON."""
    extra = {
        part: more
        for part, found, known in (("data", record["data"], DATA_NAMES), ("envelope", record, ENVELOPE_NAMES))
        if (more := {name: value for name, value in found.items() if name not in known})
    }
    try:
        return orjson.dumps(extra, option=orjson.OPT_SORT_KEYS).decode() if extra else None
    except orjson.JSONEncodeError:  # it reads deeper than it writes
        raise InvalidEventError("nested_too_deep", "a field holds more levels than can be kept") from None


def _told(said: Sequence[Any]) -> tuple[bytes, int]:
    """JSON of what was said, in the order of SAID, and the column at which it ends.

    Its hash is the event's digest and its leaf in the Merkle trees.
    """
    end = len(said)
    if said[_SINCE:] == _UNSAID:  # as mostly
        end = _SINCE
    while end > _SINCE and said[end - 1] == _UNSAID[end - 1 - _SINCE]:
        end -= 1
    return orjson.dumps(said[:end]), end


def _stored(said: tuple[Any, ...]) -> tuple[Any, ...]:
    """What was said, as the columns take it: the prefix of a prompt in bytes."""
    prefix = said[_PREFIX]
    return said if prefix is None else (*said[:_PREFIX], prefix.encode(), *said[_PREFIX + 1 :])


def _escaped_line(said: Sequence[Any]) -> bytes:
    """The line of an event whose JSON holds escapes, which CSV has others for."""
    values = list(said)
    if values[_PREFIX] is not None:
        values[_PREFIX] = "\\x" + values[_PREFIX].encode().hex()  # PostgreSQL's way of writing bytes
    return csv_line(values)


def _text_of(time: datetime) -> str:
    return time.astimezone(timezone.utc).isoformat(timespec="microseconds")


def _remembered(memory: set[str], values: Iterable[str], good: Callable[[str], bool]) -> bool:
    """Whether all values are good; those are asked for once."""
    if len(memory) > _REMEMBERED:
        memory.clear()
    for value in values:
        if value not in memory:
            if not good(value):
                return False
            memory.add(value)
    return True


def _is_text(value: str) -> bool:
    # Narrower than the rule of `UsageEvent`: ASCII without control characters.
    return 0 < len(value) <= MAX_TEXT and value.isascii() and value.isprintable()
