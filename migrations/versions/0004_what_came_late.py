"""What databases lack that were made while the first two schemas still grew under the same number

Revision ID: 0004
Revises: 0003
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    found = sa.inspect(op.get_bind())
    late: dict[str, sa.Column[Any]] = {
        "api_keys": sa.Column("used_at", sa.DateTime(timezone=True)),
        "round_modules": sa.Column("summary", sa.JSON()),
    }
    for table, column in late.items():
        if column.name not in {there["name"] for there in found.get_columns(table)}:
            op.add_column(table, column)
    if "uploads_by_round" not in {there["name"] for there in found.get_indexes("uploads")}:
        op.create_index("uploads_by_round", "uploads", ["round_id", "state"])
    _runs_stay_exact()


def _runs_stay_exact() -> None:
    """As in 0002: runs without an `error_bound` were defined before there was one."""
    runs = sa.table("runs", sa.column("name", sa.String()), sa.column("spec", sa.JSON()))
    connection = op.get_bind()
    for name, spec in connection.execute(sa.select(runs.c.name, runs.c.spec)).all():
        if "error_bound" not in spec:
            connection.execute(runs.update().where(runs.c.name == name).values(spec={"error_bound": 1.0, **spec}))


def downgrade() -> None:
    """Nothing: the schema before has all of it too, where it was not made by its first versions."""
