import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybook.usage import MAX_ENCRYPTED, MAX_TOKENS, InvalidEventError, UsageEvent, new_event_id

EVENT = UsageEvent(
    id="0199-1",
    source="tallybook/api",
    time=datetime(2026, 11, 22, 8, 30, 0, 250_000, tzinfo=timezone.utc),
    user="user-a",
    project="search",
    department="retail",
    operation="analyze",
    model="review-sentiment",
    model_version="1",
    tokenizer_fingerprint="f" * 64,
    prompt_tokens=100,
    completion_tokens=20,
    duration_seconds=0.0125,
    client_ip="127.0.0.1",
    status=200,
)
NAMES = st.from_regex(r"[A-Za-z0-9._@:\-]{1,128}", fullmatch=True)
COUNTS = st.integers(0, MAX_TOKENS)


@given(NAMES, COUNTS, COUNTS, st.none() | st.text(), st.booleans())
def test_an_event_reads_back_as_it_was_written(
    name: str, prompt: int, completion: int, prefix: str | None, estimated: bool
) -> None:
    event = replace(
        EVENT, user=name, project=name, prompt_tokens=prompt, completion_tokens=completion,
        cached_tokens=prompt // 2, prompt_prefix=prefix, usage_estimated=estimated, api_key_id=name,
        reasoning_tokens=completion // 2, delivered_tokens=completion // 3 if estimated else None,
        trace_id="a" * 31 + "0", prompt_encrypted="x" * 1000 if prefix else None,
    )  # fmt: skip
    assert UsageEvent.from_record(json.loads(json.dumps(event.to_record()))) == event


def test_a_record_is_a_cloudevent_with_the_names_of_openai_usage() -> None:
    record = EVENT.to_record()
    assert record["specversion"] == "1.0"
    assert record["type"] == "tallybook.usage.v1"
    assert record["subject"] == "user-a"
    assert record["time"] == "2026-11-22T08:30:00.250000+00:00"
    assert record["data"]["total_tokens"] == 120
    assert "prompt_prefix" not in record["data"]


def with_data(**changes: Any) -> dict[str, Any]:
    record = EVENT.to_record()
    record["data"] |= changes
    return record


def with_envelope(**changes: Any) -> dict[str, Any]:
    return EVENT.to_record() | changes


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ([], "not_an_object"),
        (with_envelope(type="tallybook.usage.v2"), "unknown_type"),
        (with_envelope(specversion="0.3"), "unknown_type"),
        (with_envelope(data=None), "invalid_data"),
        ({k: v for k, v in EVENT.to_record().items() if k != "id"}, "missing_field"),
        (with_data(model=None), "missing_field"),
        (with_envelope(subject="user-a\n{}"), "invalid_name"),
        (with_envelope(subject=""), "invalid_name"),
        (with_envelope(subject=7), "invalid_name"),
        (with_envelope(id=""), "invalid_text"),
        (with_envelope(source="a\x00b"), "invalid_text"),
        (with_envelope(time="2026-11-22T08:30:00"), "invalid_time"),
        (with_envelope(time="2026-13-22T08:30:00Z"), "invalid_time"),
        (with_envelope(time=1795331501), "invalid_time"),
        (with_data(prompt_tokens=-1), "invalid_count"),
        (with_data(prompt_tokens=1.0), "invalid_count"),
        (with_data(prompt_tokens=True), "invalid_count"),
        (with_data(completion_tokens=MAX_TOKENS + 1), "invalid_count"),
        (with_data(cached_tokens=101), "contradiction"),
        (with_data(total_tokens=121), "contradiction"),
        (with_data(duration_seconds="1"), "invalid_seconds"),
        (with_data(duration_seconds=float("nan")), "invalid_seconds"),
        (with_data(status=0), "invalid_status"),
        (with_data(usage_estimated=1), "invalid_flag"),
        (with_data(prompt_prefix=["x"]), "invalid_text"),
        (with_data(reasoning_tokens=21), "contradiction"),
        (with_data(reasoning_tokens=-1), "invalid_count"),
        (with_data(delivered_tokens=21), "contradiction"),
        (with_data(delivered_tokens=False), "invalid_count"),
        (with_data(api_key_id=""), "invalid_text"),
        (with_data(api_key_id="key\n"), "invalid_text"),
        (with_data(trace_id="0" * 32), "invalid_text"),
        (with_data(trace_id="A" * 32), "invalid_text"),
        (with_data(trace_id=7), "invalid_text"),
        (with_data(prompt_encrypted="two words"), "invalid_text"),
        (with_data(prompt_encrypted="é"), "invalid_text"),
        (with_data(prompt_encrypted="x" * (MAX_ENCRYPTED + 1)), "invalid_text"),
    ],
)
def test_what_is_no_event_is_refused_with_a_code(record: Any, code: str) -> None:
    with pytest.raises(InvalidEventError) as refused:
        UsageEvent.from_record(record)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("2026-11-22T16:30:00+08:00", 0),
        ("2026-11-22t08:30:00.25z", 250_000),
        ("2026-11-22T08:30:00.123456789Z", 123_456),
    ],
)
def test_any_rfc_3339_time_is_read_on_every_python(text: str, microseconds: int) -> None:
    read = UsageEvent.from_record(with_envelope(time=text))
    assert read.time == datetime(2026, 11, 22, 8, 30, 0, microseconds, tzinfo=timezone.utc)
    assert read.time.utcoffset() == timedelta(0)


def test_a_field_of_a_newer_producer_does_not_stop_the_event() -> None:
    assert UsageEvent.from_record(with_data(audio_tokens=3)) == EVENT


def test_event_ids_are_uuids_of_version_7_in_the_order_of_time() -> None:
    early, late = new_event_id(1_000_000.0), new_event_id(1_000_000.001)
    assert early < late
    assert early[14] == "7"
    assert early[19] in "89ab"
    assert len({new_event_id() for _ in range(10_000)}) == 10_000


def test_reading_an_event_needs_the_standard_library_only() -> None:
    code = "import sys, tallybook.usage; print(sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True)
    for package in ("tensorflow", "flask", "sqlalchemy", "pydantic", "orjson", "numpy"):
        assert f"'{package}'" not in done.stdout
