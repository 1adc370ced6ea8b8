"""The tables of the ledger."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect

metadata = sa.MetaData()


_SQLITE_MOMENT = sqlite.DATETIME(  # type: ignore[no-untyped-call]
    storage_format=(
        "%(year)04d-%(month)02d-%(day)02dT%(hour)02d:%(minute)02d:%(second)02d.%(microsecond)06d+00:00"
    ),
    regexp=r"(\d+)-(\d+)-(\d+)T(\d+):(\d+):(\d+)\.(\d+)\+00:00",
)


class Instant(sa.types.TypeDecorator[datetime]):
    """A moment in UTC; naive values are refused, because they mean another moment on another machine."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """On SQLite a moment is the text that an event has, so that events are stored as they come."""
        return dialect.type_descriptor(_SQLITE_MOMENT if dialect.name == "sqlite" else self.impl_instance)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Python to database."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a moment needs a UTC offset")
        return value and value.astimezone(timezone.utc)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Database to Python; SQLite keeps no offset, and what it keeps is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


# Whose usage, of what. The user's column is `user_id`: a bare `user` means the login in PostgreSQL.
SUBJECT = ("user_id", "project", "department", "model", "model_version", "model_label")
# What of a request decides its price besides: how fast it had to be, and how long its input was.
RATED_BY = ("latency_class", "context_band")
COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens")


def _subject(**options: Any) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text, nullable=False, **options) for name in SUBJECT]


def _rated_by(**options: Any) -> list[sa.Column[Any]]:
    return [
        sa.Column("latency_class", sa.Text, nullable=False, **options),
        # The least prompt tokens of the band, 0 for the first: see billing.rating.CONTEXT_BANDS.
        sa.Column("context_band", sa.Integer, nullable=False, **options),
    ]


# In the order of its bytes on every database.
_event_id = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

# Every event ever stored, also those whose rows retention has dropped: an id is billed once, for ever.
event_ids = sa.Table(
    "event_ids",
    metadata,
    sa.Column("id", _event_id, primary_key=True),
    sa.Column("batch_id", sa.BigInteger, nullable=False),
    sa.Column("content_sha256", sa.LargeBinary, nullable=False),  # tells a repeated event from a forged one
    sqlite_with_rowid=False,
)

# Written once and never updated; on PostgreSQL partitioned by day, see billing.retention.
usage_events = sa.Table(
    "usage_events",
    metadata,
    sa.Column("id", _event_id, nullable=False),
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("batch_id", sa.BigInteger, nullable=False),
    sa.Column("hour", Instant, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("time", Instant, nullable=False),
    *_subject(),
    *_rated_by(),
    sa.Column("operation", sa.Text, nullable=False),
    sa.Column("tokenizer_fingerprint", sa.Text, nullable=False),
    # At most MAX_TOKENS of tallybook.usage: half as wide as a bigint, and summed in half the time.
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("cached_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("usage_estimated", sa.Boolean, nullable=False),
    sa.Column("duration_seconds", sa.Double, nullable=False),
    sa.Column("time_to_first_token_seconds", sa.Double),
    sa.Column("client_ip", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("prompt_sha256", sa.Text),
    sa.Column("prompt_prefix", sa.LargeBinary),  # UTF-8; PostgreSQL takes no NUL in a text
    sa.Column("extra", sa.Text),  # fields of a newer producer, as canonical JSON
    sa.Column("reasoning_tokens", sa.Integer, nullable=False, server_default="0"),  # of the completion's
    sa.Column("delivered_tokens", sa.Integer),  # of the completion's; null: all
    sa.Column("api_key_id", sa.Text),
    sa.Column("trace_id", sa.Text),
    sa.Column("prompt_encrypted", sa.Text),
    # In the order of storing, which is the order of these columns: a few pages on PostgreSQL.
    sa.Index("usage_events_batch", "day", "batch_id", postgresql_using="brin"),
    postgresql_partition_by="RANGE (day)",
)

# Events of one day that were stored in one transaction. A batch is on one bill: its day's, or, when it came
# late, a later one's.
event_batches = sa.Table(
    "event_batches",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("day", sa.Date, nullable=False, index=True),
    sa.Column("bill_day", sa.Date),  # null: it came late, and no bill has it yet
    sa.Column("segment", sa.Text, nullable=False),
    sa.Column("offset_bytes", sa.BigInteger, nullable=False),  # where in the segment the reader began
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("events_root", sa.LargeBinary, nullable=False),  # Merkle root over its events, by their ids
    sa.Column("rolled_up", sa.Boolean, nullable=False),  # whether usage_hours has it
    sa.Column("dropped_at", Instant),  # when retention dropped its events, which were proven first
)
sa.Index("event_batches_bill_day", event_batches.c.bill_day)
sa.Index(
    "event_batches_to_roll_up",
    event_batches.c.day,
    sqlite_where=sa.text("NOT rolled_up"),
    postgresql_where=sa.text("NOT rolled_up"),
)

usage_hours = sa.Table(
    "usage_hours",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("hour", Instant, primary_key=True),
    *_subject(primary_key=True),
    *_rated_by(primary_key=True),
    sa.Column("status", sa.Integer, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
)

journal_offsets = sa.Table(
    "journal_offsets",
    metadata,
    sa.Column("segment", sa.Text, primary_key=True),
    sa.Column("offset_bytes", sa.BigInteger, nullable=False),
)

# The steps in which a segment was read, without a gap from 0 to its offset; a batch is of one of them.
journal_reads = sa.Table(
    "journal_reads",
    metadata,
    sa.Column("segment", sa.Text, primary_key=True),
    sa.Column("offset_bytes", sa.BigInteger, primary_key=True),
    sa.Column("next_offset_bytes", sa.BigInteger, nullable=False),
)

set_aside = sa.Table(
    "set_aside",
    metadata,
    sa.Column("segment", sa.Text, primary_key=True),
    sa.Column("offset_bytes", sa.BigInteger, primary_key=True),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("raw", sa.LargeBinary, nullable=False),
    sa.Column("set_aside_at", Instant, nullable=False),
)


def _imported() -> list[sa.Column[Any]]:
    return [
        sa.Column("effective_from", sa.Date, nullable=False),
        sa.Column("imported_at", Instant, nullable=False),
        sa.Column("withdrawn_at", Instant),  # no longer in the price file, and nothing was billed by it
    ]


# Versions of what the price file says; the id is the digest of the terms: other terms are another version.
# Decimals are text, which is exact on every database.
prices = sa.Table(
    "prices",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text),  # null: every version of the model
    sa.Column("model_label", sa.Text),  # null: every label
    sa.Column("latency_class", sa.Text),  # null: every class
    sa.Column("context_band", sa.BigInteger, nullable=False),  # of requests in this band and above
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("per_tokens", sa.BigInteger, nullable=False),
    sa.Column("tiers", sa.Text),  # graduated or volume; null: every direction is flat
    # A decimal, or tiers as JSON: [[up_to, price], …, [null, price]].
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("cached_input", sa.Text, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("minimum", sa.Text),  # of a request
    *_imported(),
)

discounts = sa.Table(
    "discounts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("department", sa.Text, nullable=False),
    sa.Column("model", sa.Text),  # null: every model
    sa.Column("percent", sa.Text, nullable=False),
    *_imported(),
)

department_rules = sa.Table(
    "department_rules",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Text),  # null: every user of the project
    sa.Column("project", sa.Text),  # null: every project of the user
    sa.Column("department", sa.Text, nullable=False),
    *_imported(),
)

bill_days = sa.Table(
    "bill_days",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("early", sa.Boolean, nullable=False),  # closed before its end, on demand
    sa.Column("closed_at", Instant),
    sa.Column("closed_with", sa.Date),  # the later day whose closing caught up with this one
    sa.CheckConstraint("state in ('draft', 'closed')", name="bill_days_state"),
)

# What a charge is at: part of the key of lines and of totals.
TERMS = ("direction", "price_id", "tier", "discount_percent")


def _terms() -> list[sa.Column[Any]]:
    return [
        sa.Column("direction", sa.Text, primary_key=True),  # input, cached_input, output or minimum
        sa.Column("price_id", sa.Text, primary_key=True),  # empty: unrated
        sa.Column("tier", sa.Integer, primary_key=True, autoincrement=False),  # 0: the first, or no tiers
        sa.Column("discount_percent", sa.Text, primary_key=True),  # a decimal as text; "0": none
    ]


bill_lines = sa.Table(
    "bill_lines",
    metadata,
    # The bill it is on. No foreign key: checking it line by line took a sixth of writing them.
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("usage_day", sa.Date, primary_key=True),  # earlier than `day`: a correction
    *_subject(primary_key=True),
    *_rated_by(primary_key=True),
    *_terms(),
    sa.Column("quantity_tokens", sa.BigInteger, nullable=False),
    sa.Column("quantity_requests", sa.BigInteger, nullable=False),  # of a minimum; else 0
    sa.Column("tokens_before", sa.BigInteger, nullable=False),  # in its month and at its terms, so far
    sa.Column("unit_price", sa.Text),
    sa.Column("per_tokens", sa.BigInteger),
    sa.Column("currency", sa.Text),
    sa.Column("amount_minor", sa.BigInteger),  # null: unrated, which is not free
    sa.CheckConstraint("(price_id = '') = (amount_minor is null)", name="unrated_has_no_amount"),
    sa.Index("bill_lines_usage_day", "usage_day"),
)
ON_ITS_BILL = bill_lines.c.day == bill_days.c.day  # of a join: a line, and the bill it is on
sa.Index(
    "bill_lines_unrated",
    bill_lines.c.usage_day,
    sqlite_where=sa.text("price_id = ''"),
    postgresql_where=sa.text("price_id = ''"),
)

# What the closed lines of a calendar month come to, at each price: where the next line goes on, so that
# the lines of a month sum to the price of the month's tokens, in every tier, rounded once.
bill_totals = sa.Table(
    "bill_totals",
    metadata,
    sa.Column("month", sa.Date, primary_key=True),  # its first day
    *[sa.Column(name, sa.Text, primary_key=True) for name in ("user_id", "project", "department")],
    *_terms(),
    sa.Column("quantity_tokens", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger),  # null: unrated
)
sa.Index(
    "bill_totals_unrated",
    bill_totals.c.month,
    sqlite_where=sa.text("price_id = '' AND quantity_tokens <> 0"),
    postgresql_where=sa.text("price_id = '' AND quantity_tokens <> 0"),
)

mails = sa.Table(
    "mails",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # what it is about: a mail is composed once
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("sent_at", Instant),
    sa.Column("delivered_to", sa.JSON, nullable=False),  # who took it: they don't get it again
    sa.Column("last_error", sa.Text),
    sa.CheckConstraint("state in ('pending', 'written', 'sent', 'refused')", name="mails_state"),
)

# What every training took: read from the files that training writes, each stored once by its id.
training_runs = sa.Table(
    "training_runs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("time", Instant, nullable=False, index=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("device_seconds", sa.Text, nullable=False),  # decimals as text: exact on every database
    sa.Column("wall_seconds", sa.Text, nullable=False),
    sa.Column("examples", sa.BigInteger, nullable=False),
    sa.Column("code_version", sa.Text, nullable=False),
    sa.Column("pool_price_per_hour", sa.Text),  # null: nobody said what its machines cost
    sa.Column("currency", sa.Text),
    sa.Column("content_sha256", sa.LargeBinary, nullable=False),  # tells a repeated event from a forged one
    sa.Column("imported_at", Instant, nullable=False),
    sa.CheckConstraint("(pool_price_per_hour is null) = (currency is null)", name="a_price_has_a_currency"),
)

# Prepaid credit, append-only: a balance is the sum of its entries, and nothing else.
wallet_entries = sa.Table(
    "wallet_entries",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),  # what it adds to the balance
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("bill_day", sa.Date),  # of a charge
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.UniqueConstraint("project", "bill_day", name="a_bill_is_charged_once"),
    sa.CheckConstraint("kind in ('topup', 'charge', 'refund')", name="wallet_entries_kind"),
    sa.CheckConstraint("(kind = 'charge') = (bill_day is not null)", name="a_charge_has_a_bill"),
    sa.CheckConstraint("kind <> 'topup' or amount_minor > 0", name="a_topup_adds"),
    sa.CheckConstraint("kind <> 'refund' or amount_minor < 0", name="a_refund_takes"),
)

# What the model servers' own counters said, and when; see billing.reconciliation.counters.
counter_samples = sa.Table(
    "counter_samples",
    metadata,
    sa.Column("sampled_at", Instant, primary_key=True),
    sa.Column("server", sa.Text, primary_key=True),  # the address of its counters
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("counter", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),  # since the server started
)

audit_records = sa.Table(
    "audit_records",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3, … without a gap
    sa.Column("recorded_at", Instant, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),  # JSON, to the letter as it was hashed
    sa.Column("previous_sha256", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
)

# Which administrative acts the chain has, so that each is in it once; what they say is in their records.
acts = sa.Table(
    "acts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("content_sha256", sa.LargeBinary, nullable=False),
)

ledger_facts = sa.Table(
    "ledger_facts",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
