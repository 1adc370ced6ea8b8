"""Write the mails of sample days as HTML pages to look at: `python -m tests.tools.preview_mail FOLDER`."""

from __future__ import annotations

import sys
from base64 import b64encode
from email.message import EmailMessage
from pathlib import Path
from zoneinfo import ZoneInfo

from billing.bill_csv import read_lines, write_bill
from billing.charts import draw_charts
from billing.closure import prove
from billing.ledger import reading
from billing.mail import compose
from billing.report import day_report
from billing.words import Language
from tests.tools.sample_ledger import EARLY, EMPTY, FIRST, NORMAL, SURGE, sample_ledger

DAYS = {"first": FIRST, "normal": NORMAL, "surge": SURGE, "empty": EMPTY, "early": EARLY}
LANGUAGES: tuple[Language, ...] = ("en", "zh")


def main(folder: Path) -> None:
    """Fill a ledger in `folder` with a sample month, and write a page and a mail a day and language."""
    folder.mkdir(parents=True, exist_ok=True)
    ledger = sample_ledger(folder / "sample.db")
    for name, day in DAYS.items():
        for language in LANGUAGES:
            with reading(ledger) as connection:
                report = day_report(connection, day, ZoneInfo("Asia/Shanghai"))
                bill = write_bill(read_lines(connection, day))
                proof = prove(connection, day)
            message = compose(
                report,
                mail_id=f"{day}/preview/{language}",
                language=language,
                sender="Tallybook <tallybook@example.com>",
                recipients=["finance@example.com"],
                charts=draw_charts(report, language),
                bill=bill,
                proof=proof,
            )
            (folder / f"{name}-{language}.eml").write_bytes(message.as_bytes())
            (folder / f"{name}-{language}.html").write_text(page(message), "utf-8")
            sys.stdout.write(f"{message['Subject']}\n")


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
