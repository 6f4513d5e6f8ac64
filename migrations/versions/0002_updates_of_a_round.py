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
        batch_op.add_column(sa.Column("summary", sa.JSON(), nullable=True))
    _runs_stay_exact()


def _runs_stay_exact() -> None:
    """A run that was defined before there was an `error_bound` goes on as it began; the default of new ones is not 1."""
    runs = sa.table("runs", sa.column("name", sa.String()), sa.column("spec", sa.JSON()))
    connection = op.get_bind()
    for name, spec in connection.execute(sa.select(runs.c.name, runs.c.spec)).all():
        connection.execute(runs.update().where(runs.c.name == name).values(spec={"error_bound": 1.0, **spec}))


def downgrade() -> None:
    with op.batch_alter_table("round_modules") as batch_op:
        batch_op.drop_column("summary")
        batch_op.drop_column("updates")
