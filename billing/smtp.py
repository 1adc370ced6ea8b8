"""Handing a mail to an SMTP server."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from urllib.parse import unquote, urlsplit

from billing.errors import MailError

_TIMEOUT_SECONDS = 30  # for each answer of the server


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where mails are handed over; shown without its password."""

    host: str
    port: int
    encrypted: bool  # from the first byte; else by STARTTLS when the server offers it
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def of(cls, url: str) -> SmtpServer:
        """Read smtp://USER:PASSWORD@HOST:PORT or smtps://...; ports are 25 and 465 unless given.

        Raises: MailError: not such a URL (code smtp_url_invalid). The message does not repeat it.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.path not in ("", "/"):
            raise MailError(
                "smtp_url_invalid", "smtp_url must look like smtp://USER:PASSWORD@HOST:PORT or smtps://..."
            )
        encrypted = parts.scheme == "smtps"
        return cls(
            parts.hostname,
            port or (465 if encrypted else 25),
            encrypted,
            unquote(parts.username or ""),
            unquote(parts.password or ""),
        )

    def __str__(self) -> str:
        return f"{'smtps' if self.encrypted else 'smtp'}://{self.host}:{self.port}"

    def send(self, message: bytes, recipients: Sequence[str]) -> dict[str, str]:
        """Hand a mail over to some of its recipients; who was refused, with the server's reason.

        The others have it when this returns. The sender is that of the From header.
        Raises: MailError: nobody has it, because the server can't be reached, wants another login, or
            refuses the mail itself (code smtp_failed), or a password would go unencrypted
            (smtp_not_encrypted).
        """
        sender = message_from_bytes(message, policy=policy.SMTP)["From"].addresses[0].addr_spec
        try:
            with self._session() as session:
                refused = session.sendmail(sender, recipients, message)
        except smtplib.SMTPRecipientsRefused as error:
            refused = error.recipients
        except smtplib.SMTPResponseException as error:
            raise MailError("smtp_failed", f"{self}: {_reply(error.smtp_code, error.smtp_error)}") from error
        except (smtplib.SMTPException, OSError, UnicodeError) as error:
            raise MailError("smtp_failed", f"{self}: {error}") from error
        return {address: _reply(*answer) for address, answer in refused.items()}

    @contextmanager
    def _session(self) -> Iterator[smtplib.SMTP]:
        trusted = ssl.create_default_context()
        if self.encrypted:
            session: smtplib.SMTP = smtplib.SMTP_SSL(
                self.host, self.port, timeout=_TIMEOUT_SECONDS, context=trusted
            )
        else:
            session = smtplib.SMTP(self.host, self.port, timeout=_TIMEOUT_SECONDS)
        try:
            session.ehlo_or_helo_if_needed()
            encrypted = self.encrypted
            if not encrypted and session.has_extn("starttls"):
                session.starttls(context=trusted)
                encrypted = True
            if self.user:
                if not encrypted:
                    raise MailError(
                        "smtp_not_encrypted",
                        f"{self} offers no STARTTLS, and the password is not sent in the clear; use smtps://",
                    )
                session.login(self.user, self.password)
            yield session
            with suppress(smtplib.SMTPException, OSError):
                session.quit()  # the mail is over there already: what goes wrong now is no failure
        finally:
            session.close()


def _reply(code: int, text: bytes | str) -> str:
    """What a server answered, in one line."""
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return f"{code} {' '.join(said.split())}"
