"""The model server's REST port: TensorFlow Serving's monitoring endpoint, and nothing else."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

PATH = "/monitoring/prometheus/metrics"
_PATIENCE_SECONDS = 10.0  # with a client that connects and says nothing


class Monitoring:
    """A bound, not yet serving, HTTP server that answers GET PATH."""

    def __init__(self, host: str, port: int, exposition: Callable[[], str]) -> None:
        """Raises: OSError: the address can't be bound."""

        class Handler(BaseHTTPRequestHandler):
            timeout = _PATIENCE_SECONDS

            def do_GET(self) -> None:
                if self.path.partition("?")[0] != PATH:
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                body = exposition().encode()
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing: a scrape every few seconds is no news."""

        bare = host.strip("[]")  # gRPC writes IPv6 addresses in brackets
        try:
            family = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)[0][0]
            self._server = _server(family)((bare, port), Handler)
        except OSError as error:
            raise OSError(f"can't listen on {host}:{port}: is another server running there?") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitoring", daemon=True)

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

    return Server
