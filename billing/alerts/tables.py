"""The tables of the ledger that alerts need: sums by day, episodes, and what is to be told of them."""

from __future__ import annotations

import sqlalchemy as sa

from billing.tables import Instant, metadata

# What one user, project, department or model used on a day: the hours of all its users, summed once and
# kept, because a rule looks at eight weeks of everybody at a time.
usage_days = sa.Table(
    "usage_days",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),  # a name of billing.day_sums.KINDS
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
)

# Where a user's requests came from on a day: networks, not addresses, which change by themselves.
network_days = sa.Table(
    "network_days",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("network", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
)

# Up to which batch of a day's events the two tables above have it.
summed_days = sa.Table(
    "summed_days",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("batches", sa.BigInteger, nullable=False),
    sa.Column("last_batch_id", sa.BigInteger, nullable=False),
)

# From the moment when a rule first finds something about a subject until it no longer does.
alert_episodes = sa.Table(
    "alert_episodes",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # of the subject: user, project, model, day, …
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("level", sa.Integer, nullable=False),  # the highest so far; a higher one is told again
    sa.Column("facts", sa.Text, nullable=False),  # JSON: what was found last
    sa.Column("opened_at", Instant, nullable=False),
    sa.Column("seen_at", Instant, nullable=False),  # when it was last found
    sa.Column("acknowledged_at", Instant),
    sa.Column("acknowledged_by", sa.Text),
    sa.Column("resolved_at", Instant),
    sa.CheckConstraint("(acknowledged_at is null) = (acknowledged_by is null)", name="somebody_acknowledges"),
)
sa.Index(
    "alert_episodes_unresolved",
    alert_episodes.c.rule,
    alert_episodes.c.kind,
    alert_episodes.c.subject,
    unique=True,
    sqlite_where=sa.text("resolved_at IS NULL"),
    postgresql_where=sa.text("resolved_at IS NULL"),
)

# One change of an episode, for one channel; sent together with whatever else waits for that channel.
notifications = sa.Table(
    "notifications",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # episode, change and channel: a change is told once
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("episode_id", sa.BigInteger, sa.ForeignKey("alert_episodes.id"), nullable=False),
    sa.Column("change", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),  # as they were when it changed
    sa.Column("urgent", sa.Boolean, nullable=False),  # told in quiet hours too
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("message_id", sa.Text),  # of the message that it was, or is being, sent in
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("next_try_at", Instant, nullable=False),
    sa.Column("sent_at", Instant),
    sa.Column("last_error", sa.Text),
    sa.CheckConstraint("change in ('opened', 'rose', 'resolved')", name="notifications_change"),
    sa.CheckConstraint("state in ('waiting', 'sending', 'sent', 'given_up')", name="notifications_state"),
)
sa.Index(
    "notifications_waiting",
    notifications.c.channel,
    sqlite_where=sa.text("state IN ('waiting', 'sending')"),
    postgresql_where=sa.text("state IN ('waiting', 'sending')"),
)
