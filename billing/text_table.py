"""Tables as text, for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

_WIDEST_NAME = 28


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, long names cut in the middle, the rest to the right."""
    cut = [[_cut(first), *rest] for first, *rest in rows]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    return [
        "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip()
        for first, *rest in cut
    ]


def _cut(name: str) -> str:
    """A name's start and end, which both tell it from others."""
    half = _WIDEST_NAME // 2
    return name if len(name) <= _WIDEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
