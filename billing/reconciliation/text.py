"""A day's reconciliation as a table of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, tzinfo
from itertools import groupby

from billing.reconciliation.metered import Comparison, Reconciliation, Row, Served

_HEADS = ("", "requests", "served", "unmetered", "tokens", "served", "unmetered")
_UNKNOWN = Served(0, None)
_NOTES = (
    "a–b: the samples before and after the hour are not on its edge: take them more often.",
    "≥ a: no sample before or after, or the server started anew; at least so many.",
    "–: no server counts this.",
)


def render(found: Reconciliation, day: date, zone: tzinfo) -> Iterator[str]:
    """The lines of a table a model: its hours and the whole day.

    Hours in which nothing happened are left out; those of which nothing is known are told in one line.
    """
    if not found.days:
        yield f"{day}: nothing metered, and no counters."
        return
    days = {row.model: row for row in found.days}
    for model, rows in groupby(found.hours, lambda row: row.model):
        hours = list(rows)
        cells = [(_clock(row.span.start, zone), *_cells(row)) for row in hours if _happened(row)]
        yield f"{model}, {day}"
        yield from _table([_HEADS, *cells, ("day", *_cells(days[model]))])
        if unknown := ", ".join(_stretches(hours, zone)):
            yield f"unknown, and nothing metered: {unknown}"
        yield ""
    yield from _NOTES
    if found.failed_samples:
        yield f"Times that a server did not answer that day: {found.failed_samples:,}."


def share(metered: int, served: Served) -> str:
    """The part of what was served that was not metered, or its bounds; negative: more was metered."""
    low = _percent(metered, served.least)
    if served.most is None:
        return f"≥ {low}" if low else "unknown"
    high = _percent(metered, served.most)
    if low == high:
        return low or ""
    return f"{low}–{high}" if low else f"≤ {high}"


def _happened(row: Row) -> bool:
    nothing = (None, Served(0, 0), _UNKNOWN)
    return any(c.metered or c.served not in nothing for c in (row.requests, row.tokens))


def _stretches(hours: Sequence[Row], zone: tzinfo) -> Iterator[str]:
    """From when to when nothing is known and nothing was metered."""
    for unknown, rows in groupby(
        hours, lambda row: not _happened(row) and _UNKNOWN in (row.requests.served, row.tokens.served)
    ):
        stretch = list(rows)
        if unknown:
            yield f"{_clock(stretch[0].span.start, zone)}–{_clock(stretch[-1].span.end, zone)}"


def _clock(moment: datetime, zone: tzinfo) -> str:
    return moment.astimezone(zone).strftime("%H:%M")


def _cells(row: Row) -> tuple[str, ...]:
    return (*_compared(row.requests), *_compared(row.tokens))


def _compared(one: Comparison) -> tuple[str, str, str]:
    metered = f"{one.metered:,}"
    if one.served is None:
        return metered, "–", ""
    least, most = one.served.least, one.served.most
    if most is None:
        served = f"≥ {least:,}" if least else "unknown"
    else:
        served = f"{least:,}" if least == most else f"{least:,}–{most:,}"
    return metered, served, share(one.metered, one.served)


def _percent(metered: int, served: int) -> str | None:
    """To a tenth of a percent, rounded half up in whole numbers; none of nothing."""
    if not served:
        return None
    tenths = (2000 * (served - metered) + served) // (2 * served)
    return f"{'-' * (tenths < 0)}{abs(tenths) // 10}.{abs(tenths) % 10}%"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
