"""The body of the mail of a day, as HTML and as plain text that stands alone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

import jinja2

from billing.closure import Proof
from billing.reports import summary
from billing.reports.day import Correction, DayReport
from billing.reports.driver import Change
from billing.reports.words import Words, average, number, percent, shown, signed, signed_amount
from billing.totals import Part, Totals, sum_parts

_BAR_PX = 60
_ROWS = 10  # of a table; the rest is one row, "others", and in the attached bill line by line


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the big numbers: its change in percent and what it was, where there is something to compare."""

    label: str
    value: str
    change: str = ""
    before: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """The first `names` columns are names, the others numbers; a foot sums them up."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    foot: tuple[str, ...] = ()
    names: int = 1

    def aligned(self) -> str:
        """The table in letters of one width."""
        lines = [row for row in (self.headings, *self.rows, self.foot) if row]
        widths = [max(_width(row[column]) for row in lines) for column in range(len(self.headings))]
        return "\n".join(
            "  ".join(
                cell + " " * (width - _width(cell))
                if column < self.names
                else " " * (width - _width(cell)) + cell
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in lines
        )


@dataclass(frozen=True, slots=True)
class Body:
    """Both renderings of one mail."""

    html: str
    text: str


def render(
    report: DayReport,
    told: Words,
    *,
    charts: Mapping[str, str],
    bill_name: str,
    pdf_name: str | None = None,
    proof: Proof | None = None,
) -> Body:
    """Write the mail.

    Args:
        charts: the content id of each chart, by the names of `billing.reports.charts.draw_charts`.
        bill_name, pdf_name: the file names of the attached bill.
        proof: what was proven when the day was closed.
    """
    view = {
        "told": told,
        "title": summary.title(report, told),
        "state": summary.state(report, told),
        "settled": report.state == "closed" and not report.early,
        "tiles": tiles(report, told),
        "paragraphs": summary.paragraphs(report, told),
        "notices": summary.notices(report, told),
        "charts": [(cid, getattr(told, f"chart_{name}")) for name, cid in charts.items()],
        "tables": tables(report, told),
        "proof": proof_text(proof, told) if proof else "",
        "bars": [] if charts else _bars(report),
        "attached": told.attached_both.format(file=bill_name, pdf=pdf_name)
        if pdf_name
        else told.attached.format(file=bill_name),
        "footer": told.footer.format(zone=report.time_zone),
    }
    return render_view(view)


def render_view(view: Mapping[str, Any]) -> Body:
    """Both renderings of what the templates show; see `render` for its names."""
    return Body(_template("mail.html").render(view), _template("mail.txt").render(view))


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("billing.mail"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment.get_template(name)


def _bars(report: DayReport) -> list[tuple[int, bool]]:
    """Bars of the last days for a mail without pictures: how high in pixels, and whether it is this day."""
    most = max((day.total_tokens for day in report.trend), default=0)
    if sum(day.total_tokens > 0 for day in report.trend) < 2:
        return []
    return [
        (max(1, _BAR_PX * day.total_tokens // most) if day.total_tokens else 0, day.day == report.day)
        for day in report.trend
    ]


def _unbroken(text: str) -> str:
    """Keep a minus sign and the currency after it on one line."""
    return re.sub(r"-(?=[^\w\s])", "-\N{WORD JOINER}", text)


def tiles(report: DayReport, told: Words) -> list[Tile]:
    """The big numbers; none where there is nothing to count or compare."""
    if not report.total.requests and not report.before:
        return []

    def tile(label: str, read: Callable[[Totals], str], change: Change | None) -> Tile:
        if change is None or report.before is None:
            return Tile(label, read(report.total))
        moved = percent(change.percent, sign=True) if change.percent is not None else signed(change.absolute)
        return Tile(label, read(report.total), moved, told.tile_before.format(before=read(report.before)))

    before = report.before
    requests = Change(before.requests, report.total.requests) if before else None
    tiles = [
        tile(told.cost, told.money, report.cost_change),
        tile(told.total_tokens, lambda totals: number(totals.total_tokens), report.token_change),
        tile(told.request_count, lambda totals: number(totals.requests), requests),
    ]
    lengths = [each.tokens_per_request if each else None for each in (report.before, report.total)]
    length = Tile(told.tokens_per_request, average(lengths[1]))
    if lengths[0] is not None and lengths[1] is not None:
        moved = percent(100 * (lengths[1] - lengths[0]) / lengths[0], sign=True)
        length = Tile(
            told.tokens_per_request,
            average(lengths[1]),
            moved,
            told.tile_before.format(before=average(lengths[0])),
        )
    return [*tiles, length]


def tables(report: DayReport, told: Words) -> list[Table]:
    """The day by project, department, model and user, and its corrections."""
    parts = [
        (told.by_department, told.dimensions["department"], report.departments),
        (told.by_model, told.dimensions["model"], report.models),
    ]
    if report.project is None:
        parts.insert(0, (told.by_project, told.dimensions["project"], report.projects))
    if report.user is None:
        parts.append((told.top_users, told.dimensions["user"], report.users))
    tables = [_part_table(title, of, each, report.total, told) for title, of, each in parts if each]
    if report.corrections:
        tables.append(_corrections(report, told))
    return tables


def _part_table(title: str, of: str, parts: Sequence[Part], total: Totals, told: Words) -> Table:
    several = (
        len(parts) > _ROWS + 1
    )  # a single one that is left is named, in the row that "1 other" would take
    rows = [_part_row(shown(p.name), p.totals, total, told) for p in parts[: _ROWS if several else None]]
    if several:
        others = parts[_ROWS:]
        rows.append(_part_row(told.count(told.others, len(others)), sum_parts(others), total, told))
    return Table(
        title,
        (of.capitalize(), told.request_count, told.total_tokens, told.share, told.amount),
        tuple(rows),
        _part_row(told.total, total, total, told),
    )


def _part_row(name: str, part: Totals, total: Totals, told: Words) -> tuple[str, ...]:
    share = percent(Decimal(100 * part.total_tokens) / total.total_tokens) if total.total_tokens else "–"
    return (name, number(part.requests), number(part.total_tokens), share, told.money(part))


def _corrections(report: DayReport, told: Words) -> Table:
    def row(whose: tuple[str, str, str], corrections: Sequence[Correction]) -> tuple[str, ...]:
        amounts = [c.amount_minor for c in corrections if c.amount_minor is not None]
        currency = report.total.currency
        amount = signed_amount(sum(amounts), currency) if amounts and currency else told.unrated
        return (*whose, signed(sum(c.quantity_tokens for c in corrections)), amount)

    ordered = sorted(report.corrections, key=lambda c: -abs(c.amount_minor or 0))
    rows = [row((f"{c.usage_day}", shown(c.user_id), shown(c.project)), [c]) for c in ordered[:_ROWS]]
    if others := ordered[_ROWS:]:
        rows.append(row((told.count(told.others, len(others)), "", ""), others))
    user, project = told.dimensions["user"].capitalize(), told.dimensions["project"].capitalize()
    headings = (told.usage_day, user, project, told.total_tokens, told.amount)
    return Table(told.corrections, headings, tuple(rows), row((told.total, "", ""), ordered), names=3)


def proof_text(proof: Proof, told: Words) -> str:
    """What was proven, in a sentence."""
    said = told.proof_text.format(
        requests=told.count(told.requests, proof.requests),
        events=number(proof.event_tokens),
        aggregates=number(proof.aggregate_tokens),
        lines=number(proof.line_tokens),
    )
    return told.sentence_gap.join([said, told.proof_corrects] if proof.corrected_days else [said])


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
