"""Settings files of finance, read strictly: what is missing, misspelt or inexact is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from billing import money
from billing.errors import BillingError
from tallybook.toml import tomllib
from tallybook.usage import NAME

DECIMAL = re.compile(r"\d{1,9}(\.\d{1,12})?", re.ASCII)  # exact, without a sign or an exponent
_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One table of a file. Every method raises `error` (code `<kind>_invalid`) for what it can't take."""

    table: dict[str, Any]
    where: str
    error: Callable[[str, str], BillingError]
    kind: str

    def only(self, *known: str) -> None:
        """Refuse keys that nothing reads."""
        unknown = sorted(self.table.keys() - set(known))
        if unknown:
            self.refuse(f"unknown {', '.join(unknown)}")

    def entries(self, key: str) -> list[Entry]:
        """The tables of an array of tables, none when it is absent."""
        found = self.table.get(key, [])
        if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
            self.refuse(f"write each of the {key} as [[{key}]]")
        return [
            Entry(table, f"{self.where}, [[{key}]] {number}", self.error, self.kind)
            for number, table in enumerate(found, 1)
        ]

    def name(self, key: str) -> str:
        """A name as events have them."""
        return self._name(key, self.table.get(key))

    def names(self, key: str) -> tuple[str, ...]:
        """A list of different names."""
        found = self.table.get(key)
        if not isinstance(found, list) or not found:
            self.refuse(f"{key} must be a list of names in quotes")
        names = tuple(self._name(key, value) for value in found)
        if len(set(names)) < len(names):
            self.refuse(f"{key} has a name twice")
        return names

    def day(self, key: str) -> date:
        """A day, without quotes."""
        found = self.table.get(key)
        if type(found) is not date:
            self.refuse(f"{key} must be a day such as 2026-01-01")
        return found

    def month(self, key: str) -> date:
        """A month in quotes, as its first day."""
        found = self.table.get(key)
        match = _MONTH.fullmatch(found) if isinstance(found, str) else None
        if match is None or match[1] == "0000":
            self.refuse(f'{key} must be a month in quotes, such as "2026-01"')
        return date(int(match[1]), int(match[2]), 1)

    def whole(self, key: str) -> int:
        """A whole number, 0 or more."""
        found = self.table.get(key)
        if type(found) is not int or not 0 <= found <= 10**15:
            self.refuse(f"{key} must be a whole number from 0 to 1,000,000,000,000,000")
        return found

    def decimal(self, key: str) -> Decimal:
        """A decimal in quotes, 0 or more."""
        return self._decimal(key, self.table.get(key))

    def decimals(self, key: str) -> dict[str, Decimal]:
        """A table of decimals in quotes, by name; empty when it is absent."""
        found = self.table.get(key, {})
        if not isinstance(found, dict):
            self.refuse(f'{key} must be a table such as {{ "my-model" = "1200" }}')
        return {name: self._decimal(f"{key} of {name}", value) for name, value in found.items()}

    def currency(self, key: str) -> str:
        """A currency whose minor unit is known."""
        found = self.table.get(key)
        try:
            money.decimals(str(found))
        except ValueError as error:
            self.refuse(str(error))
        return str(found)

    def refuse(self, what: str) -> NoReturn:
        """Raise the file's error, with the place."""
        raise self.error(f"{self.kind}_invalid", f"{self.where}: {what}")

    def _name(self, key: str, value: object) -> str:
        if not isinstance(value, str) or not NAME.fullmatch(value):
            self.refuse(f"{key} must be 1-128 of letters, digits and ._@:- in quotes")
        return value

    def _decimal(self, key: str, value: object) -> Decimal:
        if not isinstance(value, str) or not DECIMAL.fullmatch(value):
            self.refuse(f'write {key} in quotes, such as "12.50", without a sign, at most 12 decimals')
        return Decimal(value)


def read(file: Path, kind: str, error: Callable[[str, str], BillingError]) -> Entry:
    """The file's outermost table. `kind` names the file in messages and codes: costs, budgets.

    Raises: `error`: no such file (code `<kind>_missing`), or not TOML in UTF-8 (`<kind>_invalid`).
    """
    try:
        return Entry(tomllib.loads(file.read_text("utf-8")), str(file), error, kind)
    except OSError as failure:
        raise error(f"{kind}_missing", f"can't read the {kind} file {file}: {failure.strerror}") from failure
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise error(f"{kind}_invalid", f"{file}: {failure}") from failure
