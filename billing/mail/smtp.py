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
        """Hand over one mail; see `SmtpSession.send`."""
        with self.session() as session:
            return session.send(message, recipients)

    @contextmanager
    def session(self) -> Iterator[SmtpSession]:
        """A login for many mails. Raises: MailError: see `SmtpSession.send`."""
        session = SmtpSession(self)
        try:
            session.open()
            yield session
        finally:
            session.close()

    def connect(self) -> smtplib.SMTP:
        """Connect and log in. Raises: MailError (code smtp_not_encrypted); what smtplib raises."""
        trusted = ssl.create_default_context()
        if self.encrypted:
            session: smtplib.SMTP = smtplib.SMTP_SSL(
                self.host, self.port, timeout=_TIMEOUT_SECONDS, context=trusted
            )
        else:
            session = smtplib.SMTP(self.host, self.port, timeout=_TIMEOUT_SECONDS)
        try:
            self._log_in(session, trusted)
        except BaseException:
            session.close()
            raise
        return session

    def _log_in(self, session: smtplib.SMTP, trusted: ssl.SSLContext) -> None:
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


class SmtpSession:
    """One login at a server, for one mail after the other; renewed when the server has ended it."""

    def __init__(self, server: SmtpServer) -> None:
        self._server = server
        self._session: smtplib.SMTP | None = None

    @property
    def is_open(self) -> bool:
        """Whether the server still talks to us, as far as is known."""
        return self._session is not None

    def open(self, *, patience: bool = True) -> None:
        """Connect, unless the session still stands; without `patience`, not again.

        Raises: MailError: see `send`.
        """
        if self._session is None and not patience:
            raise MailError("smtp_failed", f"{self._server} breaks off; the others wait for the next run")
        with self._told():
            if self._session is not None and not self._stands(self._session):
                self.close()
            if self._session is None:
                self._session = self._server.connect()

    def send(self, message: bytes, recipients: Sequence[str]) -> dict[str, str]:
        """Hand a mail over to some of its recipients; who was refused, with the server's reason.

        The others have it when this returns. The sender is that of the From header. `open` comes first.
        Raises: MailError: nobody has it, because the server can't be reached, wants another login, or
            refuses the mail itself (code smtp_failed), or a password would go unencrypted
            (smtp_not_encrypted).
        """
        sender = message_from_bytes(message, policy=policy.SMTP)["From"].addresses[0].addr_spec
        with self._told():
            if self._session is None:
                raise smtplib.SMTPServerDisconnected("the session was ended")
            try:
                refused = self._session.sendmail(sender, recipients, message)
            except smtplib.SMTPRecipientsRefused as error:
                refused = error.recipients
        return {address: _reply(*answer) for address, answer in refused.items()}

    def close(self) -> None:
        """End the session, if there is one."""
        if self._session is not None:
            with suppress(smtplib.SMTPException, OSError):
                self._session.quit()  # the mails are over there already: what goes wrong now is no failure
            self._session.close()
            self._session = None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except smtplib.SMTPResponseException as error:
            reply = _reply(error.smtp_code, error.smtp_error)
            raise MailError("smtp_failed", f"{self._server}: {reply}") from error
        except (smtplib.SMTPException, OSError, UnicodeError) as error:
            if self._session is not None:
                self._session.close()  # after a silence it can't be known what its next answer is for
                self._session = None
            raise MailError("smtp_failed", f"{self._server}: {error}") from error

    @staticmethod
    def _stands(session: smtplib.SMTP) -> bool:
        try:
            return session.noop()[0] == 250
        except (smtplib.SMTPException, OSError):
            return False


def _reply(code: int, text: bytes | str) -> str:
    """What a server answered, in one line."""
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return f"{code} {' '.join(said.split())}"
