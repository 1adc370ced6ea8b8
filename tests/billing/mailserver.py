"""A real SMTP server for tests, which keeps what it takes and refuses whom it is told to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session


@dataclass
class Taken:
    """A mail that the server took: for whom, and its bytes as they came."""

    recipients: list[str]
    content: bytes
    encrypted: bool

    @property
    def message(self) -> EmailMessage:
        """The mail, parsed."""
        parsed = message_from_bytes(self.content, policy=policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed


@dataclass
class MailServer:
    """What the server took so far, and whom it refuses with which answer."""

    port: int = 0
    taken: list[Taken] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    refuses_data: str = ""
    connections: int = 0
    ends_after_each: bool = False
    seconds_to_answer: float = 0

    async def handle_EHLO(  # noqa: N802 (the library's name)
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """Count the connection."""
        self.connections += 1
        session.host_name = hostname
        return responses

    async def handle_RCPT(  # noqa: N802 (the library's name)
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take or refuse one recipient."""
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 (the library's name)
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        """Take the mail."""
        if self.refuses_data:
            return self.refuses_data
        await asyncio.sleep(self.seconds_to_answer)
        assert isinstance(envelope.original_content, bytes)
        self.taken.append(Taken(list(envelope.rcpt_tos), envelope.original_content, session.ssl is not None))
        if self.ends_after_each:
            assert server.transport is not None
            asyncio.get_running_loop().call_soon(server.transport.close)  # which first sends the answer
        return "250 taken"


class _FreePort(Controller):
    """Listens on a port of the system's choice, and waits for its own address, not for port 0."""

    def _trigger_server(self) -> None:
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]  # the library has no types here


@contextmanager
def mail_server(
    *, tls: ssl.SSLContext | None = None, login: tuple[str, str] | None = None, auth_without_tls: bool = False
) -> Iterator[MailServer]:
    """Run a server; it offers STARTTLS with `tls`, and wants a login when one is given."""
    handler = MailServer()

    def authenticate(_server: Any, _session: Any, _envelope: Any, _method: str, given: Any) -> AuthResult:
        known = login is not None and (given.login.decode(), given.password.decode()) == login
        return AuthResult(success=known, handled=False)

    controller = _FreePort(
        handler,
        hostname="127.0.0.1",
        port=0,
        tls_context=tls,
        authenticator=authenticate if login else None,
        auth_required=login is not None,
        auth_require_tls=not auth_without_tls,
    )
    controller.start()
    try:
        handler.port = controller.port
        yield handler
    finally:
        controller.stop()
