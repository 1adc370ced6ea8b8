"""The model server's REST port: the REST API, and TensorFlow Serving's monitoring endpoint."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from serving.model_server.rest import Answer

METRICS_PATH = "/monitoring/prometheus/metrics"
_API = "/v1/"
_PATIENCE_SECONDS = 30.0  # with a client that is connected and says nothing
_JSON, _TEXT = "application/json", "text/plain; version=0.0.4; charset=utf-8"


class HttpServer:
    """A bound, not yet serving, HTTP/1.1 server; a thread for each connection."""

    def __init__(
        self,
        host: str,
        port: int,
        exposition: Callable[[], str],
        answer: Callable[[str, str, bytes], Answer],
    ) -> None:
        """`exposition` is what METRICS_PATH tells; `answer(method, path, body)` is the REST API.

        Raises: OSError: the address can't be bound.
        """

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = _PATIENCE_SECONDS
            wbufsize = -1  # head and body leave together
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == METRICS_PATH:
                    self._send(HTTPStatus.OK, _TEXT, exposition().encode())
                else:
                    self._ask("GET", path, b"")

            def do_POST(self) -> None:
                try:
                    length = int(self.headers.get("Content-Length", ""))
                except ValueError:
                    self.close_connection = True
                    self._send(HTTPStatus.LENGTH_REQUIRED, _TEXT, b"")
                    return
                self._ask("POST", self.path.partition("?")[0], self.rfile.read(max(0, length)))

            def _ask(self, method: str, path: str, body: bytes) -> None:
                if not path.lower().startswith(_API):
                    self._send(HTTPStatus.NOT_FOUND, _TEXT, b"")
                    return
                answered = answer(method, path, body)
                self._send(answered.status, _JSON, answered.body)

            def _send(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()

            def log_message(self, *_: object) -> None:
                """Say nothing: a request is no news."""

        bare = host.strip("[]")  # gRPC writes IPv6 addresses in brackets
        try:
            family = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)[0][0]
            self._server = _server(family)((bare, port), Handler)
        except OSError as error:
            raise OSError(f"can't listen on {host}:{port}: is another server running there?") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="rest", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more, and give the port back."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _server(family: int) -> type[socketserver.ThreadingTCPServer]:
    class Server(socketserver.ThreadingTCPServer):
        address_family = family
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """A connection that broke is no news."""

    return Server
