"""Episodes of alerts: opened when a rule first finds something, resolved when it no longer does.

An episode changes at most by being opened, by rising to a higher level, and by being resolved; each change
is told once. That it is found again at the same level changes its facts, and is told nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.alerts.rules import Finding
from billing.alerts.tables import alert_episodes
from billing.errors import AlertError

Change = Literal["opened", "rose", "resolved"]
State = Literal["open", "acknowledged", "resolved"]
# A subject that is about at its bound is not told anew with every check.
RESOLVE_AFTER = timedelta(minutes=90)


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode as the ledger has it."""

    id: int
    rule: str
    kind: str
    subject: str
    level: int
    facts: dict[str, Any]
    opened_at: datetime
    seen_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    resolved_at: datetime | None

    @property
    def state(self) -> State:
        """Open, acknowledged or resolved."""
        if self.resolved_at is not None:
            return "resolved"
        return "open" if self.acknowledged_at is None else "acknowledged"


@dataclass(frozen=True, slots=True)
class Changed:
    """An episode, and what has changed about it."""

    change: Change
    episode: Episode


def update(
    connection: Connection, findings: Iterable[Finding], looked: Collection[str], now: datetime
) -> list[Changed]:
    """Set the unresolved episodes against what was found, in the caller's transaction; what has changed.

    Args:
        looked: names of findings that were looked for; episodes of others are left as they are, since
            nobody knows.
    An acknowledgement is of the level that it was given at: an episode that rises is open again.
    """
    unresolved = {(e.rule, e.kind, e.subject): e for e in episodes(connection, resolved=False)}
    changes: list[Changed] = []
    for finding in findings:
        key = (finding.rule, finding.kind, finding.subject)
        known = unresolved.pop(key, None)
        facts = orjson.dumps(finding.facts, option=orjson.OPT_SORT_KEYS).decode()
        if known is None:
            row = {
                "rule": finding.rule, "kind": finding.kind, "subject": finding.subject,
                "level": finding.level, "facts": facts, "opened_at": now, "seen_at": now,
            }  # fmt: skip
            added = alert_episodes.insert().values(**row).returning(alert_episodes.c.id)
            changes.append(Changed("opened", _one(connection, connection.execute(added).scalar_one())))
            continue
        values: dict[str, Any] = {"seen_at": now, "facts": facts}
        rose = finding.level > known.level
        if rose:
            values |= {"level": finding.level, "acknowledged_at": None, "acknowledged_by": None}
        _set(connection, known.id, **values)
        if rose:
            changes.append(Changed("rose", _one(connection, known.id)))
    for known in unresolved.values():
        if known.rule in looked and now - known.seen_at >= RESOLVE_AFTER:
            _set(connection, known.id, resolved_at=now)
            changes.append(Changed("resolved", _one(connection, known.id)))
    return changes


def acknowledge(connection: Connection, ids: Sequence[int], who: str, now: datetime) -> list[Episode]:
    """Note that somebody knows of these episodes; those that were not acknowledged before.

    Raises: AlertError: no such episode (code episode_unknown), or it is resolved (episode_resolved);
        then none is acknowledged.
    """
    found = []
    for number in ids:
        episode = _one(connection, number)
        if episode.state == "resolved":
            raise AlertError("episode_resolved", f"episode {number} is resolved: there is nothing to know of")
        if episode.state == "open":
            _set(connection, number, acknowledged_at=now, acknowledged_by=who)
            found.append(_one(connection, number))
    return found


def episodes(
    connection: Connection, *, resolved: bool | None = None, most: int | None = None
) -> list[Episode]:
    """Episodes, the latest first; with `resolved`, only those that are, or are not."""
    query = sa.select(alert_episodes).order_by(alert_episodes.c.id.desc())
    if resolved is not None:
        query = query.where(alert_episodes.c.resolved_at.is_not(None) == resolved)
    return [_episode(row) for row in connection.execute(query.limit(most))]


def _one(connection: Connection, number: int) -> Episode:
    row = connection.execute(sa.select(alert_episodes).where(alert_episodes.c.id == number)).one_or_none()
    if row is None:
        raise AlertError("episode_unknown", f"there is no episode {number}")
    return _episode(row)


def _set(connection: Connection, number: int, **values: Any) -> None:
    connection.execute(alert_episodes.update().where(alert_episodes.c.id == number).values(**values))


def _episode(row: sa.Row[Any]) -> Episode:
    return Episode(**{**row._mapping, "facts": orjson.loads(row.facts)})
