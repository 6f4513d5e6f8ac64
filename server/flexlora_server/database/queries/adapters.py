"""Queries of published adapters, the slices cut from them, and participants' evaluations."""

import hashlib
import json
from collections.abc import Mapping

from sqlalchemy import and_, func, select

from flexlora_server.database.queries.rounds import rollbacks
from flexlora_server.database.schema import Adapter, Assignment, Client, Evaluation, Participation, Round, Run, Slice
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Refusal
from flexlora_server.storage import Blob
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.uploads import Evaluation as EvaluationMessage
from flexlora_shared.problems import Code
from flexlora_shared.ranks import held_ranks, longest_first


def ranks_sha256(rank: int, pattern: Mapping[str, int]) -> str:
    """The key of a rank and a pattern, independent of the order in which the pattern was written."""
    return hashlib.sha256(json.dumps([rank, longest_first(pattern)]).encode()).hexdigest()


def get_published(tx: Tx, run: str, number: int) -> Adapter:
    """The adapter that a round published.

    Raises:
        Refusal: ADAPTER_NOT_PUBLISHED.
    """
    adapter = tx.session.get(Adapter, (run, number))
    if adapter is None:
        raise Refusal(
            Code.ADAPTER_NOT_PUBLISHED,
            f"Round {number} of run {run!r} has published no adapter; GET /v1/runs/{run} says which round was the last.",
        )
    return adapter


def latest_number(tx: Tx, run: str) -> int | None:
    """The number of the last round that published, None before round 0 did."""
    query = select(Adapter.number).where(Adapter.run == run).order_by(Adapter.number.desc()).limit(1)
    return tx.session.scalar(query)


def before(tx: Tx, run: str, number: int) -> str | None:
    """SHA-256 of what was published two rounds before this one, None where there was nothing, or a rollback between.

    With what was published one round before it is the last change, of which filters compare the direction.
    """
    if number < 2 or number - 1 in rollbacks(tx, run):
        return None
    return get_published(tx, run, number - 2).sha256


def restored(tx: Tx, run: str, number: int) -> int | None:
    """The round whose adapter this one published again, the newest of those with the same bytes; None without a rollback."""
    if number not in rollbacks(tx, run):
        return None
    same = get_published(tx, run, number).sha256
    query = select(func.max(Adapter.number)).where(Adapter.run == run, Adapter.number < number, Adapter.sha256 == same)
    return tx.session.scalar(query)


def save_published(tx: Tx, run: str, number: int, blob: Blob) -> None:
    """Save a round's adapter; it never changes."""
    tx.session.add(Adapter(run=run, number=number, sha256=blob.sha256, size=blob.size))


def find_slice(tx: Tx, run: str, number: int, rank: int, pattern: Mapping[str, int]) -> Blob | None:
    """The slice, None where it has not been cut yet."""
    row = tx.session.get(Slice, (run, number, ranks_sha256(rank, pattern)))
    return None if row is None else Blob(row.sha256, row.size)


def save_slice(tx: Tx, run: str, number: int, rank: int, pattern: Mapping[str, int], blob: Blob) -> None:
    """Save a slice that was cut; another request may have saved the same one meanwhile."""
    key = ranks_sha256(rank, pattern)
    tx.session.merge(Slice(run=run, number=number, ranks_sha256=key, sha256=blob.sha256, size=blob.size))


def expected_slices(tx: Tx, run: str, largest: int) -> tuple[tuple[int, dict[str, int]], ...]:
    """The ranks and patterns of what the run's participants, but revoked ones, hold, and the largest rank; once each."""
    query = (
        select(Participation.declaration)
        .join(Client, Client.id == Participation.client_id)
        .where(Participation.run == run, Client.revoked_at.is_(None))
        .order_by(Participation.client_id)
    )
    declarations = [Declaration.model_validate(row) for row in tx.session.scalars(query)]
    held = [held_ranks(row.rank, row.rank_pattern, row.hold_rank) for row in declarations]
    slices = [(rank, longest_first(pattern)) for rank, pattern in held] + [(largest, {})]
    return tuple({ranks_sha256(*ranks): ranks for ranks in slices}.values())


def is_declared(tx: Tx, run: str, rank: int, pattern: Mapping[str, int]) -> bool:
    """Whether a participant has declared that it holds these ranks, or is assigned to."""
    if any(ranks_sha256(*ranks) == ranks_sha256(rank, pattern) for ranks in expected_slices(tx, run, rank)):
        return True
    held_rank = func.coalesce(Assignment.hold_rank, Assignment.rank)
    assigned = select(Assignment).join(Round).where(Round.run == run, Round.state == "COLLECTING", held_rank == rank)
    return any(
        held_ranks(row.rank, row.rank_pattern, row.hold_rank) == (rank, dict(pattern))
        for row in tx.session.scalars(assigned)
    )


def save_evaluation(tx: Tx, run: Run, number: int, client: str, message: EvaluationMessage) -> None:
    """Save a participant's metrics of a slice; the latest report replaces an earlier one."""
    tx.session.merge(
        Evaluation(
            run=run.name,
            number=number,
            client_id=client,
            ranks_sha256=ranks_sha256(message.rank, message.rank_pattern),
            rank=message.rank,
            examples=message.examples,
            metrics=dict(message.metrics),
        )
    )


def list_evaluations(tx: Tx, run: str, number: int) -> list[tuple[Evaluation, bool]]:
    """Metrics of a round's adapter, in a fixed order, and of each whether its client has declared a rank in the run."""
    taking_part = and_(Participation.run == Evaluation.run, Participation.client_id == Evaluation.client_id)
    query = (
        select(Evaluation, Participation.client_id.is_not(None))
        .outerjoin(Participation, taking_part)
        .where(Evaluation.run == run, Evaluation.number == number)
        .order_by(Evaluation.client_id, Evaluation.ranks_sha256)
    )
    return [(row, bool(declared)) for row, declared in tx.session.execute(query)]
