"""The price list: effective-dated versions, read from TOML, kept in the ledger, never changed in the past."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import chain, money
from billing.errors import PricesError
from billing.ledger import lock_ledger
from billing.tables import bill_days, bill_lines, prices
from tallybook.usage import NAME

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LIST_KEYS = {"currency", "per_tokens", "prices"}
_PRICE_KEYS = {"model", "version", "effective_from", "input", "cached_input", "output"}


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs from a billing day on, in `currency` per `per_tokens` tokens of each direction.

    `model_version` None means every version that has no price of its own.
    """

    model: str
    model_version: str | None
    effective_from: date
    currency: str
    per_tokens: int
    input: Decimal
    cached_input: Decimal
    output: Decimal

    @property
    def id(self) -> str:
        """Digest of the terms, so that other terms are another price: the price version on a line."""
        terms = (self.model, self.model_version, self.effective_from, self.currency, self.per_tokens)
        amounts = (self.input.normalize(), self.cached_input.normalize(), self.output.normalize())
        return hashlib.sha256(repr((terms, amounts)).encode()).hexdigest()[:16]

    def of(self, direction: str) -> Decimal:
        """The unit price of `input`, `cached_input` or `output`."""
        return {"input": self.input, "cached_input": self.cached_input, "output": self.output}[direction]


class PriceList:
    """Every price of the list, asked by model, version and day."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._by_target: dict[tuple[str, str | None], list[Price]] = {}
        for price in sorted(prices, key=lambda p: p.effective_from):
            self._by_target.setdefault((price.model, price.model_version), []).append(price)

    def in_force(self, model: str, model_version: str, day: date) -> Price | None:
        """The price of this version on this billing day; its own before the model's; None: unrated."""
        for target in ((model, model_version), (model, None)):
            started = [p for p in self._by_target.get(target, ()) if p.effective_from <= day]
            if started:
                return started[-1]
        return None


def read_prices(file: Path) -> list[Price]:
    """Read a price list.

    Raises: PricesError: no such file, not TOML, or an entry is incomplete, misspelt, inexact or given twice.
    """
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise PricesError("prices_missing", f"can't read the price list {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PricesError("prices_invalid", f"{file}: {error}") from error
    _refuse_unknown(document, _LIST_KEYS, str(file))
    currency, per_tokens = document.get("currency"), document.get("per_tokens", 1000)
    try:
        money.decimals(str(currency))
    except ValueError as error:
        raise PricesError("prices_invalid", f"{file}: {error}") from error
    if type(per_tokens) is not int or per_tokens < 1:
        raise PricesError("prices_invalid", f"{file}: per_tokens must be a whole number above 0")
    found: dict[tuple[str, str | None, date], Price] = {}
    for number, entry in enumerate(document.get("prices", []), 1):
        price = _price(entry, str(currency), per_tokens, f"{file}, price {number}")
        key = (price.model, price.model_version, price.effective_from)
        if key in found:
            raise PricesError("prices_invalid", f"{file}, price {number}: a second price for {key}")
        found[key] = price
    return list(found.values())


def sync_prices(connection: Connection, listed: Iterable[Price], now: datetime | None = None) -> PriceList:
    """Make the ledger's prices equal to the list, and give back the list as kept.

    Raises: PricesError: a price that a closed bill was rated at is missing or changed, or a new price
        would take effect on a day that was rated for its model already, or is in another currency.
    """
    lock_ledger(connection)
    now = now or datetime.now(timezone.utc)
    wanted = {price.id: price for price in listed}
    kept = {row.id: row for row in connection.execute(sa.select(prices))}
    billed = set(connection.scalars(_closed_lines(bill_lines.c.price_id).distinct()))
    _refuse_other_currency({kept[i].currency for i in billed & kept.keys()}, wanted.values())
    in_force = {price_id for price_id, row in kept.items() if row.withdrawn_at is None}
    withdrawn, imported = in_force - wanted.keys(), wanted.keys() - in_force
    for price_id in sorted(withdrawn & billed):
        row = kept[price_id]
        raise PricesError(
            "price_changes_past",
            f"bills are closed at the price of {row.model} from {row.effective_from}; it can't be "
            "changed or removed: add a price with a later effective_from",
        )
    for price_id in imported:
        _refuse_past(connection, wanted[price_id])
    for price_id in withdrawn:
        connection.execute(prices.update().where(prices.c.id == price_id).values(withdrawn_at=now))
    for price_id in imported & kept.keys():
        connection.execute(prices.update().where(prices.c.id == price_id).values(withdrawn_at=None))
    for price_id in imported - kept.keys():
        connection.execute(prices.insert().values(imported_at=now, **_row(wanted[price_id])))
    if withdrawn or imported:
        act = {"imported": [_row(wanted[i]) for i in sorted(imported)], "withdrawn": sorted(withdrawn)}
        chain.append(connection, "prices", act, now)
    return PriceList(wanted.values())


def kept_prices(connection: Connection) -> dict[str, Price]:
    """Every price version that the ledger has known, by its id."""
    return {
        row.id: Price(
            row.model, row.model_version, row.effective_from, row.currency, row.per_tokens,
            Decimal(row.input), Decimal(row.cached_input), Decimal(row.output),
        )
        for row in connection.execute(sa.select(prices))
    }  # fmt: skip


def _refuse_other_currency(billed: set[str], wanted: Iterable[Price]) -> None:
    other = {price.currency for price in wanted} - billed
    if billed and other:
        raise PricesError(
            "currency_changed",
            f"this ledger has bills in {', '.join(sorted(billed))}; amounts in {', '.join(sorted(other))} "
            "can't be added to them: keep another ledger for another currency",
        )


def _refuse_past(connection: Connection, price: Price) -> None:
    """A new price may not reach into days that were rated for its model; unrated ones it may rate."""
    rated = _closed_lines(sa.func.max(bill_lines.c.usage_day)).where(
        bill_lines.c.model == price.model, bill_lines.c.price_id != ""
    )
    if price.model_version is not None:
        rated = rated.where(bill_lines.c.model_version == price.model_version)
    last = connection.scalar(rated)
    if last is not None and price.effective_from <= last:
        raise PricesError(
            "price_changes_past",
            f"{price.model} is billed up to {last}; a new price can take effect after that day only, "
            f"not from {price.effective_from}",
        )


def _closed_lines(column: Any) -> sa.Select[Any]:
    return sa.select(column).join_from(bill_lines, bill_days).where(bill_days.c.state == "closed")


def _row(price: Price) -> dict[str, Any]:
    return {
        "id": price.id,
        "model": price.model,
        "model_version": price.model_version,
        "effective_from": price.effective_from,
        "currency": price.currency,
        "per_tokens": price.per_tokens,
        "input": str(price.input),
        "cached_input": str(price.cached_input),
        "output": str(price.output),
    }


def _price(entry: Any, currency: str, per_tokens: int, where: str) -> Price:
    if not isinstance(entry, dict):
        raise PricesError("prices_invalid", f"{where}: write each price as a [[prices]] table")
    _refuse_unknown(entry, _PRICE_KEYS, where)
    model, version = entry.get("model"), entry.get("version")
    for name, value in (("model", model), ("version", version)):
        if name == "version" and value is None:
            continue
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise PricesError("prices_invalid", f"{where}: {name} must be a name in quotes")
    start = entry.get("effective_from")
    if type(start) is not date:
        raise PricesError("prices_invalid", f"{where}: effective_from must be a day such as 2026-01-01")
    amounts = {name: _amount(entry, name, where) for name in ("input", "output")}
    cached = _amount(entry, "cached_input", where) if "cached_input" in entry else amounts["input"]
    return Price(
        str(model), version, start, currency, per_tokens, amounts["input"], cached, amounts["output"]
    )


def _amount(entry: dict[str, Any], name: str, where: str) -> Decimal:
    text = entry.get(name)
    if not isinstance(text, str):
        raise PricesError(
            "prices_invalid", f'{where}: write {name} in quotes, such as "0.80": a bare number is not exact'
        )
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise PricesError("prices_invalid", f"{where}: {name} {text!r} is not a number") from None
    exponent = amount.as_tuple().exponent
    if not isinstance(exponent, int) or amount < 0 or amount > 10**9 or exponent < -12:
        raise PricesError(
            "prices_invalid", f"{where}: {name} must be 0 to 1,000,000,000 with at most 12 decimals"
        )
    return amount


def _refuse_unknown(table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise PricesError("prices_invalid", f"{where}: unknown {', '.join(unknown)}")
