"""The ledger's price book: prices, discounts and department rules as they were imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import chain
from billing.errors import AuditError, PricesError
from billing.ledger import lock_ledger
from billing.prices.past import is_billed, kept_currencies, last_billed, last_unknown_minimum
from billing.prices.price_list import Price
from billing.prices.rows import discount_of, discount_row, price_of, price_row, rule_of, rule_row
from billing.prices.tariff import Tariff
from billing.prices.words import named
from billing.tables import department_rules, discounts, prices


@dataclass(frozen=True)
class Changes:
    """What an import puts into the price book, and what it withdraws from it."""

    added: Tariff
    withdrawn: Tariff

    def __bool__(self) -> bool:
        return self.added != Tariff() or self.withdrawn != Tariff()


class _Part(NamedTuple):
    """One part of a tariff, and how its rows are written and read."""

    table: sa.Table
    row_of: Callable[[Any], dict[str, Any]]
    terms_of: Callable[[Any], Any]


_UNTOLD = ""  # a moment in records from before they told it


class _Noted(NamedTuple):
    """When terms were first imported, and when they were withdrawn, if they are."""

    imported: str
    withdrawn: str | None

    def agrees(self, told: _Noted | None) -> bool:
        """Whether this is what was told, as far as it was."""
        if told is None or (self.withdrawn is None) != (told.withdrawn is None):
            return False
        return told.imported in (_UNTOLD, self.imported) and told.withdrawn in (_UNTOLD, self.withdrawn)


# In the order of the tariff's fields.
_PARTS = (
    _Part(prices, price_row, price_of),
    _Part(discounts, discount_row, discount_of),
    _Part(department_rules, rule_row, rule_of),
)


def kept_tariff(connection: Connection) -> Tariff:
    """What is in the price book and not withdrawn."""
    return Tariff(*(tuple(_kept(connection, part, in_force=True).values()) for part in _PARTS))


def kept_prices(connection: Connection) -> dict[str, Price]:
    """Every price version that the ledger has known, withdrawn ones too, by its id."""
    return _kept(connection, _PARTS[0])


def changes(connection: Connection, listed: Tariff) -> Changes:
    """What an import of this tariff would change."""
    added: list[tuple[Any, ...]] = []
    withdrawn: list[tuple[Any, ...]] = []
    for kept, wanted in zip(_terms(kept_tariff(connection)), _terms(listed), strict=True):
        kept_ids, wanted_ids = {terms.id for terms in kept}, {terms.id for terms in wanted}
        added.append(tuple(terms for terms in wanted if terms.id not in kept_ids))
        withdrawn.append(tuple(terms for terms in kept if terms.id not in wanted_ids))
    return Changes(Tariff(*added), Tariff(*withdrawn))


def import_tariff(connection: Connection, listed: Tariff, by: str, now: datetime | None = None) -> Changes:
    """Make the price book equal to a tariff, and tell the audit chain who did it; what changed.

    Unrated usage may get a price, from any day on; what is billed keeps its own.
    Raises: PricesError: the import would change what closed bills were rated at or to whom they went (code
        price_changes_past), is in another currency than they are (currency_changed), or has a minimum for
        requests whose events were dropped (events_dropped).
    """
    lock_ledger(connection)
    now = now or datetime.now(timezone.utc)
    found = changes(connection, listed)
    if not found:
        return found
    check(connection, found)
    act: dict[str, Any] = {"by": by, "at": _moment(now)}
    for part, added, withdrawn in zip(_PARTS, _terms(found.added), _terms(found.withdrawn), strict=True):
        act[str(part.table.name)] = _write(connection, part, added, withdrawn, now)
    chain.append(connection, "prices", act, now)
    return found


def check(connection: Connection, found: Changes) -> None:
    """Raises: PricesError: these changes would reach into the past; see `import_tariff`."""
    kept = kept_currencies(connection)
    other = {price.currency for price in found.added.prices} - kept
    if kept and other:
        raise PricesError(
            "currency_changed",
            f"this ledger has bills or credit in {', '.join(sorted(kept))}; amounts in "
            f"{', '.join(sorted(other))} can't be added to them: keep another ledger for another currency",
        )
    for terms in (terms for part in _terms(found.withdrawn) for terms in part):
        if is_billed(connection, terms):
            raise PricesError(
                "price_changes_past",
                f"bills are closed with {named(terms)}; it can't be changed or removed: add another one with "
                "a later effective_from",
            )
    for terms in (terms for part in _terms(found.added) for terms in part):
        last = last_billed(connection, terms)
        if last is not None:
            raise PricesError(
                "price_changes_past",
                f"{named(terms)}: what it is for is billed up to {last}; it can take effect after that day",
            )
    for price in found.added.prices:
        dropped = last_unknown_minimum(connection, price)
        if dropped is not None:
            raise PricesError(
                "events_dropped",
                f"{named(price)}: what single requests of {dropped} lack to its minimum can't be told any "
                "more, since their events were dropped; give it no minimum up to that day",
            )


def sync_prices(connection: Connection, listed: Tariff, now: datetime | None = None) -> Tariff:
    """Import a tariff as unattended jobs do, without asking; the tariff as the ledger keeps it.

    Raises: PricesError: see `import_tariff`.
    """
    import_tariff(connection, listed, "job", now)
    return kept_tariff(connection)


def prove_kept(connection: Connection, acts: Iterable[Mapping[str, Any]]) -> None:
    """Prove that the price book is what its imports made it.

    Args:
        acts: the bodies of the audit chain's records of kind "prices", in their order.
    Raises: AuditError: terms were altered, removed or put in (code price_altered), named by their id.
    """
    told: dict[str, dict[str, _Noted]] = {str(part.table.name): {} for part in _PARTS}
    for act in acts:
        at = act.get("at", _UNTOLD)
        for name, noted in told.items():
            for terms in (row["id"] for row in act[name]["imported"]):
                noted[terms] = _Noted(noted[terms].imported if terms in noted else at, None)
            for terms in act[name]["withdrawn"]:
                noted[terms] = _Noted(noted[terms].imported, at)
    for part in _PARTS:
        _kept(connection, part)  # raises where they are not their id's
        name, table = str(part.table.name), part.table.c
        found = {
            terms: _Noted(_moment(imported), withdrawn and _moment(withdrawn))
            for terms, imported, withdrawn in connection.execute(
                sa.select(table.id, table.imported_at, table.withdrawn_at)
            )
        }
        for terms in sorted(found.keys() | told[name].keys()):
            if terms not in found or not found[terms].agrees(told[name].get(terms)):
                raise AuditError("price_altered", f"{terms} of {name} is not what was imported")


def _moment(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds")


def _terms(tariff: Tariff) -> tuple[tuple[Any, ...], ...]:
    return tariff.prices, tariff.discounts, tariff.rules


def _kept(connection: Connection, part: _Part, *, in_force: bool = False) -> dict[str, Any]:
    query = sa.select(part.table).order_by(part.table.c.effective_from, part.table.c.id)
    if in_force:
        query = query.where(part.table.c.withdrawn_at.is_(None))
    kept: dict[str, Any] = {}
    for row in connection.execute(query):
        try:
            kept[row.id] = part.terms_of(row)
            altered = kept[row.id].id != row.id
        except (ArithmeticError, TypeError, ValueError):  # no number, no tiers
            altered = True
        if altered:
            raise AuditError("price_altered", f"{row.id} of {part.table.name} is not what was imported")
    return kept


def _write(
    connection: Connection, part: _Part, added: Iterable[Any], withdrawn: Iterable[Any], now: datetime
) -> dict[str, Any]:
    """Add and withdraw versions; one that was withdrawn before is taken back. What the chain is told."""
    table, rows, gone = part.table, [part.row_of(terms) for terms in added], [t.id for t in withdrawn]
    known = set(connection.scalars(sa.select(table.c.id)))
    back = [row["id"] for row in rows if row["id"] in known]
    new = [{**row, "imported_at": now} for row in rows if row["id"] not in known]
    for ids, moment in ((gone, now), (back, None)):
        connection.execute(table.update().where(table.c.id.in_(ids)).values(withdrawn_at=moment))
    if new:
        connection.execute(table.insert(), new)
    return {"imported": rows, "withdrawn": gone}
