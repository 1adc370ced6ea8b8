"""Prepaid credit of projects: top-ups and refunds by hand, a charge for every bill that is closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import chain
from billing.aggregates import whole
from billing.errors import AuditError, WalletError
from billing.ledger import insert, lock_ledger
from billing.tables import ON_ITS_BILL, bill_days, bill_lines, prices, wallet_entries
from tallybook.usage import MAX_TEXT, NAME

_RECORD = "wallet"
_MOST_MINOR = 10**15
_CHARGED_BY = "tallybook"


@dataclass(frozen=True, slots=True)
class Balance:
    """What a project has left, in minor units; below 0 when more was served than paid for."""

    project: str
    currency: str
    balance_minor: int


def top_up(
    connection: Connection, project: str, amount_minor: int, currency: str, who: str, note: str = ""
) -> Balance:
    """Add credit, in the caller's transaction, and record it in the audit chain; what the project has now.

    A project has a wallet from its first top-up on; bills that are closed after it are charged.
    Raises: WalletError: the amount is not above 0, a text is unfit (code wallet_invalid), or prices or
        the wallet are in another currency (wallet_currency).
    """
    return _book(connection, project, "topup", amount_minor, currency, who, note)


def refund(
    connection: Connection, project: str, amount_minor: int, currency: str, who: str, note: str = ""
) -> Balance:
    """Pay credit back: take it from the balance, otherwise as `top_up`.

    Raises: WalletError: as `top_up`; or there is less than that (code wallet_too_low).
    """
    lock_ledger(connection)
    left = sum(b.balance_minor for b in balances(connection, project) if b.currency == currency)
    if amount_minor > left:
        raise WalletError("wallet_too_low", f"{project} has less than that to be paid back")
    return _book(connection, project, "refund", amount_minor, currency, who, note)


def charge_wallets(connection: Connection, day: date, now: datetime | None = None) -> int:
    """Charge the bill of a day to each project that has a wallet, once for ever; how many were charged.

    For the transaction that closes the day. A balance may fall below 0: what was served was served. A bill
    below 0, of corrections, gives credit back. The seal of the bill vouches for the charges.
    """
    line = bill_lines.c
    have_wallets = sa.select(wallet_entries.c.project)
    if connection.scalar(have_wallets.limit(1)) is None:
        return 0  # without reading the bill, which may have a line for every user
    bills = (
        sa.select(line.project, sa.func.min(line.currency).label("currency"), _billed().label("billed"))
        .where(line.day == day, line.amount_minor.is_not(None), line.project.in_(have_wallets))
        .group_by(line.project)
        .order_by(line.project)
    )
    charged = 0
    for bill in connection.execute(bills).all():
        charge = insert(connection, wallet_entries).values(
            project=bill.project,
            kind="charge",
            amount_minor=-bill.billed,
            currency=bill.currency,
            bill_day=day,
            who=_CHARGED_BY,
            note="",
            at=now or datetime.now(timezone.utc),
        )
        new = connection.scalar(charge.on_conflict_do_nothing().returning(wallet_entries.c.id))
        charged += new is not None
    return charged


def balances(connection: Connection, project: str | None = None) -> list[Balance]:
    """Every wallet's balance, or one project's, by project; a wallet has one currency."""
    entry = wallet_entries.c
    total = whole(sa.func.sum(entry.amount_minor))
    query = sa.select(entry.project, entry.currency, total).group_by(entry.project, entry.currency)
    if project is not None:
        query = query.where(entry.project == project)
    return sorted((Balance(*row) for row in connection.execute(query)), key=lambda b: (b.project, b.currency))


def priced_in(connection: Connection) -> list[str]:
    """The currency of the ledger's prices; none before the first import, and several never on bills."""
    query = sa.select(prices.c.currency).where(prices.c.withdrawn_at.is_(None)).distinct()
    return sorted(connection.scalars(query))


def entries(connection: Connection, project: str) -> Sequence[sa.Row[tuple[object, ...]]]:
    """A project's entries (rows of `wallet_entries`), first to last."""
    query = sa.select(wallet_entries).where(wallet_entries.c.project == project)
    return connection.execute(query.order_by(wallet_entries.c.id)).all()


def prove_wallets(connection: Connection) -> None:
    """Prove every entry: top-ups and refunds by the audit chain, charges by the bills closed after them.

    Raises: AuditError: an entry was altered, removed or put in (code wallet_altered), named by project.
    """
    booked: dict[int, tuple[int, dict[str, object]]] = {}
    opened: dict[str, int] = {}
    closed: dict[str, int] = {}
    for number, kind, body in chain.records(connection):
        if kind == _RECORD:
            booked[body["entry"]] = number, body
            opened.setdefault(body["project"], number)
        elif kind == "close":
            closed.setdefault(body["day"], number)
    charges = {
        (bill.project, bill.day): (-bill.billed, bill.currency, _CHARGED_BY, "", bill.closed_at)
        for bill in _closed_bills(connection)
        if bill.project in opened and opened[bill.project] < closed.get(bill.day.isoformat(), 0)
    }
    before = 0
    for row in connection.execute(sa.select(wallet_entries).order_by(wallet_entries.c.id)):
        if row.kind == "charge":
            number = closed.get(row.bill_day.isoformat(), 0)
            expected = charges.pop((row.project, row.bill_day), None)
            if expected is None or expected[:2] != (row.amount_minor, row.currency):
                raise _altered(row.project, f"the charge for {row.bill_day} is not what its bill comes to")
            if expected[2:] != (row.who, row.note, row.at):
                raise _altered(row.project, f"the charge for {row.bill_day} is not what closing has booked")
        else:
            number, body = booked.pop(row.id, (0, {}))
            if body != _body(row):
                raise _altered(row.project, f"entry {row.id} ({row.kind}) is not what was recorded")
        if number < before:
            raise _altered(row.project, f"entry {row.id} ({row.kind}) is not where it was booked")
        before = number
    for project, day in sorted(charges):
        raise _altered(project, f"the charge for {day} is missing")
    for entry, (_, body) in sorted(booked.items()):
        raise _altered(str(body["project"]), f"entry {entry} ({body['kind']}) is missing")


def _book(
    connection: Connection,
    project: str,
    kind: Literal["topup", "refund"],
    amount_minor: int,
    currency: str,
    who: str,
    note: str,
) -> Balance:
    if not NAME.fullmatch(project):
        raise WalletError("wallet_invalid", "a project is 1-128 of letters, digits and ._@:-")
    if not 0 < amount_minor <= _MOST_MINOR:
        raise WalletError("wallet_invalid", "an amount is above 0")
    for name, text, least in (("who", who, 1), ("note", note, 0)):
        if not least <= len(text) <= MAX_TEXT or not text.isprintable():
            raise WalletError("wallet_invalid", f"{name} is {least}-{MAX_TEXT} printable characters")
    lock_ledger(connection)
    other = {*priced_in(connection), *(b.currency for b in balances(connection, project))} - {currency}
    if other:
        raise WalletError(
            "wallet_currency", f"{project} is billed or has credit in {', '.join(sorted(other))}"
        )
    now = datetime.now(timezone.utc)
    signed = amount_minor if kind == "topup" else -amount_minor
    values = {"project": project, "kind": kind, "amount_minor": signed, "currency": currency}
    statement = wallet_entries.insert().values(**values, who=who, note=note, at=now)
    row = connection.execute(statement.returning(*wallet_entries.c)).one()
    chain.append(connection, _RECORD, _body(row), now)
    [balance] = balances(connection, project)
    return balance


def _body(row: sa.Row[tuple[object, ...]]) -> dict[str, object]:
    """What the audit chain says of a top-up or refund."""
    named = row._mapping
    told = {name: named[name] for name in ("project", "kind", "amount_minor", "currency", "who", "note")}
    return told | {"entry": named["id"], "at": named["at"].isoformat(timespec="microseconds")}


def _billed() -> sa.ColumnElement[int]:
    return whole(sa.func.sum(bill_lines.c.amount_minor))


def _closed_bills(connection: Connection) -> Sequence[sa.Row[tuple[str, date, datetime, str, int]]]:
    line = bill_lines.c
    have_wallets = sa.select(wallet_entries.c.project)
    currency = sa.func.min(line.currency).label("currency")
    query = (
        sa.select(line.project, line.day, bill_days.c.closed_at, currency, _billed().label("billed"))
        .join_from(bill_lines, bill_days, ON_ITS_BILL)
        .where(bill_days.c.state == "closed", line.amount_minor.is_not(None), line.project.in_(have_wallets))
        .group_by(line.project, line.day, bill_days.c.closed_at)
    )
    return connection.execute(query).all()


def _altered(project: str, what: str) -> AuditError:
    return AuditError("wallet_altered", f"wallet of {project}: {what}")
