"""The settings of billing, read once at the entry point and passed down."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from tallybook.settings import CommonSettings


class BillingSettings(CommonSettings):
    """Where the ledger is, what things cost, and who gets the mail."""

    ledger_url: str = Field(
        "sqlite:///var/ledger.db",
        description="SQLAlchemy URL of the ledger: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME.",
    )
    prices_file: Path = Field(Path("prices.toml"), description="The price list.")
    reports_dir: Path = Field(Path("var/reports"), description="Charts and bills of each day: <day>/.")
    mail_to: tuple[str, ...] = Field(
        ("finance@example.com",), description="Who gets the daily bill; a JSON list in the environment."
    )
    mail_from: str = Field("tallybook@example.com", description="Sender of the mails.")
    mail_language: Literal["en", "zh"] = Field("en", description="Language of mails and charts: en or zh.")
    smtp_url: SecretStr | None = Field(
        None,
        description="smtp://USER:PASSWORD@HOST:PORT (STARTTLS if offered) or smtps://; none: use outbox_dir.",
    )
    outbox_dir: Path = Field(
        Path("var/outbox"), description="Where mails are written when there is no smtp_url."
    )
