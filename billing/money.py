"""Exact money: integer minor units of a currency, rounded in one function."""

from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction
from typing import NamedTuple

# ISO 4217: how many decimals the minor unit of a currency has.
_DECIMALS = {
    "AUD": 2, "BRL": 2, "CAD": 2, "CHF": 2, "CNY": 2, "DKK": 2, "EUR": 2, "GBP": 2, "HKD": 2, "INR": 2,
    "JPY": 0, "KRW": 0, "KWD": 3, "MOP": 2, "MXN": 2, "MYR": 2, "NOK": 2, "NZD": 2, "PLN": 2, "SAR": 2,
    "SEK": 2, "SGD": 2, "THB": 2, "TND": 3, "TRY": 2, "TWD": 2, "USD": 2, "VND": 0, "ZAR": 2,
}  # fmt: skip
_SYMBOLS = {"CNY": "¥", "EUR": "€", "GBP": "£", "USD": "$"}
_EXACT = Context(prec=60)  # wider than any amount
_NO_DISCOUNT = Decimal(0)


def decimals(currency: str) -> int:
    """Decimals of the currency's minor unit. Raises: ValueError: not a currency known here."""
    try:
        return _DECIMALS[currency]
    except KeyError:
        raise ValueError(f"unknown currency {currency!r}") from None


class ExactPrice(NamedTuple):
    """What one token costs in minor units, as a fraction of whole numbers: nothing is rounded yet."""

    numerator: int
    denominator: int


def exact_price(
    unit_price: Decimal, per_tokens: int, currency: str, discount_percent: Decimal = _NO_DISCOUNT
) -> ExactPrice:
    """`unit_price` per `per_tokens`, less the discount, as what one token costs."""
    share = Fraction(100 - discount_percent) / 100
    price = Fraction(unit_price) * share * 10 ** decimals(currency) / per_tokens
    return ExactPrice(price.numerator, price.denominator)


def charge(tokens: int, price: ExactPrice) -> int:
    """What `tokens` cost in minor units, rounded once, half away from zero.

    The one place where an amount is rounded.
    """
    numerator, denominator = price
    rounded = (2 * abs(tokens) * numerator + denominator) // (2 * denominator)
    return rounded if tokens >= 0 else -rounded


def to_decimal(minor: int, currency: str) -> Decimal:
    """Minor units as a decimal of the currency: 1234 of CNY are Decimal('12.34')."""
    return Decimal(minor).scaleb(-decimals(currency), context=_EXACT)


def to_minor(amount: Decimal, currency: str) -> int:
    """A decimal of the currency in minor units. Raises: ValueError: it is finer than a minor unit."""
    minor = amount.scaleb(decimals(currency), context=_EXACT)
    if minor != minor.to_integral_value():
        raise ValueError(
            f"{amount} is finer than {currency} has units: at most {decimals(currency)} decimals"
        )
    return int(minor)


def shown(value: Fraction, places: int) -> Decimal:
    """An exact number as people read it, half away from zero: for reports, never for what is billed."""
    scaled = abs(value) * 10**places
    whole = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
    return Decimal(-whole if value < 0 else whole).scaleb(-places, context=_EXACT)


def format_amount(minor: int, currency: str) -> str:
    """For people: '¥1,234.50', '-$0.07', '1,200 KRW'."""
    number = f"{abs(to_decimal(minor, currency)):,.{decimals(currency)}f}"
    sign = "-" if minor < 0 else ""
    symbol = _SYMBOLS.get(currency)
    return f"{sign}{symbol}{number}" if symbol else f"{sign}{number} {currency}"
