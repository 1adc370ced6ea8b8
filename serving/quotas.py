"""What a caller may still use: reserved before a request is dispatched, settled when its tokens are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from serving.identity import Caller


class Reservation(Protocol):
    """Tokens held for one request. One of `settle` and `release` ends it; what comes after that does nothing.

    A reservation is a lease: one that nobody ends is given back when its time is over.
    """

    def settle(self, total_tokens: int) -> None:
        """Count what the request used, once its event is durable, and give the rest back."""
        ...

    def release(self) -> None:
        """Give all of it back: the request failed and costs nothing."""
        ...

    def renew(self) -> None:
        """Hold it for another lease time; for answers that are streamed for long."""
        ...


class Quotas(Protocol):
    """Safe for many threads."""

    def reserve(self, caller: Caller, model: str, most_tokens: int) -> Reservation:
        """Hold the most that a request may use: its input and all that may be generated.

        Raises: QuotaExceededError: a quota has not so much left.
        """
        ...

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """The x-ratelimit-* headers of an answer to this caller."""
        ...


class _Nothing:
    def settle(self, total_tokens: int) -> None: ...

    def release(self) -> None: ...

    def renew(self) -> None: ...


class Unlimited:
    """Quotas that are not set."""

    def reserve(self, caller: Caller, model: str, most_tokens: int) -> Reservation:
        """Holds nothing."""
        return _NOTHING

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """None."""
        return {}


_NOTHING = _Nothing()
