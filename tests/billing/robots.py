"""Stand-ins for the chat robots of WeCom, DingTalk, Feishu and Slack, which no test can have.

They answer as the vendors' documentation says: HTTP 200 with an error in the body, also to a wrong signature.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

SECRET = "SEC-of-a-robot"  # noqa: S105  of stand-ins


class Robots:
    """What came, by path: /wecom, /dingtalk, /feishu, /slack, /webhook; and how it is to be answered."""

    def __init__(self) -> None:
        self.url = ""
        self.came: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.refusals: list[tuple[int, bytes]] = []  # the answers to the next requests
        self.silent = 0  # how many requests are taken, and not answered

    def texts(self) -> list[str]:
        """The texts that came."""
        return [_text(body) for _, body, _ in self.came]


@contextmanager
def running_robots() -> Iterator[Robots]:
    """A server with all of them, on a free port."""
    robots = Robots()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            robots.came.append((parts.path, body, dict(self.headers)))
            if robots.silent:
                robots.silent -= 1
                self.close_connection = True
                return
            status, answer = robots.refusals.pop(0) if robots.refusals else _answer(parts, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_args: object) -> None:
            """Not in the output of tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    robots.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield robots
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(parts: Any, body: dict[str, Any]) -> tuple[int, bytes]:
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    if parts.path == "/wecom":
        if len(_text(body).encode()) > 2048:
            return 200, b'{"errcode":40058,"errmsg":"text.content exceed max length 2048"}'
        return 200, b'{"errcode":0,"errmsg":"ok"}'
    if parts.path == "/dingtalk":
        # https://open.dingtalk.com/document/robots/customize-robot-security-settings
        said = f"{query.get('timestamp')}\n{SECRET}".encode()
        sign = base64.b64encode(hmac.new(SECRET.encode(), said, hashlib.sha256).digest()).decode()
        if query.get("sign") != sign:
            return 200, b'{"errcode":310000,"errmsg":"sign not match"}'
        return 200, b'{"errcode":0,"errmsg":"ok"}'
    if parts.path == "/feishu":
        # https://open.feishu.cn/document/client-docs/bot-v3/add-custom-bot
        key = f"{body.get('timestamp')}\n{SECRET}".encode()
        sign = base64.b64encode(hmac.new(key, digestmod=hashlib.sha256).digest()).decode()
        if body.get("sign") != sign:
            return 200, b'{"code":19021,"msg":"sign match fail or timestamp is not within one hour"}'
        return 200, b'{"StatusCode":0,"StatusMessage":"success","code":0,"data":{},"msg":"success"}'
    if parts.path == "/slack":
        return 200, b"ok"
    return 204, b""


def _text(body: dict[str, Any]) -> str:
    text = body.get("text") or body.get("content")
    return str(text.get("content") or text.get("text")) if isinstance(text, dict) else str(text)
