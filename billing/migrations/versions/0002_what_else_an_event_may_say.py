"""What else an event may say: reasoning, delivered tokens, key, trace and the encrypted text"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Columns that need no row to be written again, on either database."""
    reasoning = sa.Column("reasoning_tokens", sa.Integer(), server_default="0", nullable=False)
    op.add_column("usage_events", reasoning)
    op.add_column("usage_events", sa.Column("delivered_tokens", sa.Integer(), nullable=True))
    for name in ("api_key_id", "trace_id", "prompt_encrypted"):
        op.add_column("usage_events", sa.Column(name, sa.Text(), nullable=True))


def downgrade() -> None:
    """A ledger goes forward only: restore a backup instead."""
    raise RuntimeError("the ledger's schema can't be downgraded")
