"""A day's bill as PDF, for people: what was used at which price, by department, project and model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import noto_cjk_sans_otc  # type: ignore[import-untyped]  # it has one constant
import typst

from billing.closure import Proof
from billing.mail.body import Table, proof_text, tables, tiles
from billing.money import format_amount
from billing.reports import summary
from billing.reports.day import DayReport
from billing.reports.texts import words
from billing.reports.words import Language, Words, number, shown

_MOST_ROWS = 400  # of a table; the CSV has every line
_ITEM = (
    "department",
    "project",
    "model",
    "model_version",
    "direction",
    "tier",
    "price_id",
    "discount_percent",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What is written on a PDF: texts only."""

    language: Language
    title: str
    state: str
    footer: str
    notices: list[str] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def bill_pdf(
    report: DayReport, lines: Iterable[Mapping[str, Any]], language: Language, proof: Proof | None = None
) -> bytes:
    """Write the bill. The same arguments make the same bytes.

    Args:
        lines: those of the bill (rows of `bill_lines`); users are summed up.
        proof: what closing the day has proven.
    """
    told = words(language)
    return typeset(
        Document(
            language=language,
            title=summary.title(report, told),
            state=summary.state(report, told),
            footer=told.footer.format(zone=report.time_zone),
            notices=[notice.text for notice in summary.notices(report, told)],
            figures=[(tile.label, tile.value) for tile in tiles(report, told)],
            paragraphs=summary.paragraphs(report, told),
            tables=[as_rows(each, told) for each in [_items(lines, report, told), *tables(report, told)]],
            remarks=[proof_text(proof, told)] if proof else [],
        )
    )


def as_rows(table: Table, told: Words) -> dict[str, Any]:
    """A table for the template: so many rows as people leaf through; how many are left out is said."""
    note = told.rows_left_out.format(shown=_MOST_ROWS, rows=number(len(table.rows)))
    return asdict(table) | {
        "rows": table.rows[:_MOST_ROWS],
        "note": note if len(table.rows) > _MOST_ROWS else "",
    }


def typeset(document: Document) -> bytes:
    """Make the PDF, with the font that draws Chinese."""
    pdf = typst.compile(  # type: ignore[misc]  # its stub has a type variable that nothing tells
        _template(),
        None,
        font_paths=[str(Path(str(noto_cjk_sans_otc.FONT_PATH)).parent)],
        ignore_system_fonts=True,
        sys_inputs={"told": json.dumps(asdict(document), ensure_ascii=False)},
    )
    return bytes(pdf)


@cache
def _template() -> bytes:
    return files("billing.mail").joinpath("templates/bill.typ").read_bytes()


def _items(lines: Iterable[Mapping[str, Any]], report: DayReport, told: Words) -> Table:
    """What was used, at its price: the largest amounts first."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for line in lines:
        key = tuple(line[name] for name in _ITEM)
        kept = found.setdefault(key, [line, 0, 0, None])
        kept[1] += line["quantity_tokens"]
        kept[2] += line["quantity_requests"]
        if line["amount_minor"] is not None:
            kept[3] = (kept[3] or 0) + line["amount_minor"]
    ordered = sorted(found.items(), key=lambda item: (-(item[1][3] or 0), item[0]))
    rows = tuple(_item(line, tokens, asked, minor, told) for _, (line, tokens, asked, minor) in ordered)
    headings = (
        told.dimensions["department"].capitalize(),
        told.dimensions["project"].capitalize(),
        told.dimensions["model"].capitalize(),
        told.direction,
        told.quantity,
        told.unit_price,
        told.amount,
    )
    foot = (told.total, "", "", "", "", "", told.money(report.total))
    return Table(told.items, headings, rows, foot, names=4)


def _item(
    line: Mapping[str, Any], tokens: int, requests: int, minor: int | None, told: Words
) -> tuple[str, ...]:
    if minor is None or line["currency"] is None:
        price, amount = "–", told.unrated
    else:
        price = (
            f"{line['unit_price']}/{number(line['per_tokens'])}" if line["per_tokens"] else line["unit_price"]
        )
        discount = line["discount_percent"]
        price += f" -{discount}%" if discount != "0" else ""
        amount = format_amount(minor, line["currency"])
    return (
        shown(line["department"]),
        shown(line["project"]),
        shown(f"{line['model']} {line['model_version']}"),
        told.directions[line["direction"]],
        number(requests) if line["direction"] == "minimum" else number(tokens),
        price,
        amount,
    )
