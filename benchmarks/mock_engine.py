"""Not an engine: says so, and answers at once as one would; `python -m benchmarks.mock_engine PORT`.

A chat is answered whole, or streamed as the request asks for in fields that no engine has: `mock_chunks` of
them, one every `mock_seconds`, each saying when it left, in nanoseconds of the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

_USAGE = {"prompt_tokens": 60, "completion_tokens": 12, "total_tokens": 72}
_SAYS = {"id": "chatcmpl-mock", "created": 1, "model": "mock", "system_fingerprint": "a mock, no engine"}
_WHOLE = json.dumps(
    {
        **_SAYS,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "This answer was made by no model at all."},
                "finish_reason": "stop",
            }
        ],
        "usage": _USAGE,
    }
).encode()
_ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_WHOLE) + _WHOLE
)
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._data = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- what create_server gives
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        _, _, length_and_more = head.lower().partition(b"content-length:")
        length = int(length_and_more.split(b"\r", 1)[0] or 0)
        if len(body) < length:
            return
        self._data = body[length:]
        if b'"stream":true' not in body and b'"stream": true' not in body:
            self._transport.write(_ANSWER)
            return
        asked = json.loads(body[:length])
        self._transport.write(_STREAM_HEAD)
        self._go_on(int(asked["mock_chunks"]), float(asked["mock_seconds"]))

    def _go_on(self, left: int, seconds: float) -> None:
        if self._transport.is_closing():
            return
        if left:
            choice = {"index": 0, "delta": {"content": f"{time.monotonic_ns()} "}, "finish_reason": None}
            self._say(json.dumps({**_SAYS, "object": "chat.completion.chunk", "choices": [choice]}))
            asyncio.get_running_loop().call_later(seconds, self._go_on, left - 1, seconds)
            return
        self._say(json.dumps({**_SAYS, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE}))
        self._say("[DONE]")
        self._transport.write(b"0\r\n\r\n")

    def _say(self, payload: str) -> None:
        data = f"data: {payload}\n\n".encode()
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", port, backlog=2048)
    print(f"a mock, no engine, on port {port}", flush=True)  # noqa: T201 -- who waits for it reads this
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
