"""One request to an engine: its reservation, its place, its answer, and the one event that comes of it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import orjson

from serving.engines.models import EngineModel
from serving.engines.tokens import Prompt
from serving.engines.upstream import Answer
from serving.engines.usage import EngineUsage, read_usage
from serving.errors import (
    ApiError,
    ModelOverloadedError,
    ModelRejectedError,
    ModelTimeoutError,
    RefusedByModelError,
    describe,
)
from serving.metering import Served
from serving.observability.trace import Trace
from serving.services import Services
from tallybook.usage import MAX_TOKENS

NOTHING = EngineUsage(0, 0)
_JSON = {"Content-Type": "application/json"}
_MOST_WORDS = 1000  # characters of an engine's complaint that are passed on
_OF_THE_REQUEST = (400, 413, 422)  # an engine says so of what the client sent
_BUSY = (429, 503)
_LATE = (408, 504)
_LONGEST_WAIT_SECONDS = 3600


class EngineCall:
    """From the reservation to the event. For one thread at a time; whoever makes one must see it recorded."""

    def __init__(
        self,
        services: Services,
        current: Trace,
        target: EngineModel,
        operation: str,
        prompt: Prompt,
        most_tokens: int,
        parts: int,
    ) -> None:
        """`parts`: the answers asked for, or the inputs to embed; each fits into the model's context.

        Raises: ApiError: the quota has no room, or no place is free in time; there will be no event.
        """
        self.current = current
        self.target = target
        self.prompt = prompt
        self.parts = parts
        self.first_token_at: float | None = None
        self._services = services
        self._caller = caller = current.known_caller
        self._operation = operation
        self._recorded = False
        self._reservation = services.reserve(current, caller, target.model, most_tokens)
        self._place = ExitStack()
        try:
            deadline = current.started + services.settings.deadline_seconds
            self._place.enter_context(services.queue.place(caller, target.model, deadline))
        except BaseException:
            self._reservation.release()
            raise
        services.holding.hold(self._reservation)
        current.operation, current.model = operation, target.model
        current.model_version = target.version_name
        current.prompt_tokens = prompt.tokens

    @property
    def deadline(self) -> float:
        """When the engine must have answered wholly."""
        return self.current.started + self.target.engine.total_seconds

    def ask(self, path: str, body: bytes) -> Answer:
        """The engine's answer, whose status is 200. Raises: ApiError: there is none, which is recorded."""
        try:
            return self._ask(path, body)
        except BaseException as error:
            self.failed(error)
            raise

    def record(
        self,
        status: int,
        usage: EngineUsage,
        *,
        estimated: bool = False,
        delivered: int | None = None,
        answer: bytes = b"",
    ) -> None:
        """Make the event durable, settle the reservation and give the place back; once, whatever comes after.

        Args:
            delivered: the completion tokens that reached the client, if not all did.
            answer: the whole answer, to be given again for the same Idempotency-Key.
        Raises: JournalError: it is not recorded and never will be, and costs nothing.
        """
        if self._recorded:
            return
        self._recorded = True
        self.current.prompt_tokens, self.current.completion_tokens = usage.prompt, usage.completion
        first = self.first_token_at
        try:
            self._services.meter.record(
                Served(
                    request_id=self.current.request_id,
                    caller=self._caller,
                    operation=self._operation,
                    version=self.target,
                    text=self.prompt.text,
                    prompt_tokens=usage.prompt,
                    completion_tokens=usage.completion,
                    started=self.current.started,
                    trace_id=self.current.client_trace_id,
                    deadline=time.monotonic() + self._services.settings.deadline_seconds,
                    status=status,
                    cached_tokens=usage.cached,
                    reasoning_tokens=usage.reasoning,
                    delivered_tokens=delivered,
                    usage_estimated=estimated,
                    time_to_first_token_seconds=None if first is None else first - self.current.started,
                    attempt=self.current.attempt,
                    answer=answer,
                )
            )
        except BaseException:
            self._reservation.release()
            raise
        else:
            self._reservation.settle(usage.prompt + usage.completion)
        finally:
            self._services.holding.let_go(self._reservation)
            self._place.close()

    def failed(self, error: BaseException) -> None:
        """Record that nothing came of it, and that it costs nothing. Raises: JournalError."""
        self.record(describe(error)[0], NOTHING)

    def said(self, usage: Any) -> EngineUsage | None:
        """The usage that the engine reports, or None if it is missing or can't be true of this request."""
        return read_usage(usage, min(self.parts * self.target.engine.max_context_tokens, MAX_TOKENS))

    def counted(self, texts: Iterable[str]) -> EngineUsage:
        """The usage where the engine says none: what we count."""
        return EngineUsage(self.prompt.tokens, self.target.tokenizer.counts(texts))

    def done(self, answer: Answer) -> None:
        """Let go of the engine's connection; closing an answer that is under way cancels it."""
        self.target.upstream.done(answer)

    def _ask(self, path: str, body: bytes) -> Answer:
        engine, upstream = self.target.engine, self.target.upstream
        patience = min(engine.first_token_seconds, engine.total_seconds)
        headers = {**_JSON, **self.current.passed_on()}
        answer = upstream.post(path, body, headers, patience)
        if answer.status == 200:
            return answer
        try:
            words = _complaint(answer.read_all(time.monotonic() + engine.idle_seconds))
        finally:
            self.done(answer)
        raise _refusal(answer, words)


def _refusal(answer: Answer, words: str) -> ApiError:
    status = answer.status
    if status in _OF_THE_REQUEST:
        return RefusedByModelError(words or f"The engine refused the request with status {status}.")
    if status in _BUSY:
        return ModelOverloadedError("The engine of this model takes no more requests now.", _wait(answer))
    if status in _LATE:
        return ModelTimeoutError("The engine of this model did not answer in time.")
    return ModelRejectedError(f"The engine of this model failed with status {status}.")


def _complaint(body: bytes) -> str:
    """What an engine says is wrong, in any of the forms that they have for it."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    for name in ("error", "message", "detail"):
        if isinstance(document, dict) and name in document:
            document = document[name]
    return document[:_MOST_WORDS] if isinstance(document, str) else ""


def _wait(answer: Answer) -> int:
    said = answer.headers.get(b"retry-after", b"")
    return max(1, min(int(said[:9]), _LONGEST_WAIT_SECONDS)) if said.isdigit() else 1
