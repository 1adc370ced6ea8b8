import gzip
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.apis import running_app
from tests.serving.observability.test_trace import PARENT, SPAN_ID, TRACE_ID

collector = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")


@pytest.fixture
def sent() -> Any:
    """A collector's endpoint, and the spans that it got."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = collector.ExportTraceServiceRequest.FromString(body)
            spans.extend(
                span for of in request.resource_spans for scope in of.scope_spans for span in scope.spans
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_request_is_a_span_in_the_clients_trace_with_its_tokens(tmp_path: Path, sent: Any) -> None:
    endpoint, spans = sent
    with running_app(tmp_path, otlp_endpoint=endpoint) as api:
        usage = api.analyze(**{"traceparent": PARENT}).get_json()["usage"]
        own = api.analyze().get_json()["request_id"]
        api.client.get("/healthz")
    first, second = spans
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert (second.trace_id.hex(), second.parent_span_id) == (own.replace("-", ""), b"")
    found = attributes(first)
    assert first.name == "analyze review-sentiment"
    assert found["gen_ai.operation.name"] == "analyze"
    assert found["gen_ai.request.model"] == "review-sentiment"
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert found["http.response.status_code"] == 200
    assert first.end_time_unix_nano > first.start_time_unix_nano


def test_without_an_endpoint_there_are_no_spans(tmp_path: Path) -> None:
    with running_app(tmp_path) as api:
        assert api.services.spans is None
