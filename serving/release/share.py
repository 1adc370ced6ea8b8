"""Which users a canary answers: a set share of them, always the same ones."""

from __future__ import annotations

import hashlib
from decimal import Decimal

WHOLE = 10_000  # a share counts in hundredths of a percent


class InvalidShareError(ValueError):
    """Not a share; the message says what is one."""


def parse_percent(text: str) -> int:
    """A share in hundredths of a percent, from a percentage such as "5", "0.25" or "100".

    Raises: InvalidShareError.
    """
    try:
        hundredths = Decimal(text.removesuffix("%")) * 100
    except ArithmeticError:  # no number, or one beyond any
        hundredths = Decimal(-1)
    if not hundredths.is_finite() or not 0 <= hundredths <= WHOLE or hundredths != int(hundredths):
        raise InvalidShareError(f"{text!r} is not a percentage from 0 to 100 with at most two decimals")
    return int(hundredths)


def percent(share: int) -> str:
    """The share as `parse_percent` reads it, without zeros that say nothing: 25 → "0.25", 500 → "5"."""
    return f"{Decimal(share) / 100:f}"


def falls_to_canary(model: str, user: str, share: int) -> bool:
    """Whether this user's requests go to the canary when it has this share.

    The same user always lands at the same place of the whole, a different one for every model. So who is in
    a small share is in every larger one as well.
    """
    digest = hashlib.sha256(f"{model}\0{user}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % WHOLE < share
