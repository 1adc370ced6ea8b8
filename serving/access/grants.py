"""Overage by approval: somebody asks for more tokens until a time, an approver grants an amount or refuses.

Every step is an act. Nobody decides about what they asked for themselves. A grant ends by itself at its time.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from serving.access.errors import GrantDecidedError, InvalidRequestError, OwnGrantError, UnknownGrantError
from serving.access.store import SOURCE, changing, looking, quota_grants
from serving.quotas.limits import GRANTABLE, Extra
from tallybook.acts import Act
from tallybook.usage import MAX_TEXT, MAX_TOKENS, NAME

LONGEST = timedelta(days=366)
_ID_BYTES = 6
_ID = re.compile(r"grant-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Tokens above a quota, asked for or granted; `tokens` and `until` of an approved one are granted."""

    id: str
    quota: str
    subject: str  # the user or project that the quota is of
    tokens: int
    until: datetime
    reason: str
    state: str  # asked, approved, denied or ended
    asked_by: str
    asked_at: datetime
    decided_by: str | None = None
    decided_at: datetime | None = None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        told = {name: getattr(self, name) for name in self.__slots__}
        return {name: _shown(value) for name, value in told.items()}


def ask(
    store: Engine,
    journal_dir: Path,
    *,
    quota: str,
    subject: str,
    tokens: int,
    until: datetime,
    reason: str,
    by: str,
) -> Grant:
    """Ask for more.

    Raises: InvalidRequestError: what is asked for can't be. AccessUnavailableError. OSError.
    """
    now = datetime.now(timezone.utc)
    if quota not in GRANTABLE:
        raise InvalidRequestError(f"more can be granted of {' and '.join(GRANTABLE)}, not of {quota}")
    if not NAME.fullmatch(subject):
        raise InvalidRequestError(f"{subject!r} is not 1-128 of letters, digits and ._@:-")
    _check(tokens, until, now)
    for name, text in (("reason", reason), ("by", by)):
        if not 0 < len(text) <= MAX_TEXT or not text.isprintable():
            raise InvalidRequestError(f'"{name}" must be 1-{MAX_TEXT} printable characters')
    grant = Grant(
        id=f"grant-{secrets.token_hex(_ID_BYTES)}",
        quota=quota,
        subject=subject,
        tokens=tokens,
        until=until,
        reason=reason,
        state="asked",
        asked_by=by,
        asked_at=now,
    )
    with changing(store, journal_dir, _act("quota.asked", grant, by, now)) as connection:
        connection.execute(quota_grants.insert().values(**_row(grant)))
    return grant


def approve(
    store: Engine,
    journal_dir: Path,
    grant_id: str,
    by: str,
    tokens: int | None = None,
    until: datetime | None = None,
) -> Grant:
    """Grant what was asked for, or another amount or time.

    Raises: UnknownGrantError, GrantDecidedError, OwnGrantError, InvalidRequestError, AccessUnavailableError.
    """
    return _decide(store, journal_dir, grant_id, by, "approved", tokens, until)


def deny(store: Engine, journal_dir: Path, grant_id: str, by: str) -> Grant:
    """Refuse it. Raises: see `approve`."""
    return _decide(store, journal_dir, grant_id, by, "denied")


def end(store: Engine, journal_dir: Path, grant_id: str, by: str) -> Grant:
    """Take back a grant before its time. Raises: UnknownGrantError, GrantDecidedError, OwnGrantError."""
    return _decide(store, journal_dir, grant_id, by, "ended")


def list_grants(store: Engine, asked_by: str | None = None) -> list[Grant]:
    """Every grant ever asked for, or one's own, the oldest first. Raises: AccessUnavailableError."""
    query = sa.select(quota_grants).order_by(quota_grants.c.asked_at, quota_grants.c.id)
    if asked_by is not None:
        query = query.where(quota_grants.c.asked_by == asked_by)
    with looking(store) as connection:
        return [Grant(**row) for row in connection.execute(query).mappings()]


def approved(connection: Connection) -> dict[tuple[str, str], tuple[Extra, ...]]:
    """What is granted and not over, by quota and subject."""
    found: dict[tuple[str, str], list[Extra]] = defaultdict(list)
    its = quota_grants.c
    query = sa.select(quota_grants).where(its.state == "approved", its.until > datetime.now(timezone.utc))
    for row in connection.execute(query):
        found[row.quota, row.subject].append(Extra(row.tokens, row.until.timestamp()))
    return {of: tuple(extras) for of, extras in found.items()}


def _decide(
    store: Engine,
    journal_dir: Path,
    grant_id: str,
    by: str,
    state: str,
    tokens: int | None = None,
    until: datetime | None = None,
) -> Grant:
    now = datetime.now(timezone.utc)
    if not _ID.fullmatch(grant_id):
        raise UnknownGrantError("nobody asked for a grant of this id")
    with looking(store) as connection:
        asked = _one(connection, grant_id)
    if by == asked.asked_by:
        raise OwnGrantError(f"the user {by} asked for {grant_id}, so somebody else decides about it")
    decided = Grant(
        **_row(asked)
        | {"state": state, "decided_by": by, "decided_at": now}
        | ({} if tokens is None else {"tokens": tokens})
        | ({} if until is None else {"until": until})
    )
    if state == "approved":
        _check(decided.tokens, decided.until, now)
    with changing(store, journal_dir, _act(f"quota.{state}", decided, by, now)) as connection:
        changed = connection.execute(
            quota_grants.update()
            .where(quota_grants.c.id == grant_id, quota_grants.c.state == _BEFORE[state])
            .values(**_row(decided))
        )
        if changed.rowcount != 1:
            raise GrantDecidedError(f"{grant_id} is {_one(connection, grant_id).state}, not {_BEFORE[state]}")
    return decided


_BEFORE = {"approved": "asked", "denied": "asked", "ended": "approved"}


def _one(connection: Connection, grant_id: str) -> Grant:
    row = connection.execute(sa.select(quota_grants).where(quota_grants.c.id == grant_id)).mappings()
    found = row.one_or_none()
    if found is None:
        raise UnknownGrantError(f"nobody asked for {grant_id[:64]}")
    return Grant(**found)


def _check(tokens: int, until: datetime, now: datetime) -> None:
    if not 0 < tokens <= MAX_TOKENS:
        raise InvalidRequestError(f'"tokens" must be a whole number from 1 to {MAX_TOKENS}')
    if not now < until <= now + LONGEST:
        raise InvalidRequestError(f'"until" must be a moment within the next {LONGEST.days} days')


def _row(grant: Grant) -> dict[str, Any]:
    return {name: getattr(grant, name) for name in grant.__slots__}


def _act(kind: str, grant: Grant, by: str, now: datetime) -> Act:
    told = {name: _shown(getattr(grant, name)) for name in ("quota", "subject", "tokens", "until", "reason")}
    return Act(source=SOURCE, who=by, kind=kind, details={"grant": grant.id, **told}, time=now)


def _shown(value: object) -> object:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
