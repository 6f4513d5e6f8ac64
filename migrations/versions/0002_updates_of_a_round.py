"""Figures of a round's updates beside each other

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("round_modules") as batch_op:
        batch_op.add_column(sa.Column("updates", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("round_modules") as batch_op:
        batch_op.drop_column("updates")
