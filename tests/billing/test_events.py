"""The fast way of reading an event decides as the slow one does, which is the rule."""

from datetime import datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.events import VALUE_COLUMNS, EventReader, EventRow, content_sha256
from tallybook.usage import InvalidEventError, UsageEvent
from tests.billing.factories import DAY, NOON, TRACED, ZONE, an_event


def read(raw: bytes, *, twice: bool) -> EventRow | str:
    """The row, or the code of the error; `twice`: by a reader that has seen the names and the minute."""
    reader = EventReader(ZONE, for_copy=False)
    if twice:
        for minute in range(-2, 3):
            known = an_event(time=NOON + timedelta(minutes=minute), model_label="canary")
            reader.read(orjson.dumps(known.to_record()))
    try:
        return reader.read(raw)
    except InvalidEventError as error:
        return error.code


def rule(record: Any) -> str | None:
    """The code that the rule refuses a record with, None when it is an event."""
    try:
        UsageEvent.from_record(record)
    except InvalidEventError as error:
        return error.code
    return None


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.just(10**18), st.floats(allow_nan=False),
    st.text(max_size=4),
    st.sampled_from(
        ["", "-", "user-a", "canary", "standard", "1.0", "x" * 129, "a\x7fb", "a\u2028b", "\u3000", "名",
         "2026-11-21T04:00:60.000000+00:00", "2026-11-21T04:00:0\u0663.000000+00:00",
         "2026-11-21T04:00:00.0000+0+00:00", "2026-11-21T04:00:00.250000+08:00", "2026-11-21T04:00:00Z",
         "2026-11-21 04:00:00.000000+00:00", "2026-11-21T04:00:00,000000+00:00",
         "0" * 32, "a" * 32, "A" * 32, "two words",
         "2026-W47-6T04:00:00.000000+00:00", "2026-11-21T04:00:00.1234567+00:00"]
    ),
    st.lists(st.booleans(), max_size=1), st.dictionaries(st.text(max_size=2), st.booleans(), max_size=1),
)  # fmt: skip
PLACES = st.sampled_from(
    [("envelope", name) for name in ("id", "source", "type", "specversion", "subject", "time",
                                     "datacontenttype", "traceparent", "data")]
    + [("data", name) for name in (*UsageEvent.__slots__, "total_tokens", "audio_tokens")]
)  # fmt: skip
REMOVED = object()


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(PLACES, ODD | st.just(REMOVED)), max_size=3), st.booleans(), st.booleans())
def test_any_record_is_read_as_the_rule_reads_it(changes: list[Any], labelled: bool, traced: bool) -> None:
    more = TRACED if traced else {}
    record = an_event(model_label="canary" if labelled else None, prompt_prefix="很好", **more).to_record()
    for (part, name), value in changes:
        target = record["data"] if part == "data" and isinstance(record.get("data"), dict) else record
        if value is REMOVED:
            target.pop(name, None)
        else:
            target[name] = value
    raw = orjson.dumps(record)
    slow, fast = read(raw, twice=False), read(raw, twice=True)
    assert fast == slow
    refused = rule(orjson.loads(raw))
    assert (slow if isinstance(slow, str) else None) == refused


@pytest.mark.parametrize(
    ("time", "code"),
    [
        ("9999-12-31T23:59:59.000000+00:00", "invalid_time"),  # its day has no end in the calendar
        ("9999-12-31T23:59:59Z", "invalid_time"),
        ("0001-01-01T00:00:00Z", "invalid_time"),  # its day has no beginning in UTC
    ],
)
def test_a_moment_at_the_ends_of_the_calendar_is_refused(time: str, code: str) -> None:
    assert read(orjson.dumps(an_event().to_record() | {"time": time}), twice=False) == code


def test_what_is_nested_too_deep_to_be_kept_is_refused() -> None:
    nested = b"[" * 500 + b"]" * 500
    raw = orjson.dumps(an_event().to_record() | {"trace": "nested"}).replace(b'"nested"', nested)
    assert read(raw, twice=False) == "nested_too_deep"


@pytest.mark.parametrize("extra", [{}, {"trace": 1}])
def test_a_negative_zero_is_zero_as_databases_have_it(extra: dict[str, int]) -> None:
    told = [
        EventReader(ZONE, for_copy=False).read(orjson.dumps(event.to_record() | extra))
        for zero in (0.0, -0.0)
        for event in [an_event(id="a", duration_seconds=zero, time_to_first_token_seconds=zero)]
    ]
    assert told[0].content_sha256 == told[1].content_sha256


def test_an_event_that_is_ours_takes_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = EventReader(ZONE, for_copy=False)
    reader.read(orjson.dumps(an_event(model_label="canary", prompt_prefix="a").to_record()))
    monkeypatch.setattr(UsageEvent, "from_record", None)
    labelled = an_event(model_label="canary", prompt_sha256="a" * 64, cached_tokens=7)
    for event in (an_event(), labelled, an_event(**TRACED)):
        assert reader.read(orjson.dumps(event.to_record())).tokens == (100, event.cached_tokens, 20)


@given(st.integers(-80 * 365 * 24 * 3600, 130 * 365 * 24 * 3600))
def test_the_day_and_hour_of_a_known_minute_are_those_of_the_calendar(seconds: int) -> None:
    reader = EventReader(ZONE, for_copy=False)
    time = datetime.fromtimestamp(0, timezone.utc) + timedelta(seconds=seconds)
    near = [time + timedelta(seconds=s) for s in (0, 1, 20, 59)]
    told = [reader.read(orjson.dumps(an_event(time=t).to_record())) for t in near]
    fresh = [EventReader(ZONE, for_copy=False).read(orjson.dumps(an_event(time=t).to_record())) for t in near]
    assert [(r.day, r.ready[-2]) for r in told] == [(r.day, r.ready[-2]) for r in fresh]


def test_an_event_has_the_digest_that_it_had_before_there_were_more_fields() -> None:
    event = an_event(id="0199-1", prompt_prefix="很好", cached_tokens=7)
    row = EventReader(ZONE, for_copy=False).read(orjson.dumps(event.to_record()))
    assert row.content_sha256.hex() == "eb2f435bd65d0162ea5216281347bdbf5354a51e432e9a61e9bbf87c9250a3c6"


@settings(deadline=None)
@given(st.sets(st.sampled_from(sorted(TRACED))), st.sets(st.sampled_from(sorted(TRACED))))
def test_each_field_that_is_said_is_in_the_digest(one: set[str], other: set[str]) -> None:
    digests = [
        EventReader(ZONE, for_copy=False).read(orjson.dumps(event.to_record())).content_sha256
        for said in (one, other)
        for event in [an_event(id="a", **{name: TRACED[name] for name in said})]
    ]
    assert (digests[0] == digests[1]) == (one == other)


def test_the_digest_of_a_stored_row_is_that_of_the_event() -> None:
    row = EventReader(ZONE, for_copy=False).read(orjson.dumps(an_event(prompt_prefix="很\x00好").to_record()))
    stored = dict(zip(VALUE_COLUMNS, row.ready, strict=True)) | {"time": NOON}
    assert (row.day, content_sha256(stored)) == (DAY, row.content_sha256)
    assert content_sha256(stored | {"client_ip": "10.0.0.1"}) != row.content_sha256


def test_a_prefix_that_is_no_text_any_more_has_another_digest_than_text_that_looks_like_it() -> None:
    row = EventReader(ZONE, for_copy=False).read(orjson.dumps(an_event(prompt_prefix=r"\xff").to_record()))
    stored = dict(zip(VALUE_COLUMNS, row.ready, strict=True)) | {"time": NOON}
    assert content_sha256(stored) == row.content_sha256
    assert content_sha256(stored | {"prompt_prefix": b"\xff"}) != row.content_sha256
