"""Lines without a foreign key"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_NAMES = {"fk": "%(table_name)s_%(column_0_name)s_fkey"}  # as PostgreSQL names it; SQLite has no name


def upgrade() -> None:
    """Lines without a foreign key"""
    if op.get_context().dialect.name == "postgresql":
        op.drop_constraint("bill_lines_day_fkey", "bill_lines", type_="foreignkey")
        return
    with op.batch_alter_table("bill_lines", naming_convention=_NAMES) as lines:
        lines.drop_constraint("bill_lines_day_fkey", type_="foreignkey")


def downgrade() -> None:
    """A ledger goes forward only: restore a backup instead."""
    raise RuntimeError("the ledger's schema can't be downgraded")
