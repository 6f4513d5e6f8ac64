"""The database's tables; `migrations/` builds the same ones and a test compares the two.

Which state may follow which, `flexlora_server.state_machine` says.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    String,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Instant(TypeDecorator[datetime]):
    """An instant in UTC; SQLite stores no time zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The instant in UTC, whatever the time zone of the database's session."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


class Table(DeclarativeBase):
    """Base of every table."""

    type_annotation_map = {datetime: Instant, dict[str, Any]: JSON, list[Any]: JSON}


class Run(Table):
    """A run; `version` grows with every change of it or its rounds, and is what waiting requests compare."""

    __tablename__ = "runs"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    spec: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None]
    version: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]


class Round(Table):
    """One attempt at a round. The lease fields belong to its aggregation."""

    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("run", "number", "attempt"), Index("rounds_by_state", "state"))
    id: Mapped[int] = mapped_column(primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey("runs.name"))
    number: Mapped[int]
    attempt: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    opened_at: Mapped[datetime]
    deadline: Mapped[datetime | None]
    published_at: Mapped[datetime | None]
    reason: Mapped[str | None]
    version: Mapped[int] = mapped_column(default=0)  # grows with every change that decisions about the round depend on
    failures: Mapped[int] = mapped_column(default=0)
    lease_token: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[datetime | None]
    lease_holder: Mapped[str | None] = mapped_column(String(128))  # the worker that aggregates it, None without one
    aggregation_seconds: Mapped[float | None]


class RoundModules(Table):
    """Diagnostics of a published round, a list entry a module; apart from the round because it can be large."""

    __tablename__ = "round_modules"
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    energy_kept: Mapped[list[Any]]
    # read only for one round's detail: with thousands of participants and modules they take megabytes
    modules: Mapped[list[Any]] = mapped_column(deferred=True)
    updates: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)  # AggregationMetrics
    summary: Mapped[dict[str, Any] | None]  # what a list of rounds shows; None of rounds published before there was any


def _index_of_the_revoked(table: str) -> Index:
    """An index of the few revoked rows: every poll of the waiting room queries them."""
    revoked = text("revoked_at IS NOT NULL")
    return Index(f"{table}_revoked", "revoked_at", sqlite_where=revoked, postgresql_where=revoked)


class Client(Table):
    """An enrolled participant."""

    __tablename__ = "clients"
    __table_args__ = (_index_of_the_revoked("clients"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    enrolled_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class ApiKey(Table):
    """A client's API key: its public id and the SHA-256 of its secret."""

    __tablename__ = "api_keys"
    __table_args__ = (_index_of_the_revoked("api_keys"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("clients.id"), index=True)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    used_at: Mapped[datetime | None]  # for the first time; the client's earlier keys end then
    revoked_at: Mapped[datetime | None]


class EnrollmentToken(Table):
    """A one-time token: its public id and the SHA-256 of its secret."""

    __tablename__ = "enrolment_tokens"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    note: Mapped[str]
    expires_at: Mapped[datetime]
    used_by: Mapped[str | None] = mapped_column(ForeignKey("clients.id"))


class Participation(Table):
    """A client's latest declaration in a run, and when it last polled for a task."""

    __tablename__ = "participations"
    run: Mapped[str] = mapped_column(ForeignKey("runs.name"), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("clients.id"), primary_key=True)
    declaration: Mapped[dict[str, Any]]
    declared_at: Mapped[datetime]
    last_seen_at: Mapped[datetime | None]
    instance: Mapped[str | None] = mapped_column(String(64))  # of the agent that declared; None: it named none


class Assignment(Table):
    """A participant's place in a round, at the rank it had declared when the round began.

    One that failed is not waited for, until it declares anew or announces an update: then its failure is deleted.
    """

    __tablename__ = "assignments"
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("clients.id"), primary_key=True)
    rank: Mapped[int]
    rank_pattern: Mapped[dict[str, Any]]
    hold_rank: Mapped[int | None]  # of the slice that it is served; None: as it trains
    given: Mapped[int] = mapped_column(default=1)  # how many times: once more with each declaration after a failure
    failed_at: Mapped[datetime | None]
    failure: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # Failure


class Upload(Table):
    """An update that is open, accepted or cancelled. At most one open and one accepted for a participant and round."""

    __tablename__ = "uploads"
    __table_args__ = (
        Index("uploads_by_round", "round_id", "state"),
        *(
            Index(
                f"uploads_one_{state.lower()}",
                "round_id",
                "client_id",
                unique=True,
                sqlite_where=text(f"state = '{state}'"),
                postgresql_where=text(f"state = '{state}'"),
            )
            for state in ("OPEN", "ACCEPTED")
        ),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"))
    client_id: Mapped[str] = mapped_column(ForeignKey("clients.id"))
    state: Mapped[str] = mapped_column(String(16))
    announced: Mapped[dict[str, Any]]  # UploadCreate
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    offset: Mapped[int] = mapped_column(BigInteger, default=0)
    # keys of the objects that hold its bytes, where the storage cannot append; many, and read for its owner's calls alone
    parts: Mapped[list[Any] | None] = mapped_column(deferred=True)
    counts_in: Mapped[int | None]  # the round whose aggregation it is part of; None until it is accepted
    created_at: Mapped[datetime]
    accepted_at: Mapped[datetime | None]


class RoundInput(Table):
    """One input of a round's aggregation; the list is frozen when the round begins to aggregate. An upload has one, ever."""

    __tablename__ = "round_inputs"
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), unique=True)
    staleness: Mapped[int]  # rounds that it came late
    excluded: Mapped[bool] = mapped_column(default=False)  # by the operator: it does not count


class Adapter(Table):
    """The global update a round published: one blob at the run's largest rank, from which slices are cut."""

    __tablename__ = "adapters"
    run: Mapped[str] = mapped_column(ForeignKey("runs.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)


class Slice(Table):
    """A slice that has been cut, by the digest of its rank and pattern in canonical form."""

    __tablename__ = "slices"
    run: Mapped[str] = mapped_column(ForeignKey("runs.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    ranks_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)


class Evaluation(Table):
    """A participant's metrics of a published slice; its latest report counts."""

    __tablename__ = "evaluations"
    run: Mapped[str] = mapped_column(ForeignKey("runs.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("clients.id"), primary_key=True)
    ranks_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    rank: Mapped[int]
    examples: Mapped[int] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any]]


class Event(Table):
    """The log of state changes."""

    __tablename__ = "events"
    __table_args__ = (Index("events_by_run", "run", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey("runs.name"))
    round: Mapped[int | None]
    kind: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str]
    at: Mapped[datetime]
