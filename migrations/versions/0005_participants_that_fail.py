"""Failures of participants in a round, and which agent of a participant declared

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("assignments") as batch_op:
        batch_op.add_column(sa.Column("given", sa.Integer(), nullable=False, server_default="1"))
        batch_op.add_column(sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("failure", sa.JSON(), nullable=True))
    with op.batch_alter_table("assignments") as batch_op:
        batch_op.alter_column("given", server_default=None)
    op.add_column("participations", sa.Column("instance", sa.String(64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("assignments") as batch_op:
        for column in ("failure", "failed_at", "given"):
            batch_op.drop_column(column)
    with op.batch_alter_table("participations") as batch_op:
        batch_op.drop_column("instance")
