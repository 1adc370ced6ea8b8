"""Training-cost events, read strictly from the files that training writes. Pure but for the reading."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

from billing import money
from billing.strict_toml import DECIMAL
from tallybook.usage import MAX_TEXT, NAME

EVENT_TYPE = "tallybook.training.v1"
_LIMIT = 10**12  # of seconds, examples and prices: above it a number is an error
_MAX_DECIMALS = 12


class InvalidRunError(ValueError):
    """A file or a record that is no training-cost event; `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """What one training took: machines for `wall_seconds`, at `pool_price_per_hour` where known."""

    id: str
    time: datetime
    model: str
    model_version: str
    device: str
    device_seconds: Decimal
    wall_seconds: Decimal
    examples: int
    code_version: str
    pool_price_per_hour: Decimal | None = None
    currency: str | None = None


def read_runs(file: Path) -> list[TrainingRun]:
    """Every run of a file of JSON lines.

    Raises: InvalidRunError: it can't be read (code training_unreadable), or a line is no training-cost event.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise InvalidRunError("training_unreadable", f"{error.strerror}") from error
    if not lines:
        raise InvalidRunError("training_not_json", "the file is empty")
    runs = []
    for number, line in enumerate(lines, 1):
        try:
            runs.append(read_run(line))
        except InvalidRunError as error:
            raise InvalidRunError(error.code, f"line {number}: {error}") from error
    return runs


def read_run(line: bytes) -> TrainingRun:
    """A CloudEvents record as JSON. Numbers are read as decimals, never as floats.

    Raises: InvalidRunError: not JSON (training_not_json), another type of record (training_unknown_type), or
        a field that is missing, of another type or out of range (training_invalid_field), named.
    """
    try:
        record = json.loads(line, parse_float=Decimal, parse_constant=Decimal)
    except (ValueError, RecursionError) as error:
        raise InvalidRunError("training_not_json", f"not JSON: {error}") from error
    if not isinstance(record, dict) or (record.get("specversion"), record.get("type")) != ("1.0", EVENT_TYPE):
        raise InvalidRunError("training_unknown_type", f"not a CloudEvents 1.0 record of type {EVENT_TYPE}")
    data = record.get("data")
    if not isinstance(data, dict):
        raise InvalidRunError("training_invalid_field", "data is not an object")
    price, currency = data.get("pool_price_per_hour"), data.get("currency")
    if (price is None) != (currency is None):
        raise InvalidRunError("training_invalid_field", "a price needs a currency, and a currency a price")
    return TrainingRun(
        id=_text("id", record.get("id")),
        time=_instant(record.get("time")),
        model=_name("model", data.get("model")),
        model_version=_name("model_version", data.get("model_version")),
        device=_text("device", data.get("device")),
        device_seconds=_number("device_seconds", data.get("device_seconds")),
        wall_seconds=_number("wall_seconds", data.get("wall_seconds")),
        examples=_whole("examples", data.get("examples")),
        code_version=_text("code_version", data.get("code_version")),
        pool_price_per_hour=None if price is None else _price(price),
        currency=None if currency is None else _currency(currency),
    )


def _wrong(name: str, what: str) -> InvalidRunError:
    return InvalidRunError("training_invalid_field", f"{name} must be {what}")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise _wrong(name, f"1-{MAX_TEXT} printable characters")
    return value


def _name(name: str, value: object) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise _wrong(name, "1-128 of letters, digits and ._@:-")
    return value


def _instant(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        if moment.tzinfo is not None:
            return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        pass
    raise _wrong("time", "a moment with its UTC offset, such as 2026-11-22T08:30:00.250000Z")


def _whole(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value < _LIMIT:
        raise _wrong(name, "a whole number, 0 or more")
    return value


def _number(name: str, value: object) -> Decimal:
    if type(value) not in (int, Decimal):
        raise _wrong(name, "a number, 0 or more")
    number = Decimal(value)  # type: ignore[arg-type]  # narrowed above
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or not 0 <= number < _LIMIT or exponent < -_MAX_DECIMALS:
        raise _wrong(name, f"a number, 0 or more, with at most {_MAX_DECIMALS} decimals")
    return number


def _price(value: object) -> Decimal:
    if not isinstance(value, str) or not DECIMAL.fullmatch(value):
        raise _wrong("pool_price_per_hour", 'a decimal in quotes, such as "12.50"')
    return Decimal(value)


def _currency(value: object) -> str:
    try:
        money.decimals(str(value))
    except ValueError as error:
        raise InvalidRunError("training_invalid_field", str(error)) from error
    return str(value)
