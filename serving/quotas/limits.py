"""How much each caller may use: the settings' limits, those set for one, and granted overage on top."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from serving.access.errors import InvalidRequestError
from serving.access.identity import Caller
from serving.access.store import SOURCE, changing, quota_limits
from serving.settings import ServingSettings
from tallybook.acts import Act
from tallybook.usage import NAME

USER_DAY = "user_day_tokens"
PROJECT_MONTH = "project_month_tokens"
REQUESTS = "requests_per_minute"
CONCURRENT = "concurrent_requests"
QUOTAS = (USER_DAY, PROJECT_MONTH, REQUESTS, CONCURRENT)
GRANTABLE = (USER_DAY, PROJECT_MONTH)
UNLIMITED = 1 << 52  # more than anybody uses, and exact as a floating-point number, which Redis counts with


class Limits(NamedTuple):
    """The most of each quota; UNLIMITED where nobody set one."""

    user_day: int = UNLIMITED
    project_month: int = UNLIMITED
    requests: int = UNLIMITED
    concurrent: int = UNLIMITED


class Extra(NamedTuple):
    """Granted tokens, and until when (seconds since 1970)."""

    tokens: int
    until: float


def set_limits(connection: Connection) -> dict[tuple[str, str], int]:
    """The limits that were set for one user, project or key, by quota and subject."""
    rows = connection.execute(sa.select(quota_limits))
    return {(row.quota, row.subject): row.most for row in rows}


def set_limit(store: Engine, journal_dir: Path, quota: str, subject: str, most: int | None, by: str) -> None:
    """Give one user, project or key a limit of its own; None: the settings' again.

    Raises: InvalidRequestError: no such quota, or an unfit name or number. AccessUnavailableError. OSError.
    """
    if quota not in QUOTAS:
        raise InvalidRequestError(f"{quota} is no quota; they are {', '.join(QUOTAS)}")
    if not NAME.fullmatch(subject):
        raise InvalidRequestError(f"{subject!r} is not 1-128 of letters, digits and ._@:-")
    if most is not None and not 0 <= most <= UNLIMITED:
        raise InvalidRequestError(f"a limit is from 0 to {UNLIMITED}")
    details = {"quota": quota, "subject": subject, "most": most}
    with changing(
        store, journal_dir, Act(source=SOURCE, who=by, kind="quota.set", details=details)
    ) as connection:
        its = sa.and_(quota_limits.c.quota == quota, quota_limits.c.subject == subject)
        connection.execute(quota_limits.delete().where(its))
        if most is not None:
            connection.execute(quota_limits.insert().values(quota=quota, subject=subject, most=most))


class Decisions(Protocol):
    """Limits and grants as decided, by quota and subject; see `serving.access.known.Known`."""

    @property
    def limits(self) -> Mapping[tuple[str, str], int]:
        """Limits that differ from the settings'."""
        ...

    @property
    def grants(self) -> Mapping[tuple[str, str], tuple[Extra, ...]]:
        """Approved overage."""
        ...


class LimitBook:
    """The limits of callers, as they are decided now."""

    def __init__(self, settings: ServingSettings, decisions: Callable[[], Decisions]) -> None:
        self._decisions = decisions
        given = (
            settings.quota_user_day_tokens,
            settings.quota_project_month_tokens,
            settings.quota_requests_per_minute,
            settings.quota_concurrent_requests,
        )
        self._default = Limits(*(UNLIMITED if most is None else min(most, UNLIMITED) for most in given))

    def of(self, caller: Caller) -> Limits:
        """The limits of this caller at this moment."""
        decided = self._decisions()
        if not decided.limits and not decided.grants:
            return self._default
        who = requester(caller)
        subjects = (caller.user, caller.project, who, who)
        most = [
            decided.limits.get((quota, subject), default)
            for quota, subject, default in zip(QUOTAS, subjects, self._default, strict=True)
        ]
        now = time.time()
        for place, quota in enumerate(GRANTABLE):
            for extra in decided.grants.get((quota, subjects[place]), ()):
                if now < extra.until:
                    most[place] += extra.tokens
        return Limits(*most)


def requester(caller: Caller) -> str:
    """Whose requests are counted together: the key's, or the user's where there is none."""
    return caller.api_key_id or caller.user
