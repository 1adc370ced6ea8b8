"""Exact money: integer minor units of a currency, rounded in one function."""

from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction

# ISO 4217: how many decimals the minor unit of a currency has.
_DECIMALS = {
    "AUD": 2, "BRL": 2, "CAD": 2, "CHF": 2, "CNY": 2, "DKK": 2, "EUR": 2, "GBP": 2, "HKD": 2, "INR": 2,
    "JPY": 0, "KRW": 0, "KWD": 3, "MOP": 2, "MXN": 2, "MYR": 2, "NOK": 2, "NZD": 2, "PLN": 2, "SAR": 2,
    "SEK": 2, "SGD": 2, "THB": 2, "TND": 3, "TRY": 2, "TWD": 2, "USD": 2, "VND": 0, "ZAR": 2,
}  # fmt: skip
_SYMBOLS = {"CNY": "¥", "EUR": "€", "GBP": "£", "USD": "$"}
# Wide enough that no product of a token count and a unit price is rounded before the one rounding.
_EXACT = Context(prec=60)


def decimals(currency: str) -> int:
    """Decimals of the currency's minor unit. Raises: ValueError: not a currency known here."""
    try:
        return _DECIMALS[currency]
    except KeyError:
        raise ValueError(f"unknown currency {currency!r}") from None


def charge(tokens: int, unit_price: Decimal, per_tokens: int, currency: str) -> int:
    """What `tokens` cost at `unit_price` per `per_tokens`, in minor units, rounded once, half away from zero.

    The one place where an amount is rounded.
    """
    scale = _EXACT.power(Decimal(10), decimals(currency))
    product = _EXACT.multiply(_EXACT.multiply(Decimal(tokens), unit_price), scale)
    whole, rest = divmod(abs(product), per_tokens)
    rounded = int(whole) + (1 if rest * 2 >= per_tokens else 0)
    return rounded if product >= 0 else -rounded


def to_decimal(minor: int, currency: str) -> Decimal:
    """Minor units as a decimal of the currency: 1234 of CNY are Decimal('12.34')."""
    return Decimal(minor).scaleb(-decimals(currency), context=_EXACT)


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
