"""The settings of billing, read once at the entry point and passed down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from tallybook.settings import CommonSettings

CHANNEL = re.compile(
    r"(wecom|dingtalk|feishu|slack|webhook)\+https?://[^\s/?#]+[^\s]*|mailto:[^\s@]+@[^\s@]+"
)
_HOUR = r"([01]\d|2[0-3]):[0-5]\d"
_HOURS = re.compile(rf"(?P<start>{_HOUR})-(?!(?P=start)){_HOUR}", re.ASCII)


class BillingSettings(CommonSettings):
    """Where the ledger is, what things cost, and who gets the mail."""

    prices_file: Path = Field(
        Path("prices.toml"), description="The price file: prices, discounts and department rules."
    )
    prices_import: Literal["automatic", "confirmed"] = Field(
        "automatic",
        description="Whether rating and closing import the price file themselves (automatic), or go by what "
        "`tallybook prices import` has put into the ledger (confirmed).",
    )
    costs_file: Path = Field(
        Path("costs.toml"),
        description="Which pool of machines serves which models, and what it costs an hour.",
    )
    budgets_file: Path = Field(
        Path("budgets.toml"), description="Monthly budgets of projects and departments."
    )
    subscriptions_file: Path = Field(
        Path("subscriptions.toml"),
        description="Which users and project owners get a daily mail of their own; it need not exist.",
    )
    training_dir: Path = Field(
        Path("var/training"), description="Where `tallybook train` writes what each training cost."
    )
    reports_dir: Path = Field(Path("var/reports"), description="Charts and bills of each day: <day>/.")
    mail_to: tuple[str, ...] = Field(
        ("finance@example.com",), description="Who gets the daily bill; a JSON list in the environment."
    )
    operator_mail_to: tuple[str, ...] = Field(
        ("operator@example.com",),
        description="Who is told of a task that failed; a JSON list in the environment.",
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
    provider_name: str = Field(
        "Tallybook", min_length=1, description="Who serves and bills the models, in FOCUS exports."
    )
    kafka_group: str = Field("tallybook-ingest", description="The group of `tallybook ingest --follow`.")
    model_counters: tuple[str, ...] = Field(
        (),
        description="Where each model server tells its counters: "
        "http://HOST:8501/monitoring/prometheus/metrics of TensorFlow Serving, /metrics of vLLM and SGLang.",
    )
    alert_channels: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="Who is told of alerts, by a name: wecom+https://…, dingtalk+https://…#SECRET, "
        "feishu+https://…#SECRET, slack+https://…, webhook+https://…, mailto:NAME@HOST; a JSON object in the "
        "environment.",
    )
    alert_quiet_hours: str | None = Field(
        None,
        description="When only urgent alerts are sent, such as 22:00-08:00 of the billing time zone; "
        "the others wait for its end.",
    )
    alert_rise_percent: int = Field(
        300, ge=50, description="How far above its baseline a user's, project's or model's day is a surge."
    )
    alert_floor_tokens: int = Field(
        20_000, ge=0, description="A user's day below it is no surge; of projects and models, twice it."
    )
    alert_address_requests: int = Field(
        20, ge=1, description="From how many requests of a day on a user's new networks are worth an alert."
    )
    alert_unmetered_percent: int = Field(
        1, ge=0, le=100, description="What part of a model's requests may go past the metering unalerted."
    )
    alert_journal_lag_minutes: int = Field(
        90, ge=1, description="For how long events may wait in the journal unalerted."
    )

    @field_validator("alert_channels")
    @classmethod
    def _channels_have_addresses(cls, channels: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, address in channels.items():
            if not CHANNEL.fullmatch(address.get_secret_value()):
                # Without the address: it holds a key.
                raise ValueError(f"{name} must be like slack+https://HOST/… or mailto:NAME@HOST")
        return channels

    @field_validator("alert_quiet_hours")
    @classmethod
    def _hours_are_of_a_day(cls, hours: str | None) -> str | None:
        if hours is not None and not _HOURS.fullmatch(hours):
            raise ValueError(f"{hours!r} is not like 22:00-08:00")
        return hours

    @field_validator("model_counters")
    @classmethod
    def _addresses_are_of_the_web(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            if not address.startswith(("http://", "https://")):
                raise ValueError(f"{address!r} is no http:// or https:// address")
        return addresses
