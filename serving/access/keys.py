"""API keys: whom a request with one is billed to, and what it may do. Only a hash of a key is kept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from serving.access.errors import InvalidRequestError, UnknownKeyError
from serving.access.store import SOURCE, api_keys, changing, key_rotations, looking
from serving.settings import Network
from tallybook.acts import Act
from tallybook.usage import MAX_TEXT, NAME

_SECRET_BYTES = 32  # cannot be guessed, so a plain hash is enough; a slow one would cost every request
_ID_BYTES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key, without its secret. `models` and `networks` are None when they are not restricted."""

    id: str
    name: str
    user: str
    project: str
    department: str | None = None
    models: frozenset[str] | None = None
    networks: tuple[Network, ...] | None = None
    for_others: bool = False
    approver: bool = False
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def state(self, now: datetime) -> str:
        """Whether it is `live`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "live" if self.expires_at is None or now < self.expires_at else "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a key is bound to."""

    user: str
    project: str
    department: str | None = None
    models: tuple[str, ...] = ()  # none: every model
    networks: tuple[str, ...] = ()  # none: from everywhere
    for_others: bool = False
    approver: bool = False


def create(
    store: Engine, journal_dir: Path, terms: Terms, name: str, expires_at: datetime | None, by: str
) -> tuple[Key, str]:
    """Make a key; it and its secret, which nobody can read again.

    Raises: InvalidRequestError: a name or network is unfit. AccessUnavailableError. OSError.
    """
    now = _now()
    if expires_at is not None and expires_at <= now:
        raise InvalidRequestError("a key that expires in the past can't be made")
    row = _row(terms, name, expires_at, by, now)
    secret = _new_secret()
    act = Act(source=SOURCE, who=by, kind="key.created", details=_told(row), time=now)
    with changing(store, journal_dir, act) as connection:
        connection.execute(api_keys.insert().values(**row, secret_sha256=hash_of(secret)))
    return _key(row), secret


def revoke(store: Engine, journal_dir: Path, key_id: str, by: str) -> Key:
    """Let a key work no more, from the next look of every worker on.

    Raises: UnknownKeyError: there is none, or it was revoked before. AccessUnavailableError. OSError.
    """
    now = _now()
    act = Act(source=SOURCE, who=by, kind="key.revoked", details={"key": key_id}, time=now)
    with changing(store, journal_dir, act) as connection:
        found = _one(connection, key_id)
        connection.execute(_its(key_id).values(revoked_at=now))
    return found


def rotate(store: Engine, journal_dir: Path, key_id: str, grace: timedelta, by: str) -> tuple[Key, str]:
    """Make a key at the same terms; the old one works for the grace time, or until it would have expired.

    Once for a key: its end is that of its grace now, so a second one made of it would end with it.
    Raises: UnknownKeyError: there is none, or it was revoked. InvalidRequestError: it was rotated before.
        AccessUnavailableError. OSError.
    """
    now = _now()
    secret, new_id = _new_secret(), _new_id()
    until = now + grace
    details = {"key": key_id, "new_key": new_id, "works_until": until.isoformat(timespec="seconds")}
    act = Act(source=SOURCE, who=by, kind="key.rotated", details=details, time=now)
    with changing(store, journal_dir, act) as connection:
        old = _one(connection, key_id)
        follower = connection.scalar(sa.select(key_rotations.c.new_key).where(key_rotations.c.key == key_id))
        if follower is not None:
            raise InvalidRequestError(f"{key_id} was rotated to {follower}: rotate that, or revoke {key_id}")
        connection.execute(key_rotations.insert().values(key=key_id, new_key=new_id))
        row = dict(connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id)).mappings().one())
        row |= {"id": new_id, "created_at": now, "created_by": by, "secret_sha256": hash_of(secret)}
        connection.execute(api_keys.insert().values(**row))
        ends = until if old.expires_at is None else min(until, old.expires_at)
        connection.execute(_its(key_id).values(**{"expires_at" if grace else "revoked_at": ends}))
    return _key(row), secret


def list_keys(store: Engine) -> list[Key]:
    """Every key ever made, the oldest first. Raises: AccessUnavailableError."""
    with looking(store) as connection:
        rows = connection.execute(sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))
        return [_key(dict(row)) for row in rows.mappings()]


def keys_by_hash(connection: Connection) -> dict[bytes, Key]:
    """Every key that was not revoked, by the hash of its secret."""
    query = sa.select(api_keys).where(api_keys.c.revoked_at.is_(None))
    return {row["secret_sha256"]: _key(dict(row)) for row in connection.execute(query).mappings()}


def hash_of(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def networks_of(texts: Iterable[str]) -> tuple[Network, ...]:
    """The networks that these texts name. Raises: InvalidRequestError."""
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise InvalidRequestError(f"{error} is no network such as 10.0.0.0/8") from None


def _row(terms: Terms, name: str, expires_at: datetime | None, by: str, now: datetime) -> dict[str, Any]:
    names = [terms.user, terms.project, *terms.models]
    for each in names if terms.department is None else [*names, terms.department]:
        if not NAME.fullmatch(each):
            raise InvalidRequestError(f"{each!r} is not 1-128 of letters, digits and ._@:-")
    for text in (name, by):
        if not 0 < len(text) <= MAX_TEXT or not text.isprintable():
            raise InvalidRequestError(f"a name is 1-{MAX_TEXT} printable characters")
    return {
        "id": _new_id(),
        "name": name,
        "user_id": terms.user,
        "project": terms.project,
        "department": terms.department,
        "models": list(terms.models) or None,
        "networks": [str(network) for network in networks_of(terms.networks)] or None,
        "for_others": terms.for_others,
        "approver": terms.approver,
        "created_at": now,
        "created_by": by,
        "expires_at": expires_at,
        "revoked_at": None,
    }


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """What the act of making a key says of it."""
    names = ("name", "user_id", "project", "department", "models", "networks", "for_others", "approver")
    expires_at = row["expires_at"] and row["expires_at"].isoformat(timespec="seconds")
    return {"key": row["id"], **{name: row[name] for name in names}, "expires_at": expires_at}


def _key(row: dict[str, Any]) -> Key:
    row = dict(row)
    row.pop("secret_sha256", None)
    models, networks = row.pop("models"), row.pop("networks")
    return Key(
        user=row.pop("user_id"),
        models=None if models is None else frozenset(models),
        networks=None if networks is None else networks_of(networks),
        **row,
    )


def _one(connection: Connection, key_id: str) -> Key:
    query = sa.select(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise UnknownKeyError(f"there is no key {key_id}, or it was revoked")
    return _key(dict(row))


def _its(key_id: str) -> sa.Update:
    return api_keys.update().where(api_keys.c.id == key_id)


def _new_secret() -> str:
    return f"tb-{secrets.token_urlsafe(_SECRET_BYTES)}"


def _new_id() -> str:
    return f"key-{secrets.token_hex(_ID_BYTES)}"


def _now() -> datetime:
    return datetime.now(timezone.utc)
