"""Tables as text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 100
_LEAST_NAME = 12
_GAP = "  "


def text_table(rows: Sequence[Sequence[str]], indent: int = 0) -> list[str]:
    """Lines of a table: the first column to the left, cut in the middle to fit WIDTH; others to the right."""
    numbers = [max(map(len, column)) for column in list(zip(*rows, strict=True))[1:]]
    room = max(WIDTH - indent - sum(numbers) - len(_GAP) * len(numbers), _LEAST_NAME)
    names = [_cut(row[0], room) for row in rows]
    widest = max(map(len, names))
    return [
        " " * indent + _GAP.join([name.ljust(widest), *map(str.rjust, row[1:], numbers)]).rstrip()
        for name, row in zip(names, rows, strict=True)
    ]


def _cut(name: str, room: int) -> str:
    """A name's start and end, which both tell it from others."""
    return name if len(name) <= room else f"{name[: room - room // 2 - 1]}…{name[-(room // 2) :]}"
