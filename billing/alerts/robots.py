"""Chat robots and webhooks: how each wants a message, and how it says that it did not take it.

Robots of WeCom, DingTalk and Feishu answer HTTP 200 to what they refuse; only the body tells.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import orjson

from billing.errors import NotifyError
from billing.reports.words import shown

_TIMEOUT_SECONDS = 10
_LONGEST_ANSWER_BYTES = 1 << 16
_SHOWN_ANSWER = 300
_SHOWN = 20  # changes that a message lists; of the others it gives the number


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be said: lines for people, and the same as data for programs.

    `head` is always said; of `changes`, a line each, as many as there is room for; `more` tells how many
    are left out: "and {count} more".
    """

    id: str  # the same when it is sent again
    head: tuple[str, ...]
    changes: tuple[str, ...]
    more: str
    data: Mapping[str, Any]

    def text(self, most_bytes: int = sys.maxsize) -> str:
        """What people read, no longer than that in UTF-8; none of its lines breaks, or turns text around.

        Changes are left out whole, the last ones first; only the first is cut where it does not fit alone.
        """
        head, changes = ([shown(line) for line in lines] for lines in (self.head, self.changes))
        said = end = ""
        for kept in range(min(len(changes), _SHOWN), 0, -1):
            said = "\n".join([*head, *changes[:kept]])
            left = len(changes) - kept
            end = "\n" + self.more.format(count=f"{left:,}") if left else ""
            if len((said + end).encode()) <= most_bytes:
                return said + end
        return said.encode()[: most_bytes - len(end.encode())].decode("utf-8", "ignore") + end


@dataclass(frozen=True, slots=True)
class Robot:
    """Where messages go: a kind of robot, its address, and the secret that it signs with, if any."""

    kind: str
    url: str = field(repr=False)
    secret: str = field(default="", repr=False)

    @property
    def place(self) -> str:
        """The address without the keys in it."""
        return f"{self.kind} {urlsplit(self.url).hostname}"

    def send(self, message: Message, now_seconds: float) -> None:
        """Post a message, and read the answer.

        Raises: NotifyError: the robot refused it, and does not have it (code notify_refused); or nobody
            knows whether it has it (notify_uncertain).
        """
        how = _KINDS[self.kind]
        url, body = how.request(self, message, now_seconds)
        headers = {"Content-Type": "application/json; charset=utf-8", "Idempotency-Key": message.id}
        request = urllib.request.Request(url, orjson.dumps(body), headers, method="POST")  # noqa: S310
        try:
            with _opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                told = answer.read(_LONGEST_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            code = "notify_refused" if error.code < 500 else "notify_uncertain"
            raise NotifyError(code, f"{self.place}: HTTP {error.code}{_shown(error.read(1000))}") from None
        except urllib.error.URLError as error:
            # Not reached at all: it can't have the message. A time-out may be on the way back.
            certain = isinstance(error.reason, ConnectionRefusedError | OSError) and not isinstance(
                error.reason, TimeoutError
            )
            code = "notify_refused" if certain else "notify_uncertain"
            raise NotifyError(code, f"{self.place}: {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise NotifyError("notify_uncertain", f"{self.place}: {type(error).__name__}: {error}") from None
        if not how.took(told):
            raise NotifyError("notify_refused", f"{self.place} refused it{_shown(told)}")


def robot_of(address: str) -> Robot | None:
    """Read `wecom+https://…`, `dingtalk+https://…#SECRET`, `feishu+…`, `slack+…`, `webhook+…`; None: another.

    The secret behind # is what the robot's signature is made with; it is never sent.
    """
    kind, plus, url = address.partition("+")
    parts = urlsplit(url)
    if not plus or kind not in _KINDS or parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return Robot(kind, urlunsplit(parts._replace(fragment="")), parts.fragment)


def dingtalk_signature(secret: str, milliseconds: int) -> str:
    """HMAC-SHA256 of 'timestamp\\nsecret' with the secret as key, in Base64, not yet encoded for a URL."""
    digest = hmac.new(secret.encode(), f"{milliseconds}\n{secret}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def feishu_signature(secret: str, seconds: int) -> str:
    """HMAC-SHA256 of nothing with 'timestamp\\nsecret' as key, in Base64."""
    digest = hmac.new(f"{seconds}\n{secret}".encode(), b"", hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def _wecom(robot: Robot, message: Message, _now: float) -> tuple[str, Any]:
    # `text` knows no mark-up: nothing in a name becomes a link, and nobody is mentioned.
    return robot.url, {"msgtype": "text", "text": {"content": message.text(2048)}}


def _dingtalk(robot: Robot, message: Message, now: float) -> tuple[str, Any]:
    url = robot.url
    if robot.secret:
        milliseconds = int(now * 1000)
        signature = quote(dingtalk_signature(robot.secret, milliseconds), safe="")
        url += f"{'&' if urlsplit(url).query else '?'}timestamp={milliseconds}&sign={signature}"
    # Mentions are in `at`, and there are none.
    return url, {"msgtype": "text", "text": {"content": message.text(18_000)}, "at": {"isAtAll": False}}


def _feishu(robot: Robot, message: Message, now: float) -> tuple[str, Any]:
    # Even in a text, <at user_id="all"> is a mention.
    text = message.text(18_000).replace("<", "‹").replace(">", "›")
    body: dict[str, Any] = {"msg_type": "text", "content": {"text": text}}
    if robot.secret:
        seconds = int(now)
        body |= {"timestamp": str(seconds), "sign": feishu_signature(robot.secret, seconds)}
    return robot.url, body


def _slack(robot: Robot, message: Message, _now: float) -> tuple[str, Any]:
    text = message.text(35_000).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return robot.url, {"text": text, "mrkdwn": False, "link_names": 0, "unfurl_links": False}


def _webhook(robot: Robot, message: Message, _now: float) -> tuple[str, Any]:
    return robot.url, {"id": message.id, "text": message.text(), **message.data}


def _has_code_zero(*names: str) -> Callable[[bytes], bool]:
    def took(answer: bytes) -> bool:
        try:
            told = orjson.loads(answer)
        except orjson.JSONDecodeError:
            return False
        found = [told[name] for name in names if name in told] if isinstance(told, dict) else []
        return bool(found) and all(type(code) is int and code == 0 for code in found)

    return took


@dataclass(frozen=True, slots=True)
class _Kind:
    request: Callable[[Robot, Message, float], tuple[str, Any]]
    took: Callable[[bytes], bool]


_KINDS = {
    "wecom": _Kind(_wecom, _has_code_zero("errcode")),
    "dingtalk": _Kind(_dingtalk, _has_code_zero("errcode")),
    "feishu": _Kind(_feishu, _has_code_zero("code", "StatusCode")),
    "slack": _Kind(_slack, lambda answer: answer.strip() == b"ok"),
    "webhook": _Kind(_webhook, lambda _: True),
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A robot that has moved is told of: a POST that follows would become a GET that says nothing."""

    def redirect_request(self, *_args: Any, **_more: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def _shown(answer: bytes) -> str:
    text = " ".join(answer.decode("utf-8", "replace").split())[:_SHOWN_ANSWER]
    return f": {text}" if text else ""
