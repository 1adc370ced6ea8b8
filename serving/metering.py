"""Metering: the usage event of an answered request, in the journal before the answer leaves."""

from __future__ import annotations

import hashlib
import time
from dataclasses import MISSING, fields
from datetime import datetime, timezone
from typing import Any, NamedTuple

from serving.identity import Caller
from serving.journal import Journal
from serving.metrics import Metrics
from serving.settings import ServingSettings
from serving.tokenization import ModelVersion
from tallybook.usage import EVENT_TYPE, UsageEvent

SOURCE = "tallybook/api"
_DEFAULTS = {f.name: f.default for f in fields(UsageEvent) if f.default not in (MISSING, None)}
_LEAST_WAIT_SECONDS = 1.0  # an answer that is made already is worth another second


class Served(NamedTuple):
    """A request that the model has answered. `started` and `deadline` are of `time.monotonic`.

    `model_label`: the label under which the version answered.
    """

    request_id: str
    caller: Caller
    operation: str
    version: ModelVersion
    text: str
    prompt_tokens: int
    completion_tokens: int
    started: float
    deadline: float
    model_label: str | None = None


class Meter:
    """Records what was served. Safe for many threads."""

    def __init__(self, settings: ServingSettings, journal: Journal, metrics: Metrics) -> None:
        self._keeps_hash = settings.prompt_capture != "none"
        self._prefix = settings.prompt_prefix_characters if settings.prompt_capture == "prefix" else 0
        self._journal = journal
        self._metrics = metrics

    def record(self, served: Served) -> None:
        """Return when the event of this request is durable.

        Raises: JournalError: it is not recorded and never will be; the answer must not leave.
        """
        answered = time.monotonic()
        record = self._record(served, answered - served.started)
        self._journal.append(record, max(served.deadline - answered, _LEAST_WAIT_SECONDS))
        self._metrics.journal_wait_seconds.observe(time.monotonic() - answered)
        self._metrics.tokens(
            served.version.model,
            served.version.version_name,
            served.caller.project,
            served.prompt_tokens,
            served.completion_tokens,
        )

    def _record(self, served: Served, duration_seconds: float) -> dict[str, Any]:
        """The record that a `UsageEvent` of this request would give, without the cost of making one.

        The answer is complete now; the duration is kept to the microsecond.
        """
        caller, version = served.caller, served.version
        data: dict[str, Any] = {
            **_DEFAULTS,
            "project": caller.project,
            "department": caller.department,
            "operation": served.operation,
            "model": version.model,
            "model_version": version.version_name,
            "tokenizer_fingerprint": version.tokenizer_fingerprint,
            "prompt_tokens": served.prompt_tokens,
            "completion_tokens": served.completion_tokens,
            "duration_seconds": round(duration_seconds, 6),
            "client_ip": caller.client_ip,
            "status": 200,
            "total_tokens": served.prompt_tokens + served.completion_tokens,
        }
        if served.model_label is not None:
            data["model_label"] = served.model_label
        if self._keeps_hash:
            data["prompt_sha256"] = hashlib.sha256(served.text.encode()).hexdigest()
        if self._prefix:
            data["prompt_prefix"] = served.text[: self._prefix]
        return {
            "specversion": "1.0",
            "id": served.request_id,
            "source": SOURCE,
            "type": EVENT_TYPE,
            "subject": caller.user,
            "time": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            "datacontenttype": "application/json",
            "data": data,
        }
