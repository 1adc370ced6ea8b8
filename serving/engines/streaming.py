"""Streams an engine's answer to the client, chunk by chunk, and accounts for it before it ends.

The event is durable before the last line, `data: [DONE]`, leaves. A client that leaves earlier is billed what
was generated until then, and the engine's connection is closed, which makes it stop. What the client did not
ask for (usage) or should not see (the engine's own name of the model) is taken out on the way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson

from serving.engines.call import NOTHING, EngineCall
from serving.engines.upstream import Answer
from serving.engines.usage import EngineUsage, as_openai_says
from serving.errors import ApiError, JournalError, ModelRejectedError, ModelTimeoutError, OverloadedError
from serving.openai_errors import render

CLIENT_LEFT = 499  # nginx's status for it
_HEARTBEAT = b": waiting\n\n"  # a comment: shows that the connection lives, and whether the client does
_HEARTBEAT_SECONDS = 10.0
_SILENT = "The engine did not go on in time."
_MOST_LINE_BYTES = 4 << 20
_MOST_AT_HAND_BYTES = 4 << 20  # that are read once a client has left
_REASONING = ("reasoning_content", "reasoning")  # two names for one text; some engines send both

log = logging.getLogger(__name__)


class Relay:
    """The body of a streamed answer, for the server to iterate over and to close. Never raises."""

    def __init__(self, call: EngineCall, answer: Answer, *, wants_usage: bool) -> None:
        """Raises: ModelRejectedError: the answer is no stream."""
        if not answer.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            raise ModelRejectedError("The engine of this model did not answer with a stream.")
        self._call = call
        self._answer = answer
        self._model = call.target.model
        self._wants_usage = wants_usage
        self._rest = b""  # of a line that has not ended
        self._waiting = b""  # for the next turn: what may leave only then
        self._chunk: dict[str, Any] = {}  # the last one, for what its successor must have in common with it
        self._usage: EngineUsage | None = None  # of all that was said until now
        self._texts: dict[int, bytearray] = {}  # what each choice has said
        self._finished = False  # the model said why it stopped
        self._given = 0  # bytes of all texts that the server was given
        self._taken = 0  # bytes of all texts that it asked for more after
        self._since = time.monotonic()
        self._failure: ApiError | None = None  # for the next turn: what was before it is told first
        self._ended = False
        self._turn = threading.Lock()  # held by whoever goes on, or ends it
        self._on_end: list[Callable[[], None]] = []

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call this once when the stream is over."""
        self._on_end.append(call)

    def __iter__(self) -> Relay:
        return self

    def __next__(self) -> bytes:
        with self._turn:
            self._taken = self._given
            if self._ended:
                self._end()
                raise StopIteration
            try:
                data = self._finish() if self._waiting else self._relay()
            except ApiError as error:
                data = self._break_off(error)
            except Exception:
                log.exception("streaming request %s failed", self._call.current.request_id)
                fault = ModelRejectedError("The answer broke off through a fault of the server.")
                data = self._break_off(fault)
            return data

    def close(self) -> None:
        """The server is done, or the client has left."""
        self._close(CLIENT_LEFT, "client_left")

    def stop(self) -> None:
        """This process ends and the client takes nothing: account for it now. From any thread."""
        self._close(OverloadedError.status, OverloadedError.code)

    def _close(self, status: int, code: str) -> None:
        with self._turn:
            try:
                if not self._ended:
                    self._leave(status, code)
            finally:
                self._end()

    def _relay(self) -> bytes:
        """The next chunks for the client, waiting for them. Raises: ApiError: there are none."""
        heartbeat_at = time.monotonic() + _HEARTBEAT_SECONDS
        while True:
            if self._failure is not None:
                raise self._failure
            left = heartbeat_at - time.monotonic()
            if left <= 0:
                return _HEARTBEAT
            patience = self._patience()
            try:
                # What is there is read in any case: the client may have been slow, not the engine.
                data = self._answer.read(min(patience, left))
            except TimeoutError:
                if patience <= 0:
                    raise ModelTimeoutError(_SILENT) from None
                continue
            self._since = time.monotonic()
            if not data:
                return self._at_the_end()
            chunks = self._chunks(data)
            if chunks:
                self._given = self._said()
                return chunks
            if self._waiting:
                return self._finish()

    def _patience(self) -> float:
        """How long the engine may still be silent. Raises: ModelTimeoutError: its time is up in all."""
        engine, now = self._call.target.engine, time.monotonic()
        if now >= self._call.deadline:
            raise ModelTimeoutError(_SILENT)
        silence = engine.idle_seconds if self._texts else engine.first_token_seconds
        return min(self._since + silence, self._call.deadline) - now

    def _chunks(self, data: bytes) -> bytes:
        """The lines for the client in what the engine has sent; a failure among them is kept."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        out = b""
        for line in lines:
            if not line.startswith(b"data:"):
                continue  # what stands between events, and comments
            payload = line[5:].strip()
            if payload == b"[DONE]":
                self._waiting = b"data: [DONE]\n\n"
                break
            try:
                out += self._chunk_for_client(payload)
            except ModelRejectedError as error:
                self._failure = error
                return out
        if len(self._rest) > _MOST_LINE_BYTES:
            self._failure = ModelRejectedError("The engine sent a line without end.")
        return out

    def _chunk_for_client(self, payload: bytes) -> bytes:
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError:
            chunk = None
        if not isinstance(chunk, dict):
            raise ModelRejectedError("The engine sent something that is not JSON.")
        if says_error(chunk):
            raise ModelRejectedError("The engine failed in the middle of its answer.")
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            choices = []
        if self._listen(choices):
            self._usage = None  # it was of less
        altered = False
        if "usage" in chunk:
            # The last one counts: some engines repeat it, some send what they have so far with every chunk.
            usage = self._call.said(chunk["usage"])
            # vLLM says with one of several choices what that one has so far.
            if usage is not None and (not choices or len(choices) == self._call.parts):
                self._usage = usage
            if not choices:
                self._chunk = chunk
                return b""
            if not self._wants_usage:
                del chunk["usage"]
                altered = True
            elif chunk["usage"] is not None:
                chunk["usage"] = None
                altered = True
        if chunk.get("model") != self._model:
            chunk["model"] = self._model
            altered = True
        self._chunk = chunk
        return b"data: " + (orjson.dumps(chunk) if altered else payload) + b"\n\n"

    def _listen(self, choices: list[Any]) -> bool:
        """Keep what was said, for counting it if need be; and whether anything was."""
        has_heard = False
        for choice in choices:
            if isinstance(choice, dict):
                index = choice.get("index", 0)
                self._finished = self._finished or bool(choice.get("finish_reason"))
                for text in texts_of(choice, "delta"):
                    has_heard = True
                    if self._call.first_token_at is None:
                        self._call.first_token_at = time.monotonic()
                    heard = self._texts.get(index if type(index) is int else 0)
                    if heard is None:
                        heard = self._texts[index if type(index) is int else 0] = bytearray()
                    heard += text.encode("utf-8", "replace")
        return has_heard

    def _said(self) -> int:
        texts = self._texts
        return len(texts[0]) if len(texts) == 1 and 0 in texts else sum(map(len, texts.values()))

    def _at_the_end(self) -> bytes:
        """Over without `[DONE]`: whole if the model had finished. Raises: ModelRejectedError."""
        if not self._finished:
            raise ModelRejectedError("The engine broke off in the middle of its answer.")
        self._waiting = b"data: [DONE]\n\n"
        return self._finish()

    def _finish(self) -> bytes:
        """Record the whole answer; then its end may leave. Raises: JournalError."""
        usage, estimated = self._settled()
        self._call.record(200, usage, estimated=estimated)
        self._ended = True
        self._answer.at_hand()  # the end of its framing: read whole, its connection can be kept
        if not self._wants_usage:
            return self._waiting
        last: dict[str, Any] = {
            "id": self._chunk.get("id"),
            "object": self._chunk.get("object"),
            "created": self._chunk.get("created"),
            "model": self._model,
            "choices": [],
            "usage": as_openai_says(usage),
        }
        return b"data: " + orjson.dumps(last) + b"\n\n" + self._waiting

    def _settled(self) -> tuple[EngineUsage, bool]:
        """The usage, and whether it is our own count."""
        said = self._usage
        if said is not None and (said.completion or not self._texts):
            return said, False
        return self._call.counted(_decoded(text) for text in self._texts.values()), True

    def _break_off(self, error: ApiError) -> bytes:
        """Bill what was generated, and tell the client why there is no more; that costs nothing."""
        usage, estimated = self._settled()
        if not usage.completion:
            usage, estimated = NOTHING, False
        try:
            self._call.record(error.status, usage, estimated=estimated)
        except JournalError as unrecorded:
            error = unrecorded
        self._ended = True
        self._call.current.code, self._call.current.reason = error.code, error.message
        return b"data: " + render(error) + b"\n\n"

    def _leave(self, status: int, code: str) -> None:
        """The client takes no more: what is generated by now is billed, what it got is counted apart."""
        self._ended = True
        self._call.current.code = code
        taken = self._taken
        try:
            self._hear_the_rest()
        except Exception:
            log.exception("the rest of request %s is not counted", self._call.current.request_id)
        usage, estimated = self._settled()
        try:
            delivered = min(self._call.target.tokenizer.counts(self._first(taken)), usage.completion)
            self._call.record(status, usage, estimated=estimated, delivered=delivered)
        except JournalError:
            log.exception("request %s is not billed: its client left", self._call.current.request_id)

    def _hear_the_rest(self) -> None:
        """What has come already and nobody will read."""
        size_bytes = 0
        while size_bytes < _MOST_AT_HAND_BYTES and (data := self._answer.at_hand()):
            size_bytes += len(data)
            self._chunks(data)

    def _first(self, size_bytes: int) -> list[str]:
        """About the first bytes of the texts; with several choices, as many of each as there are of all."""
        said = self._said()
        share = size_bytes / said if said else 0.0
        return [_decoded(text[: round(len(text) * share)]) for text in self._texts.values()]

    def _end(self) -> None:
        self._call.done(self._answer)
        calls, self._on_end = self._on_end, []
        for call in calls:
            call()


def texts_of(choice: dict[str, Any], holder: str) -> list[str]:
    """What a choice of an answer says: its text, or the texts and tool calls of its message or delta."""
    said = choice.get(holder)
    if not isinstance(said, dict):
        text = choice.get("text")
        return [text] if isinstance(text, str) and text else []
    reasoning = next((text for name in _REASONING if (text := said.get(name))), None)
    texts = [said.get("content"), reasoning, said.get("refusal")]
    tools = said.get("tool_calls")
    functions = (
        [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    )
    functions.append(said.get("function_call"))  # what OpenAI had before tools
    for function in functions:
        if isinstance(function, dict):
            texts += [function.get("name"), function.get("arguments")]
    return [text for text in texts if isinstance(text, str) and text]


def says_error(document: dict[str, Any]) -> bool:
    """Whether an answer, or a chunk of one, is an engine's complaint, though its status was 200."""
    return bool(document.get("error")) or document.get("object") == "error"


def _decoded(text: bytes | bytearray) -> str:
    return text.decode("utf-8", "replace")
