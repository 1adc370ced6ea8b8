"""Recounting: captured texts counted again, with the tokenizer that the event names by its fingerprint."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from tokenizers import Tokenizer

from billing.aggregates import whole
from billing.errors import AuditError
from billing.tables import event_batches, usage_events
from tallybook.captured import NotDecryptedError, TextKeys

# What these operations count is the text of the request, if it is one text: of several, which the event holds
# line by line, and of token ids nobody knows where one ended. What an engine generates from is its own count.
_COUNTED = ("analyze", "embeddings", "classify")
_SEVERAL = re.compile(r".*\n.*|\[\d+(, \d+)*\]", re.DOTALL)
_PART = 1000  # texts that are counted at once


class Difference(NamedTuple):
    """An event whose tokens are not those of its text."""

    event_id: str
    metered_tokens: int
    recounted_tokens: int


@dataclass(frozen=True)
class Recount:
    """What became of each event of a day.

    events = recounted + not_captured + those of unknown tokenizers + those not recounted.
    `dropped` events, which retention has taken out of the ledger, can't be counted and are not among them.
    `not_captured`: the event does not hold the whole text. `not_decrypted`: of those, events that hold it
    encrypted, with a key that is not in the settings, or altered. `unknown_tokenizers`: captured texts by a
    fingerprint that no exported model has. `not_recounted`: captured texts, by operation, whose tokens are
    not those of one text.
    """

    day: date
    events: int = 0
    recounted: int = 0
    not_captured: int = 0
    not_decrypted: int = 0
    dropped: int = 0
    unknown_tokenizers: dict[str, int] = field(default_factory=dict)
    not_recounted: dict[str, int] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()


def recount(connection: Connection, day: date, models_dir: Path, keys: TextKeys) -> Recount:
    """Count the prompt tokens of a day's captured texts again, special tokens included, as serving does.

    A text is captured when the prefix that the event keeps is all of it, or when one of `keys` decrypts it:
    what is counted has the hash of the whole.
    Raises: AuditError: a tokenizer can't be read (code tokenizer_unreadable).
    """
    tokenizers = _Tokenizers(models_dir)
    events = recounted = not_captured = not_decrypted = 0
    unknown: Counter[str] = Counter()
    others: Counter[str] = Counter()
    differences: list[Difference] = []
    columns = [usage_events.c[name] for name in _Event._fields]
    query = sa.select(*columns).where(usage_events.c.day == day)
    for part in connection.execute(query, execution_options={"yield_per": _PART}).partitions():
        captured: list[tuple[_Event, str]] = []
        for event in (_Event(*row) for row in part):
            try:
                text = event.text(keys)
            except NotDecryptedError:
                not_decrypted += 1
                text = None
            if text is None:
                not_captured += 1
            elif event.is_one(text):
                captured.append((event, text))
            else:
                others[event.operation] += 1
        events += len(part)
        for fingerprint, found in groupby(sorted(captured), lambda one: one[0].tokenizer_fingerprint):
            same = list(found)
            tokenizer = tokenizers.get(fingerprint)
            if tokenizer is None:
                unknown[fingerprint] += len(same)
                continue
            recounted += len(same)
            encodings = tokenizer.encode_batch_fast([text for _, text in same])
            differences += [
                Difference(event.id, event.prompt_tokens, len(encoding.ids))
                for (event, _), encoding in zip(same, encodings, strict=True)
                if event.prompt_tokens != len(encoding.ids)
            ]
    return Recount(
        day,
        events,
        recounted,
        not_captured,
        not_decrypted,
        _dropped(connection, day),
        dict(unknown),
        dict(others),
        tuple(sorted(differences)),
    )


def _dropped(connection: Connection, day: date) -> int:
    gone = sa.and_(event_batches.c.day == day, event_batches.c.dropped_at.is_not(None))
    query = sa.select(whole(sa.func.sum(event_batches.c.requests))).where(gone)
    return connection.execute(query).scalar_one()


class _Event(NamedTuple):
    tokenizer_fingerprint: str
    id: str
    operation: str
    prompt_tokens: int
    prompt_sha256: str | None
    prompt_prefix: bytes | None

    prompt_encrypted: str | None

    def text(self, keys: TextKeys) -> str | None:
        """The whole text of the request; None: the event does not hold it.

        Raises: NotDecryptedError: it holds it, and can't be read.
        """
        if self.prompt_encrypted is not None:
            text = keys.decrypt(self.prompt_encrypted, self.id)
        elif self.prompt_prefix is not None:
            text = self.prompt_prefix.decode()
        else:
            return None
        return text if sha256(text.encode()).hexdigest() == self.prompt_sha256 else None

    def is_one(self, text: str) -> bool:
        """Whether the tokens of this text are those of the event."""
        if self.operation not in _COUNTED:
            return False
        return self.operation == "analyze" or not _SEVERAL.fullmatch(text)


class _Tokenizers:
    """The tokenizers of the exported models by their fingerprints; each is loaded when it is asked for."""

    def __init__(self, models_dir: Path) -> None:
        files = models_dir.glob("*/*/assets.extra/tokenizer.json")
        self._files = {sha256(file.read_bytes()).hexdigest(): file for file in files}
        self._loaded: dict[str, Tokenizer] = {}

    def get(self, fingerprint: str) -> Tokenizer | None:
        """None: no model has it."""
        file = self._files.get(fingerprint)
        if file is not None and fingerprint not in self._loaded:
            try:
                self._loaded[fingerprint] = Tokenizer.from_file(str(file))
            except Exception as error:  # noqa: BLE001 -- the library raises the bare Exception class
                raise AuditError("tokenizer_unreadable", f"{file}: {error}") from None
        return self._loaded.get(fingerprint)
