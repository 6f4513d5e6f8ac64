"""Versions of rounds, frozen inputs, holders of leases, parts of uploads, indexes of the revoked

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("rounds") as batch_op:
        batch_op.add_column(sa.Column("version", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("lease_holder", sa.String(128), nullable=True))
    with op.batch_alter_table("rounds") as batch_op:
        batch_op.alter_column("version", server_default=None)
    with op.batch_alter_table("uploads") as batch_op:
        batch_op.add_column(sa.Column("parts", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("counts_in", sa.Integer(), nullable=True))
    op.create_table(
        "round_inputs",
        sa.Column("round_id", sa.Integer(), sa.ForeignKey("rounds.id"), primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True),
        sa.Column("upload_id", sa.String(32), sa.ForeignKey("uploads.id"), nullable=False),
        sa.Column("staleness", sa.Integer(), nullable=False),
        sa.Column("excluded", sa.Boolean(), nullable=False),
        sa.UniqueConstraint("upload_id"),
    )
    revoked = sa.text("revoked_at IS NOT NULL")
    for table in ("clients", "api_keys"):
        name = f"{table}_revoked"
        op.create_index(name, table, ["revoked_at"], sqlite_where=revoked, postgresql_where=revoked)
    _freeze_what_was_accepted()


def _freeze_what_was_accepted() -> None:
    """What counted before counts still: every accepted upload in its own round, in the order of the participants.

    What an abandoned attempt had accepted did not count then, and does not now: its participants were asked again.
    """
    rounds = sa.table("rounds", *(sa.column(name) for name in ("id", "number", "state")))
    uploads = sa.table("uploads", *(sa.column(name) for name in ("id", "round_id", "client_id", "state", "counts_in")))
    inputs = sa.table(
        "round_inputs", *(sa.column(name) for name in ("round_id", "position", "upload_id", "staleness", "excluded"))
    )
    own = sa.select(rounds.c.number).where(rounds.c.id == uploads.c.round_id, rounds.c.state != "ABANDONED")
    connection = op.get_bind()
    connection.execute(uploads.update().where(uploads.c.state == "ACCEPTED").values(counts_in=own.scalar_subquery()))
    position = sa.func.row_number().over(partition_by=uploads.c.round_id, order_by=uploads.c.client_id) - 1
    frozen = (
        sa.select(uploads.c.round_id, position, uploads.c.id, sa.literal(0), sa.false())
        .join(rounds, rounds.c.id == uploads.c.round_id)
        .where(uploads.c.state == "ACCEPTED", rounds.c.state.in_(("AGGREGATING", "PUBLISHED", "FAILED")))
    )
    connection.execute(inputs.insert().from_select([column.name for column in inputs.c], frozen))


def downgrade() -> None:
    for table in ("clients", "api_keys"):
        op.drop_index(f"{table}_revoked", table)
    op.drop_table("round_inputs")
    with op.batch_alter_table("uploads") as batch_op:
        batch_op.drop_column("counts_in")
        batch_op.drop_column("parts")
    with op.batch_alter_table("rounds") as batch_op:
        batch_op.drop_column("lease_holder")
        batch_op.drop_column("version")
