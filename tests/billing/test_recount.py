"""An auditor counts captured texts again: what serving counted agrees, and a forged count is found."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import Engine
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from billing.errors import AuditError
from billing.ingest import ingest
from billing.ledger import reading
from billing.recount import Difference, Recount, recount
from billing.retention import drop_events
from serving.tokenization import load_version
from tallybook.calendar import billing_day
from tallybook.captured import TextKeys
from tallybook.usage import UsageEvent
from tests.apis import MODEL, USER, export, running_app
from tests.billing.days import close
from tests.billing.factories import DAY, ZONE, an_event, write_segment

NO_KEYS = TextKeys({}, None)
TEXTS = [
    "房间很干净",
    "hotel 服务态度差!",
    "  spaces \n and new lines ",
    "𠀀 unknown 🙂",
    "[CLS] hotel [SEP]",
    "x" * 60,
]


def captured(models_dir: Path, text: str, version: int = 1, **changes: Any) -> UsageEvent:
    """An event that keeps its whole text, counted as serving counts."""
    counted_by = load_version(models_dir, MODEL, version)
    counted = {
        "operation": "analyze",
        "tokenizer_fingerprint": counted_by.tokenizer_fingerprint,
        "prompt_tokens": len(counted_by.prompt_ids(text)),
        "prompt_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "prompt_prefix": text,
    }
    return an_event(**(counted | changes))


def recounted(ledger: Engine, folder: Path, *events: UsageEvent, keys: TextKeys = NO_KEYS) -> Recount:
    write_segment(folder / "journal", events)
    ingest(ledger, folder / "journal", ZONE)
    with reading(ledger) as connection:
        return recount(connection, DAY, folder / "models", keys)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models_dir with versions 1 and 2 of the tests' model, which share their tokenizer."""
    export(tmp_path / "models", 1)
    export(tmp_path / "models", 2)
    return tmp_path / "models"


def test_what_the_api_metered_is_what_an_auditor_counts(ledger: Engine, tmp_path: Path) -> None:
    with running_app(tmp_path, prompt_capture="prefix", prompt_prefix_characters=40) as api:
        answers = [api.analyze(text) for text in TEXTS]
        days = {billing_day(event.time, ZONE) for event in api.events()}
    served = [answer.get_json()["usage"]["prompt_tokens"] for answer in answers if answer.status_code == 200]
    assert len(served) == len(TEXTS)
    ingest(ledger, tmp_path / "journal", ZONE)
    with reading(ledger) as connection:
        found = [recount(connection, day, tmp_path / "models", NO_KEYS) for day in sorted(days)]
    assert sum(each.events for each in found) == len(TEXTS)
    assert sum(each.not_captured for each in found) == 1  # longer than what is kept
    assert sum(each.recounted for each in found) == len(TEXTS) - 1
    assert [each.differences for each in found] == [()] * len(found)


def test_what_v1_counts_is_recounted_where_it_is_one_text(ledger: Engine, tmp_path: Path) -> None:
    with running_app(tmp_path, prompt_capture="prefix") as api:
        for given in ("hotel", "房间很干净", ["hotel", "good"], [5, 6]):
            body = {"model": MODEL, "input": given}
            assert api.client.post("/v1/classify", json=body, headers=USER).status_code == 200
        [day] = {billing_day(event.time, ZONE) for event in api.events()}
    ingest(ledger, tmp_path / "journal", ZONE)
    with reading(ledger) as connection:
        found = recount(connection, day, tmp_path / "models", NO_KEYS)
    assert found == Recount(day, events=4, recounted=2, not_recounted={"classify": 2})


def test_texts_captured_in_full_are_counted_by_who_has_the_key(
    ledger: Engine, tmp_path: Path, models: Path
) -> None:
    keys = TextKeys({"old": b"o" * 32, "new": b"n" * 32}, "new")
    text = "房间很干净 " * 6
    whole = captured(models, text)

    def sealed(by: TextKeys, **changes: Any) -> UsageEvent:
        event = captured(models, text, prompt_prefix=None, **changes)
        return replace(event, prompt_encrypted=by.encrypt(text, event.id))

    old, lost = TextKeys({"old": b"o" * 32}, "old"), TextKeys({"lost": b"l" * 32}, "lost")
    moved = replace(sealed(keys), prompt_encrypted=sealed(keys).prompt_encrypted)
    forged = sealed(keys, prompt_tokens=3)
    found = recounted(
        ledger, tmp_path, whole, sealed(keys), sealed(old), sealed(lost), moved, forged, keys=keys
    )
    assert found == Recount(
        DAY, events=6, recounted=4, not_captured=2, not_decrypted=2,
        differences=(Difference(forged.id, 3, whole.prompt_tokens),),
    )  # fmt: skip


def test_a_forged_count_is_found_and_named(ledger: Engine, tmp_path: Path, models: Path) -> None:
    honest = [captured(models, text, version) for text in TEXTS for version in (1, 2)]
    true = honest[0].prompt_tokens
    forged = captured(models, TEXTS[0], prompt_tokens=true + 1, id="forged")
    # Special tokens are part of what the model gets, and are billed.
    bare = captured(models, TEXTS[0], prompt_tokens=true - 2, id="bare")
    found = recounted(ledger, tmp_path, *honest, forged, bare)
    assert found.differences == (Difference("bare", true - 2, true), Difference("forged", true + 1, true))
    assert (found.events, found.recounted) == (len(honest) + 2, len(honest) + 2)


def test_only_whole_texts_of_known_tokenizers_on_that_day_are_counted(
    ledger: Engine, tmp_path: Path, models: Path
) -> None:
    text = TEXTS[0]
    found = recounted(
        ledger,
        tmp_path,
        captured(models, text),
        captured(models, text, prompt_prefix=text[:3], prompt_tokens=1),  # a part of the text
        captured(models, text, prompt_prefix=None),
        captured(models, text, prompt_sha256=None, prompt_prefix=None),
        captured(models, text, operation="chat"),  # counted by an engine
        captured(models, text, tokenizer_fingerprint="e" * 64),
        captured(models, text, time=an_event().time + timedelta(days=1), prompt_tokens=1),
    )
    assert found == Recount(
        DAY,
        events=6,
        recounted=1,
        not_captured=3,
        unknown_tokenizers={"e" * 64: 1},
        not_recounted={"chat": 1},
    )


def test_each_event_is_counted_by_its_own_tokenizer_wherever_it_lies(
    ledger: Engine, tmp_path: Path, models: Path
) -> None:
    definition = models / "other" / "7" / "assets.extra" / "tokenizer.json"
    definition.parent.mkdir(parents=True)
    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(definition))  # noqa: S106  a token
    fingerprint = hashlib.sha256(definition.read_bytes()).hexdigest()
    other = captured(models, TEXTS[0], tokenizer_fingerprint=fingerprint, prompt_tokens=1)
    assert recounted(ledger, tmp_path, other, captured(models, TEXTS[0])).differences == ()


def test_a_tokenizer_that_can_not_be_read_is_told(
    sqlite_ledger: Engine, tmp_path: Path, models: Path
) -> None:
    event = captured(models, TEXTS[0], tokenizer_fingerprint=hashlib.sha256(b"{}").hexdigest())
    (models / MODEL / "2" / "assets.extra" / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(AuditError) as caught:
        recounted(sqlite_ledger, tmp_path, event)
    assert caught.value.code == "tokenizer_unreadable"


def test_more_events_than_one_reading_holds_are_all_counted(
    sqlite_ledger: Engine, tmp_path: Path, models: Path
) -> None:
    event = captured(models, TEXTS[0])
    events = [an_event(**{n: getattr(event, n) for n in _FIELDS}) for _ in range(2500)]
    assert recounted(sqlite_ledger, tmp_path, *events).recounted == 2500


_FIELDS = ("operation", "tokenizer_fingerprint", "prompt_tokens", "prompt_sha256", "prompt_prefix")


def test_events_that_retention_has_dropped_are_told_not_passed_over(
    ledger: Engine, tmp_path: Path, models: Path
) -> None:
    assert recounted(ledger, tmp_path, captured(models, TEXTS[0])).events == 1
    close(ledger, DAY)
    assert [dropped.events for dropped in drop_events(ledger, DAY + timedelta(days=1))] == [1]
    with reading(ledger) as connection:
        assert recount(connection, DAY, models, NO_KEYS) == Recount(DAY, dropped=1)


def test_a_day_without_events_has_nothing_to_count(sqlite_ledger: Engine, tmp_path: Path) -> None:
    with reading(sqlite_ledger) as connection:
        assert recount(connection, DAY, tmp_path / "none", NO_KEYS) == Recount(DAY)
