"""The mail of a day: subject, both bodies, charts inline, the bill attached."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from zoneinfo import ZoneInfo

from billing.closure import Proof
from billing.errors import MailError
from billing.mail.body import render
from billing.mail.policy import POLICY
from billing.reports.day import DayReport
from billing.reports.summary import subject
from billing.reports.texts import words
from billing.reports.words import Language, shown


def compose(
    report: DayReport,
    *,
    mail_id: str,
    language: Language,
    sender: str,
    recipients: Iterable[str],
    charts: Mapping[str, bytes],
    bill: bytes,
    pdf: bytes | None = None,
    proof: Proof | None = None,
    date: datetime | None = None,
) -> EmailMessage:
    """Write the mail of a day. The same arguments make the same bytes.

    Args:
        mail_id: names the mail in the outbox; the Message-ID is made from it, so that a mail that is
            delivered twice can be recognised.
        sender, recipients: addresses, with or without a name: `Tallybook <tallybook@example.com>`.
        charts: PNG by name, as `billing.reports.charts.draw_charts` gives them.
        bill: the CSV of `billing.mail.bill_csv.write_bill`.
        pdf: the same for people, as `billing.mail.bill_pdf` makes it.
        proof: what closing the day has proven; stated in the mail.
        date: of the mail; the moment of closing when not given, and now for a day that is not closed.
    Raises: MailError: an address can't be used (code address_invalid), or there is no recipient.
    """
    told = words(language)
    moment = date or report.closed_at or datetime.now(timezone.utc)
    message = headed(
        subject(report, told), sender, recipients,
        mail_id=mail_id, date=moment.astimezone(ZoneInfo(report.time_zone)),
    )  # fmt: skip
    digest, domain = _digest(mail_id), message["From"].addresses[0].domain
    content_ids = {name: f"{name}.{digest}@{domain}" for name in charts}
    name = _bill_name(report)
    bill_name, pdf_name = f"{name}.csv", f"{name}.pdf" if pdf else None
    body = render(report, told, charts=content_ids, bill_name=bill_name, pdf_name=pdf_name, proof=proof)
    message.set_content(body.text)
    message.add_alternative(body.html, subtype="html")
    html = list(message.iter_parts())[1]
    for name, image in charts.items():
        html.add_related(
            image, "image", "png", cid=f"<{content_ids[name]}>", disposition="inline", filename=f"{name}.png"
        )
    message.add_attachment(
        bill, maintype="text", subtype="csv", filename=bill_name, params={"charset": "utf-8"}
    )
    if pdf:
        message.add_attachment(pdf, maintype="application", subtype="pdf", filename=pdf_name)
    message["Content-Language"] = told.html_language  # last: a new part takes Content- headers with it
    for place, part in enumerate(message.walk()):
        if part.is_multipart():
            part.set_boundary(f"={digest}={place}")
    return message


def headed(
    subject: str, sender: str, recipients: Iterable[str], *, mail_id: str, date: datetime
) -> EmailMessage:
    """A mail that has its headers, and no body yet; whatever the subject holds stays in its line.

    Raises: MailError: an address can't be used (code address_invalid), or there is no recipient
        (no_recipient).
    """
    from_ = check_address(sender)
    to = tuple(check_address(recipient) for recipient in recipients)
    if not to:
        raise MailError("no_recipient", "the settings name nobody who would get this mail")
    message = EmailMessage(POLICY)
    # A header is parsed when it is set: a name like "=?utf-8?q?=0A?=" would be decoded, to a line break here.
    message["Subject"] = shown(subject).replace("=?", "= ?")
    message["From"] = from_
    message["To"] = to
    message["Date"] = format_datetime(date)
    message["Message-ID"] = f"<{_digest(mail_id)}@{from_.domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday notice answers it
    return message


def _digest(mail_id: str) -> str:
    return hashlib.sha256(mail_id.encode()).hexdigest()[:32]


def check_address(text: str) -> Address:
    """One address, with or without a name; in ASCII letters, as every mail server takes it."""
    try:
        groups = POLICY.header_factory("To", text).groups
    except (HeaderParseError, IndexError, ValueError):  # all of them come out of the parser for bad addresses
        groups = ()
    if len(groups) != 1 or groups[0].display_name is not None or len(groups[0].addresses) != 1:
        raise _invalid(text, "it is not one address such as name@example.com")
    address: Address = groups[0].addresses[0]
    if not address.username or not address.domain or not address.addr_spec.isascii():
        raise _invalid(text, "it must be name@domain in ASCII letters")
    # A name may be an encoded word, which the parser decodes to whatever it hides.
    if not (text + address.display_name + address.addr_spec).isprintable() or " " in address.addr_spec:
        raise _invalid(text, "it holds a blank or a control character")
    return address


def _invalid(text: str, why: str) -> MailError:
    return MailError("address_invalid", f"{text!r} can't be used as a mail address: {why}")


def _bill_name(report: DayReport) -> str:
    """'bill-2026-11-22', 'bill-2026-11-22-user-a-draft'."""
    whose = [] if report.owner is None else [re.sub(r"[^A-Za-z0-9.@_-]", "_", report.owner)]
    state = [] if report.state == "closed" and not report.early else ["early" if report.early else "draft"]
    return "-".join(["bill", str(report.day), *whose, *state])
