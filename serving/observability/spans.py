"""Spans for OpenTelemetry, one for each request to a model, with its `gen_ai.*` attributes.

Off unless `otlp_endpoint` is set; then the extra `otel` must be installed. A span is made when its request
has ended, from what is known of it, and sent in a thread of OpenTelemetry's own: no request waits for that.
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

from serving.observability.trace import Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_NANOSECONDS = 1_000_000_000
_PATH = "/v1/traces"


class Spans:
    """Makes and sends spans. Safe for many threads."""

    def __init__(self, endpoint: str, exporter: SpanExporter | None = None) -> None:
        """`endpoint`: http://HOST:4318 of a collector. Raises: ImportError: the extra is not installed."""
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._api = trace
        self._ids = _Ids()
        resource = Resource.create({"service.name": "tallybook"})
        self._provider = TracerProvider(resource=resource, id_generator=cast(Any, self._ids))
        exporter = exporter or OTLPSpanExporter(endpoint=endpoint.rstrip("/") + _PATH)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tallybook")

    def record(self, ended: Trace) -> None:
        """Send the span of a request that has ended; of none that no model was asked for."""
        if ended.operation is None:
            return
        self._ids.next = ended
        span = self._tracer.start_span(
            f"{ended.operation} {ended.model}",
            context=self._context(ended),
            kind=self._api.SpanKind.SERVER,
            attributes=_attributes(ended),
            start_time=int((ended.ended_at - ended.seconds) * _NANOSECONDS),
        )
        if ended.status >= 500:
            span.set_status(self._api.Status(self._api.StatusCode.ERROR))
        span.end(end_time=int(ended.ended_at * _NANOSECONDS))

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()

    def _context(self, ended: Trace) -> Any:
        if ended.parent is None:
            return self._api.set_span_in_context(self._api.INVALID_SPAN)
        parent = self._api.SpanContext(
            trace_id=int(ended.parent.trace_id, 16),
            span_id=int(ended.parent.span_id, 16),
            is_remote=True,
            trace_flags=self._api.TraceFlags(int(ended.parent.flags, 16)),
        )
        return self._api.set_span_in_context(self._api.NonRecordingSpan(parent))


class _Ids(threading.local):
    """Gives a span the ids that its request has told others already."""

    next: Trace

    def generate_trace_id(self) -> int:
        """Of the request; asked for when the client has no trace."""
        return int(self.next.trace_id, 16)

    def generate_span_id(self) -> int:
        """Of the request."""
        return int(self.next.span(), 16)

    def is_trace_id_random(self) -> bool:
        """Whether the ids are random: the first bits of a request's id are its time."""
        return False


def _attributes(ended: Trace) -> dict[str, str | int]:
    caller = ended.caller
    found = {
        "gen_ai.operation.name": ended.operation,
        "gen_ai.provider.name": "tallybook",
        "gen_ai.request.model": ended.model,
        "gen_ai.response.model": ended.model,
        "gen_ai.response.id": ended.request_id,
        "gen_ai.usage.input_tokens": ended.prompt_tokens,
        "gen_ai.usage.output_tokens": ended.completion_tokens,
        "tallybook.model.version": ended.model_version,
        "tallybook.project": caller and caller.project,
        "enduser.id": caller and caller.user,
        "http.route": ended.route,
        "http.response.status_code": ended.status,
        "error.type": ended.code,
    }
    return {name: value for name, value in found.items() if value is not None}
