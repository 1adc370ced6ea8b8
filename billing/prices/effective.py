"""Terms that hold from a day on, until later ones for the same key take over."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable
from datetime import date
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Effective(Generic[K, V]):
    """Values by key and first day; of each key, the last that has begun is in force."""

    def __init__(self, entries: Iterable[tuple[K, date, V]]) -> None:
        self._by_key: dict[K, tuple[list[date], list[V]]] = {}
        for key, start, value in sorted(entries, key=lambda entry: entry[1]):
            starts, values = self._by_key.setdefault(key, ([], []))
            starts.append(start)
            values.append(value)

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def on(self, key: K, day: date) -> V | None:
        """What is in force for this key on this billing day; None: nothing yet."""
        found = self._by_key.get(key)
        if found is None:
            return None
        starts, values = found
        begun = bisect_right(starts, day)
        return values[begun - 1] if begun else None
