"""Mails that were written as files are not called sent"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATES = "state in ('pending', 'written', 'sent', 'refused')"


def upgrade() -> None:
    """Mails that were written as files are not called sent"""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("mails_state", "mails", type_="check")
        op.create_check_constraint("mails_state", "mails", _STATES)
        return
    # SQLite changes no constraint of a table that is there.
    op.rename_table("mails", "mails_before")
    op.create_table(
        "mails",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("delivered_to", sa.JSON(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint(_STATES, name="mails_state"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.execute("INSERT INTO mails SELECT * FROM mails_before")
    op.drop_table("mails_before")


def downgrade() -> None:
    """A ledger goes forward only: restore a backup instead."""
    raise RuntimeError("the ledger's schema can't be downgraded")
