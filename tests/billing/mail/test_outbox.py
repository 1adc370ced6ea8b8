from __future__ import annotations

import multiprocessing
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.errors import MailError
from billing.ledger import open_ledger, writing
from billing.mail.outbox import Delivery, deliver, enqueue, is_enqueued
from billing.mail.policy import POLICY
from billing.mail.smtp import SmtpSession
from billing.settings import BillingSettings
from billing.tables import mails
from tests.billing.factories import AFTER, DAY
from tests.billing.mailserver import MailServer, mail_server


def a_mail(*recipients: str, text: str = "账单 ¥1.00\r\n.\r\nFrom here on\r\n") -> EmailMessage:
    message = EmailMessage(POLICY)
    message["Subject"] = "Tallybook 2026-11-21：¥1.00"
    message["From"] = "Tallybook <tallybook@example.com>"
    message["To"] = ", ".join(recipients or ("finance@example.com",))
    message["Message-ID"] = "<one@example.com>"
    message.set_content(text)
    return message


def put(ledger: Engine, mail_id: str = "2026-11-21", *recipients: str) -> bool:
    with writing(ledger) as connection:
        return enqueue(connection, mail_id, DAY, a_mail(*recipients))


def row(ledger: Engine, mail_id: str = "2026-11-21") -> sa.Row[tuple[object, ...]]:
    with ledger.connect() as connection:
        return connection.execute(sa.select(mails).where(mails.c.id == mail_id)).one()


@pytest.fixture
def server() -> Iterator[MailServer]:
    with mail_server() as running:
        yield running


@pytest.fixture
def to_files(tmp_path: Path) -> BillingSettings:
    return BillingSettings(smtp_url=None, outbox_dir=tmp_path / "outbox")


def by_smtp(server: MailServer, login: str = "", scheme: str = "smtp") -> BillingSettings:
    return BillingSettings(smtp_url=f"{scheme}://{login}localhost:{server.port}")


def test_a_mail_is_composed_once_and_keeps_its_first_bytes(ledger: Engine) -> None:
    with writing(ledger) as connection:
        assert not is_enqueued(connection, "2026-11-21")
        assert enqueue(connection, "2026-11-21", DAY, a_mail(text="first"))
    with writing(ledger) as connection:
        assert is_enqueued(connection, "2026-11-21")
        assert not enqueue(connection, "2026-11-21", DAY, a_mail(text="second"))
    assert b"first" in row(ledger).message


def test_a_mail_that_is_rolled_back_is_not_sent(ledger: Engine, to_files: BillingSettings) -> None:
    with writing(ledger) as connection:
        enqueue(connection, "2026-11-21", DAY, a_mail())
        connection.rollback()
    assert deliver(ledger, to_files) == []


def test_without_a_server_mails_are_written_as_files(ledger: Engine, to_files: BillingSettings) -> None:
    put(ledger)
    [delivery] = deliver(ledger, to_files)
    assert (delivery.mail_id, delivery.state, delivery.error) == ("2026-11-21", "written", None)
    assert (row(ledger).state, row(ledger).sent_at) == ("written", None)
    assert Path(delivery.place).read_bytes() == row(ledger).message
    assert [file.name for file in to_files.outbox_dir.iterdir()] == ["2026-11-21.eml"]
    assert deliver(ledger, to_files) == []


@pytest.mark.parametrize("mail_id", ["../../etc/passwd", "a/b", ".", "..", "日/账", "x" * 300, "a\x00b", " "])
def test_no_mail_id_leads_out_of_the_outbox(
    sqlite_ledger: Engine, to_files: BillingSettings, mail_id: str
) -> None:
    put(sqlite_ledger, mail_id)
    put(sqlite_ledger, mail_id + "x")
    deliveries = deliver(sqlite_ledger, to_files)
    assert [d.state for d in deliveries] == ["written", "written"]
    assert {Path(d.place) for d in deliveries} == set(to_files.outbox_dir.iterdir())
    assert len(list(to_files.outbox_dir.iterdir())) == 2


def test_a_folder_that_cannot_be_written_leaves_the_mail_pending(
    sqlite_ledger: Engine, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    put(sqlite_ledger)
    [delivery] = deliver(sqlite_ledger, BillingSettings(smtp_url=None, outbox_dir=tmp_path / "file"))
    assert delivery.state == "pending"
    assert delivery.error
    assert row(sqlite_ledger).last_error == delivery.error


def test_the_server_gets_the_bytes_that_were_composed(ledger: Engine, server: MailServer) -> None:
    put(ledger, "2026-11-21", "Finance <finance@example.com>", "audit@example.com")
    [delivery] = deliver(ledger, by_smtp(server))
    assert (delivery.state, delivery.place) == ("sent", f"smtp://localhost:{server.port}")
    [taken] = server.taken
    assert taken.recipients == ["finance@example.com", "audit@example.com"]
    assert taken.content == row(ledger).message
    assert taken.message["Subject"] == "Tallybook 2026-11-21：¥1.00"
    assert taken.message.get_content().splitlines() == ["账单 ¥1.00", ".", "From here on"]
    assert row(ledger).sent_at is not None


def test_a_refused_recipient_is_named_and_only_that_one_is_tried_again(
    ledger: Engine, server: MailServer
) -> None:
    put(ledger, "2026-11-21", "finance@example.com", "gone@example.com")
    server.refused["gone@example.com"] = "550 5.1.1 no such user"
    [delivery] = deliver(ledger, by_smtp(server))
    assert delivery.state == "pending"
    assert delivery.error == "gone@example.com was refused: 550 5.1.1 no such user"
    server.refused.clear()
    assert [d.state for d in deliver(ledger, by_smtp(server))] == ["sent"]
    assert [taken.recipients for taken in server.taken] == [["finance@example.com"], ["gone@example.com"]]
    assert row(ledger).last_error is None


def test_a_mail_that_nobody_may_have_stays_pending(ledger: Engine, server: MailServer) -> None:
    put(ledger)
    server.refused["finance@example.com"] = "450 4.2.0 greylisted"
    [delivery] = deliver(ledger, by_smtp(server))
    assert (delivery.state, server.taken) == ("pending", [])
    server.refused.clear()
    assert [d.state for d in deliver(ledger, by_smtp(server))] == ["sent"]


def test_after_days_of_refusal_a_mail_is_given_up_and_says_for_whom(
    ledger: Engine, server: MailServer
) -> None:
    put(ledger, "2026-11-21", "finance@example.com", "gone@example.com")
    server.refused["gone@example.com"] = "550 no such user"
    created = row(ledger).created_at
    [first] = deliver(ledger, by_smtp(server), created + timedelta(days=5))
    [last] = deliver(ledger, by_smtp(server), created + timedelta(days=5, seconds=1))
    assert (first.state, last.state) == ("pending", "refused")
    assert "gone@example.com" in row(ledger).last_error
    assert deliver(ledger, by_smtp(server)) == []


def test_a_refused_mail_is_no_partial_success(ledger: Engine, server: MailServer) -> None:
    put(ledger, "2026-11-21", "finance@example.com", "audit@example.com")
    server.refuses_data = "552 5.3.4 too big"
    [delivery] = deliver(ledger, by_smtp(server))
    assert delivery.state == "pending"
    assert delivery.error == f"smtp://localhost:{server.port}: 552 5.3.4 too big"
    assert row(ledger).delivered_to == []


def test_a_server_that_is_down_leaves_the_mail_pending_for_the_next_run(
    ledger: Engine, server: MailServer
) -> None:
    put(ledger)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # nobody listens
        down = BillingSettings(smtp_url=f"smtp://127.0.0.1:{unheard.getsockname()[1]}")
        [delivery] = deliver(ledger, down, AFTER + timedelta(days=100))
    assert delivery.state == "pending"
    assert "Connection refused" in str(delivery.error)
    assert [d.state for d in deliver(ledger, by_smtp(server))] == ["sent"]


def test_one_mail_that_fails_does_not_hold_up_the_others(ledger: Engine, server: MailServer) -> None:
    put(ledger, "2026-11-20", "gone@example.com")
    put(ledger, "2026-11-21")
    server.refused["gone@example.com"] = "550 no such user"
    assert [(d.mail_id, d.state) for d in deliver(ledger, by_smtp(server))] == [
        ("2026-11-20", "pending"),
        ("2026-11-21", "sent"),
    ]


def test_a_crash_after_the_hand_over_repeats_the_same_bytes(
    ledger_url: str, ledger: Engine, server: MailServer
) -> None:
    put(ledger)
    # A process that dies when it would record the hand-over.
    crash = (
        "import os, sys; from billing.mail import outbox; from billing.ledger import open_ledger;"
        "from billing.settings import BillingSettings; outbox._recorded = lambda *what: os._exit(9);"
        "outbox.deliver(open_ledger(sys.argv[1], 'Asia/Shanghai'), BillingSettings(smtp_url=sys.argv[2]))"
    )
    died = subprocess.run([sys.executable, "-c", crash, ledger_url, f"smtp://localhost:{server.port}"])
    assert died.returncode == 9
    assert (len(server.taken), row(ledger).state) == (1, "pending")
    assert [d.state for d in deliver(ledger, by_smtp(server))] == ["sent"]
    first, second = server.taken
    assert first.content == second.content
    assert first.message["Message-ID"] == second.message["Message-ID"] == "<one@example.com>"


def test_of_many_deliverers_each_mail_is_sent_by_one(ledger: Engine, server: MailServer) -> None:
    for number in range(5):
        put(ledger, f"mail {number}")
    together = threading.Barrier(4)
    settings = by_smtp(server)

    def run() -> list[Delivery]:
        together.wait()
        return deliver(ledger, settings)

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(run) for _ in range(4)]
    delivered = [delivery.mail_id for run_ in runs for delivery in run_.result()]
    assert sorted(delivered) == [f"mail {number}" for number in range(5)]
    assert len(server.taken) == 5


def _deliver_from(url: str, port: int) -> None:
    deliver(open_ledger(url, "Asia/Shanghai"), BillingSettings(smtp_url=f"smtp://localhost:{port}"))


def test_of_two_processes_each_mail_is_sent_by_one(sqlite_ledger: Engine, server: MailServer) -> None:
    for number in range(5):
        put(sqlite_ledger, f"mail {number}")
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=_deliver_from, args=(str(sqlite_ledger.url), server.port)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.taken) == 5


def test_the_ledger_can_be_written_while_a_server_takes_its_time(
    ledger: Engine, server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(ledger, "slow")
    send = SmtpSession.send

    def and_meanwhile_write(*arguments: object) -> dict[str, str]:
        assert put(ledger, "meanwhile")
        return send(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SmtpSession, "send", and_meanwhile_write)
    assert [d.mail_id for d in deliver(ledger, by_smtp(server))] == ["slow"]


def test_many_mails_go_over_one_connection(ledger: Engine, server: MailServer) -> None:
    for number in range(5):
        put(ledger, f"mail {number}")
    deliver(ledger, by_smtp(server))
    assert (len(server.taken), server.connections) == (5, 1)


def test_a_server_that_ends_each_connection_gets_every_mail_once(
    sqlite_ledger: Engine, server: MailServer
) -> None:
    server.ends_after_each = True
    for number in range(4):
        put(sqlite_ledger, f"mail {number}")
    while any(d.state == "pending" for d in deliver(sqlite_ledger, by_smtp(server))):
        pass  # it may end the connection just when the next mail begins
    assert (len(server.taken), server.connections) == (4, 4)


def test_a_server_that_does_not_answer_is_left_alone_after_the_second_mail(
    sqlite_ledger: Engine, server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billing.mail.smtp._TIMEOUT_SECONDS", 0.3)
    server.seconds_to_answer = 2
    for number in range(5):
        put(sqlite_ledger, f"mail {number}")
    found = deliver(sqlite_ledger, by_smtp(server))
    assert [d.state for d in found] == ["pending"] * 5
    assert ["timed out" in str(d.error) for d in found] == [True, True, False, False, False]
    assert "breaks off" in str(found[-1].error)
    assert row(sqlite_ledger, "mail 4").last_error == found[-1].error


def test_what_was_delivered_a_month_ago_is_no_longer_kept(
    sqlite_ledger: Engine, to_files: BillingSettings
) -> None:
    put(sqlite_ledger)
    deliver(sqlite_ledger, to_files)
    later = row(sqlite_ledger).created_at + timedelta(days=31)
    put(sqlite_ledger, "newer")
    deliver(sqlite_ledger, to_files, later - timedelta(days=2))
    assert row(sqlite_ledger).message
    deliver(sqlite_ledger, to_files, later)
    assert (row(sqlite_ledger).message, row(sqlite_ledger).state) == (b"", "written")
    assert not put(sqlite_ledger), "it is composed again"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of localhost that only those trust who are told to."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with the openssl program, which is not installed")
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*command, "-keyout", file, "-out", file], check=True, capture_output=True)
    return file


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def test_starttls_and_a_login_are_used_when_offered(
    sqlite_ledger: Engine, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    put(sqlite_ledger)
    with mail_server(tls=tls, login=("tally@book", "p:s/w@rd")) as server:
        [refused] = deliver(sqlite_ledger, by_smtp(server, "tally%40book:wrong@"))
        [delivery] = deliver(sqlite_ledger, by_smtp(server, "tally%40book:p%3As%2Fw%40rd@"))
    assert (refused.state, delivery.state, delivery.error) == ("pending", "sent", None)
    assert str(refused.error).startswith(f"smtp://localhost:{server.port}: 535 ")
    assert [taken.encrypted for taken in server.taken] == [True]


def test_a_server_with_a_certificate_that_nobody_trusts_gets_nothing(
    sqlite_ledger: Engine, tls: ssl.SSLContext
) -> None:
    put(sqlite_ledger)
    with mail_server(tls=tls) as server:
        [delivery] = deliver(sqlite_ledger, by_smtp(server))
    assert (delivery.state, server.taken) == ("pending", [])
    assert "certificate" in str(delivery.error)


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
def test_a_password_is_never_sent_in_the_clear(sqlite_ledger: Engine) -> None:
    put(sqlite_ledger)
    with mail_server(login=("tally", "secret"), auth_without_tls=True) as server:
        [delivery] = deliver(sqlite_ledger, by_smtp(server, "tally:secret@"))
    assert (delivery.state, server.taken) == ("pending", [])
    assert "STARTTLS" in str(delivery.error)
    assert "secret" not in str(delivery.error)


@pytest.mark.parametrize(
    "url", ["localhost:25", "http://localhost", "smtp://", "smtp://tally:secret@host:no", "smtp://host/path"]
)
def test_a_malformed_address_of_the_server_is_refused_without_repeating_its_password(
    sqlite_ledger: Engine, url: str
) -> None:
    with pytest.raises(MailError) as error:
        deliver(sqlite_ledger, BillingSettings(smtp_url=url))
    assert error.value.code == "smtp_url_invalid"
    assert "secret" not in str(error.value)
