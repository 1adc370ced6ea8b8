"""Write the mails of sample days as HTML pages to look at: `python -m tests.tools.preview_mail FOLDER`."""

from __future__ import annotations

import sys
from base64 import b64encode
from collections.abc import Collection
from decimal import Decimal
from email.message import EmailMessage
from pathlib import Path

from sqlalchemy.engine import Connection

from billing.closure import prove
from billing.costs.file import CostList, Pool
from billing.ledger import reading
from billing.mail.bill_csv import read_lines, write_bill
from billing.mail.bill_pdf import bill_pdf
from billing.mail.day import compose
from billing.reports.charts import draw_charts
from billing.reports.day import day_report
from billing.reports.words import Language
from billing.selection import Selection
from billing.statements.mail import compose_statement
from billing.statements.statement import statement
from tests.billing.factories import ZONE
from tests.tools.sample_ledger import EARLY, EMPTY, FIRST, NORMAL, SURGE, sample_ledger

COSTS = CostList(
    "CNY",
    [
        Pool("cpu", FIRST, 2, Decimal("1.20"), ("review-sentiment", "trial-model"), {
            "review-sentiment": Decimal(2), "trial-model": Decimal(2),
        }),
        Pool("gpu", FIRST, 1, Decimal("9.80"), ("reply-writer",), {"reply-writer": Decimal("0.6")}),
    ],
)  # fmt: skip
DAYS = {"first": FIRST, "normal": NORMAL, "surge": SURGE, "empty": EMPTY, "early": EARLY}
SENDER, RECIPIENTS = "Tallybook <tallybook@example.com>", ["finance@example.com"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


def main(folder: Path, names: Collection[str] = (*DAYS, "personal", "statement")) -> None:
    """Fill a ledger in `folder` with a sample month, and write a page and a mail a day and language."""
    folder.mkdir(parents=True, exist_ok=True)
    ledger = sample_ledger(folder / "sample.db")
    for name in names:
        for language in LANGUAGES:
            with reading(ledger) as connection:
                message = _mail(connection, name, language)
            (folder / f"{name}-{language}.eml").write_bytes(message.as_bytes())
            (folder / f"{name}-{language}.html").write_text(page(message), "utf-8")
            sys.stdout.write(f"{message['Subject']}\n")


def _mail(connection: Connection, name: str, language: Language) -> EmailMessage:
    if name == "statement":
        return compose_statement(
            statement(connection, SURGE, ZONE),
            mail_id=f"preview/{language}",
            language=language,
            sender=SENDER,
            recipients=RECIPIENTS,
            zone=ZONE,
        )
    day = DAYS.get(name, SURGE)
    user = "user-17" if name == "personal" else None
    report = day_report(connection, day, ZONE, user, costs=COSTS)
    lines, proof = read_lines(connection, day, Selection(user)), prove(connection, day)
    return compose(
        report,
        mail_id=f"{day}/preview/{language}",
        language=language,
        sender=SENDER,
        recipients=RECIPIENTS,
        charts={} if user else draw_charts(report, language),
        bill=write_bill(lines),
        pdf=None if user else bill_pdf(report, lines, language, proof),
        proof=None if user else proof,
    )


def page(message: EmailMessage) -> str:
    """The HTML part with its inline images put in, as a browser can show it."""
    html = ""
    for part in message.walk():
        if part.get_content_type() == "text/html":
            html = part.get_content()
        elif part.get_content_maintype() == "image":
            inline = f"data:image/png;base64,{b64encode(part.get_content()).decode()}"
            html = html.replace(f"cid:{part['Content-ID'].strip('<>')}", inline)
    return html


if __name__ == "__main__":
    main(Path(sys.argv[1]))
