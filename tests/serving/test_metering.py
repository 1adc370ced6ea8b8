import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import metering
from tests.apis import running_app

TEXT = "房间很干净" * 10


@pytest.mark.parametrize(
    ("capture", "digest", "prefix"),
    [
        ({"prompt_capture": "none"}, None, None),
        ({}, hashlib.sha256(TEXT.encode()).hexdigest(), None),
        (
            {"prompt_capture": "prefix", "prompt_prefix_characters": 7},
            hashlib.sha256(TEXT.encode()).hexdigest(),
            TEXT[:7],
        ),
    ],
)
def test_an_event_keeps_of_the_text_what_is_configured_and_no_more(
    tmp_path: Path, capture: dict[str, Any], digest: str | None, prefix: str | None
) -> None:
    with running_app(tmp_path, **capture) as api:
        assert api.analyze(TEXT).status_code == 200
        [event] = api.events()
        assert (event.prompt_sha256, event.prompt_prefix) == (digest, prefix)
    [segment] = (tmp_path / "journal").glob("*.jsonl")
    assert TEXT.encode() not in segment.read_bytes()


KEY = {"k1": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}


def test_a_text_captured_in_full_is_encrypted_and_stands_nowhere_in_the_open(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_app(tmp_path, prompt_capture="full", prompt_keys=KEY, prompt_key="k1") as api:
        assert api.analyze(TEXT).status_code == 200
        [event] = api.events()
        keys = api.services.settings.text_keys
    assert event.prompt_encrypted is not None
    assert keys.decrypt(event.prompt_encrypted, event.id) == TEXT
    assert (event.prompt_sha256, event.prompt_prefix) == (hashlib.sha256(TEXT.encode()).hexdigest(), None)
    [segment] = (tmp_path / "journal").glob("*.jsonl")
    written = segment.read_text() + "".join(capfd.readouterr())
    assert TEXT[:4] not in written
    assert orjson.dumps(TEXT[:4]).decode() not in written


def test_each_project_has_its_policy(tmp_path: Path) -> None:
    policies = {"secret": "none", "open": "prefix", "audited": "full"}
    settings: dict[str, Any] = {"project_prompt_capture": policies, "prompt_keys": KEY, "prompt_key": "k1"}
    with running_app(tmp_path, **settings) as api:
        for project in [*policies, "default"]:
            api.analyze(TEXT, **{"X-Project-ID": project})
        events = {event.project: event for event in api.events()}
    kept = {
        project: [
            name for name in ("prompt_sha256", "prompt_prefix", "prompt_encrypted") if getattr(event, name)
        ]
        for project, event in events.items()
    }
    assert kept == {
        "secret": [],
        "open": ["prompt_sha256", "prompt_prefix"],
        "audited": ["prompt_sha256", "prompt_encrypted"],
        "default": ["prompt_sha256"],
    }


def test_a_text_too_long_to_keep_costs_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "MAX_ENCRYPTED", 60)
    with running_app(tmp_path, prompt_capture="full", prompt_keys=KEY, prompt_key="k1") as api:
        assert api.analyze(TEXT).status_code == 200
        [event] = api.events()
    assert event.prompt_encrypted is None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_whatever_is_answered_billing_can_read(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    with running_app(tmp_path_factory.mktemp("api"), prompt_capture="prefix") as api:
        answers = [api.analyze(text) for text in texts]
        answered = {a.get_json()["request_id"]: a.get_json() for a in answers if a.status_code == 200}
        events = {event.id: event for event in api.events()}
        assert events.keys() == answered.keys()
        for event_id, event in events.items():
            assert event.total_tokens == answered[event_id]["usage"]["total_tokens"]


def test_a_record_is_what_its_event_would_write(tmp_path: Path) -> None:
    with running_app(tmp_path, prompt_capture="prefix") as api:
        api.analyze(TEXT)
        [event] = api.events()
        [segment] = (tmp_path / "journal").glob("*.jsonl")
        assert orjson.loads(segment.read_bytes().splitlines()[0]) == event.to_record()
