"""Every step of reading the journal"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Of what was read before, the steps are as far as batches tell of them.
_STEPS_SO_FAR = """
    INSERT INTO journal_reads (segment, offset_bytes, next_offset_bytes)
    SELECT segment, began, next FROM (
        SELECT reached.segment, step.began, coalesce(
            lead(step.began) OVER (PARTITION BY reached.segment ORDER BY step.began), reached.offset_bytes
        ) AS next
        FROM journal_offsets AS reached JOIN (
            SELECT segment, offset_bytes AS began FROM event_batches
            UNION SELECT segment, 0 FROM journal_offsets
        ) AS step ON step.segment = reached.segment
    ) AS steps WHERE next > began
"""


def upgrade() -> None:
    """Every step of reading the journal"""
    op.create_table(
        "journal_reads",
        sa.Column("segment", sa.Text(), nullable=False),
        sa.Column("offset_bytes", sa.BigInteger(), nullable=False),
        sa.Column("next_offset_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("segment", "offset_bytes"),
    )
    op.execute(_STEPS_SO_FAR)
    op.execute("ALTER TABLE event_batches DROP COLUMN stored_at")


def downgrade() -> None:
    """A ledger goes forward only: restore a backup instead."""
    raise RuntimeError("the ledger's schema can't be downgraded")
