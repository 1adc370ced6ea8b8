"""The mail of a monthly statement, and the statement as PDF."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, tzinfo
from email.message import EmailMessage

from billing.mail.bill_pdf import Document, as_rows, typeset
from billing.mail.body import Table, Tile, render_view
from billing.mail.day import headed
from billing.money import format_amount
from billing.reports.texts import words
from billing.reports.words import Language, Words, number, shown
from billing.statements.statement import Part, Row, Statement
from billing.statements.text import as_csv

_ROWS = 20  # of a table in the mail; the attached files have the rest


def compose_statement(
    told: Statement,
    *,
    mail_id: str,
    language: Language,
    sender: str,
    recipients: Iterable[str],
    zone: tzinfo,
    date: datetime | None = None,
) -> EmailMessage:
    """Write the mail: what the month comes to, by department, project and model; CSV and PDF attached."""
    say = words(language)
    month, name = f"{told.month.first:%Y-%m}", f"statement-{told.month.first:%Y-%m}"
    tokens = say.count(say.tokens, sum(part.quantity_tokens for part in told.parts))
    figures = say.between_figures.join([_amount(told, told.amount_minor, say), tokens])
    subject = say.subject_statement.format(month=month, figures=figures)
    if told.simulated:
        subject = say.mark.format(state=say.simulated) + subject
    message = headed(subject, sender, recipients, mail_id=mail_id, date=date or datetime.now(tz=zone))
    body = render_view(
        {
            "told": say,
            "title": say.title_statement.format(month=month),
            "state": _state(told, say),
            "settled": not told.open_days,
            "tiles": _tiles(told, say),
            "paragraphs": [_summed(told, say)],
            "notices": [{"kind": "warning", "text": each} for each in _notices(told, say)],
            "charts": [],
            "bars": [],
            "tables": [_cut(each, say) for each in _tables(told, say)],
            "proof": "",
            "attached": say.attached_both.format(file=f"{name}.csv", pdf=f"{name}.pdf"),
            "footer": say.footer.format(zone=zone),
        }
    )
    message.set_content(body.text)
    message.add_alternative(body.html, subtype="html")
    message.add_attachment(
        as_csv(told), maintype="text", subtype="csv", filename=f"{name}.csv", params={"charset": "utf-8"}
    )
    pdf = statement_pdf(told, language)
    message.add_attachment(pdf, maintype="application", subtype="pdf", filename=f"{name}.pdf")
    message["Content-Language"] = say.html_language  # last: a new part takes Content- headers with it
    return message


def statement_pdf(told: Statement, language: Language) -> bytes:
    """Write the statement; the same statement makes the same bytes."""
    say = words(language)
    title = say.title_statement.format(month=f"{told.month.first:%Y-%m}")
    return typeset(
        Document(
            language=language,
            title=title if told.id is None else f"{title}: {shown(told.id)}",
            state=_state(told, say),
            footer=f"{told.month.first} – {told.month.last}",
            notices=_notices(told, say),
            figures=[(tile.label, tile.value) for tile in _tiles(told, say)],
            paragraphs=[_summed(told, say)],
            tables=[as_rows(each, say) for each in _tables(told, say)],
        )
    )


def _state(told: Statement, say: Words) -> str:
    return say.state_draft if told.open_days else say.state_closed


def _notices(told: Statement, say: Words) -> list[str]:
    found = [say.notice_simulated] if told.simulated else []
    models: dict[str, int] = defaultdict(int)
    for each in told.unrated:
        models[shown(f"{each.model} {each.model_version}")] += each.tokens
    if models:
        named = [f"{model} ({number(tokens)})" for model, tokens in sorted(models.items())]
        count = say.count(say.tokens, sum(models.values()))
        found.append(say.notice_unrated.format(tokens=count, models=say.between.join(named)))
    return found


def _tiles(told: Statement, say: Words) -> list[Tile]:
    tokens = Tile(say.total_tokens, number(sum(part.quantity_tokens for part in told.parts)))
    return [Tile(say.cost, _amount(told, told.amount_minor, say)), tokens]


def _summed(told: Statement, say: Words) -> str:
    tokens = say.count(say.tokens, sum(part.quantity_tokens for part in told.parts))
    projects = say.count(say.projects, len({part.project for part in told.parts}))
    amount = _amount(told, told.amount_minor, say)
    said = say.summed_unrated if told.currency is None else say.summed_statement
    return said.format(month=f"{told.month.first:%Y-%m}", tokens=tokens, projects=projects, amount=amount)


def _tables(told: Statement, say: Words) -> list[Table]:
    found = [_parts(told, say), _rows(told, say.items, told.rows, say)]
    if told.corrections:
        found.append(_rows(told, say.corrections, told.corrections, say))
    return found


def _parts(told: Statement, say: Words) -> Table:
    def row(names: tuple[str, str], parts: Sequence[Part]) -> tuple[str, ...]:
        tokens, minor = sum(p.quantity_tokens for p in parts), sum(p.amount_minor for p in parts)
        free = not minor and tokens > 0 and tokens == sum(p.unrated_tokens for p in parts)
        return (*names, number(tokens), say.unrated if free else _amount(told, minor, say))

    ordered = sorted(told.parts, key=lambda part: (-part.amount_minor, part.department, part.project))
    rows = tuple(row((shown(part.department), shown(part.project)), [part]) for part in ordered)
    department, project = say.dimensions["department"].capitalize(), say.dimensions["project"].capitalize()
    headings = (department, project, say.total_tokens, say.amount)
    return Table(say.by_department, headings, rows, row((say.total, ""), ordered), names=2)


def _rows(told: Statement, title: str, rows: Sequence[Row], say: Words) -> Table:
    def cells(row: Row) -> tuple[str, ...]:
        if row.amount_minor is None or row.currency is None:
            price, amount = "–", say.unrated
        else:
            price = f"{row.unit_price}" + (f"/{number(row.per_tokens)}" if row.per_tokens else "")
            price += f" -{row.discount_percent}%" if row.discount_percent != "0" else ""
            amount = format_amount(row.amount_minor, row.currency)
        quantity = number(row.quantity_requests if row.direction == "minimum" else row.quantity_tokens)
        model = shown(f"{row.model} {row.model_version}")
        return (f"{row.usage_month:%Y-%m}", model, say.directions[row.direction], quantity, price, amount)

    headings = (
        say.usage_month, say.dimensions["model"].capitalize(), say.direction, say.quantity, say.unit_price,
        say.amount,
    )  # fmt: skip
    return Table(title, headings, tuple(cells(row) for row in rows), names=3)


def _cut(table: Table, say: Words) -> Table:
    """So many rows as a mail shows; how many more there are is a row of its own."""
    if len(table.rows) <= _ROWS:
        return table
    more = say.count(say.more, len(table.rows) - _ROWS)
    rest = (more, *[""] * (len(table.headings) - 1))
    return Table(table.title, table.headings, (*table.rows[:_ROWS], rest), table.foot, table.names)


def _amount(told: Statement, minor: int, say: Words) -> str:
    return say.unrated if told.currency is None else format_amount(minor, told.currency)
