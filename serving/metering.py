"""Metering: the one usage event of a request to a model, in the journal before the answer leaves."""

from __future__ import annotations

import hashlib
import time
from dataclasses import MISSING, fields
from datetime import datetime, timezone
from typing import Any, NamedTuple, Protocol

from serving.access.idempotency import Attempt
from serving.access.identity import Caller
from serving.journal import Sink
from serving.observability.metrics import Metrics
from serving.settings import ServingSettings
from tallybook.usage import EVENT_TYPE, MAX_ENCRYPTED, UsageEvent

SOURCE = "tallybook/api"
_OPTIONAL = ("model_label", "delivered_tokens", "time_to_first_token_seconds", "trace_id")
_DEFAULTS = {f.name: f.default for f in fields(UsageEvent) if f.default not in (MISSING, None)}
_LEAST_WAIT_SECONDS = 1.0  # an answer that is made already is worth another second


class Counted(Protocol):
    """What answered, and what its tokens are counted with: a version of the catalog, or an engine's model."""

    @property
    def model(self) -> str:
        """The name that is billed."""
        ...

    @property
    def version_name(self) -> str:
        """The version that answered."""
        ...

    @property
    def tokenizer_fingerprint(self) -> str:
        """The SHA-256 of the tokenizer."""
        ...


class Served(NamedTuple):
    """A request that the model was asked, and what came of it. `started`, `deadline`: of `time.monotonic`.

    `model_label`: the label under which the version answered. `trace_id`: the client's, if it sent one.
    `delivered_tokens`: None if the client got all
    that was generated. `usage_estimated`: the tokens are counted by us, since the engine said none.
    """

    request_id: str
    caller: Caller
    operation: str
    version: Counted
    text: str
    prompt_tokens: int
    completion_tokens: int
    started: float
    deadline: float
    model_label: str | None = None
    status: int = 200
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    delivered_tokens: int | None = None
    usage_estimated: bool = False
    time_to_first_token_seconds: float | None = None
    trace_id: str | None = None
    attempt: Attempt | None = None
    answer: bytes = b""


class Meter:
    """Records what was served. Safe for many threads."""

    def __init__(self, settings: ServingSettings, journal: Sink, metrics: Metrics) -> None:
        self._capture = settings.prompt_capture
        self._project_capture = settings.project_prompt_capture
        self._prefix = settings.prompt_prefix_characters
        self._keys = settings.text_keys
        self._journal = journal
        self._metrics = metrics

    def record(self, served: Served) -> None:
        """Return when the event of this request is durable.

        Raises: JournalError: it is not recorded and never will be; the answer must not leave. Of a request
            with an Idempotency-Key also StillRunningError, AccessUnavailableError.
        """
        answered = time.monotonic()
        record = self._record(served, answered - served.started)
        if served.attempt is not None and served.answer:
            served.attempt.keep(record, served.answer)
        self._journal.append(record, max(served.deadline - answered, _LEAST_WAIT_SECONDS))
        self._metrics.journal_wait_seconds.observe(time.monotonic() - answered)
        if served.attempt is not None and served.answer:
            served.attempt.done()
        self._metrics.served(
            served.version.model, answered - served.started, served.time_to_first_token_seconds
        )
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
            "cached_tokens": served.cached_tokens,
            "reasoning_tokens": served.reasoning_tokens,
            "usage_estimated": served.usage_estimated,
            "duration_seconds": round(duration_seconds, 6),
            "client_ip": caller.client_ip,
            "status": served.status,
            "total_tokens": served.prompt_tokens + served.completion_tokens,
        }
        if caller.api_key_id is not None:
            data["api_key_id"] = caller.api_key_id
        for name in _OPTIONAL:
            value = getattr(served, name)
            if value is not None:
                data[name] = value
        self._keep(data, served)
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

    def _keep(self, data: dict[str, Any], served: Served) -> None:
        """Add to the event what the project's policy keeps of the text."""
        capture = self._project_capture.get(served.caller.project, self._capture)
        if capture == "none":
            return
        data["prompt_sha256"] = hashlib.sha256(served.text.encode()).hexdigest()
        if capture == "prefix":
            data["prompt_prefix"] = served.text[: self._prefix]
        elif capture == "full":
            encrypted = self._keys.encrypt(served.text, served.request_id)
            if len(encrypted) <= MAX_ENCRYPTED:  # a longer one must not cost the event
                data["prompt_encrypted"] = encrypted
