"""Published adapters, the slices cut from them, and what participants measured of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from sqlalchemy import select

from flexlora_server.database.schema import Adapter, Assignment, Client, Evaluation, Participation, Round, Run, Slice
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Refusal
from flexlora_server.storage import Blob
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.uploads import Evaluation as EvaluationMessage
from flexlora_shared.problems import Code
from flexlora_shared.ranks import longest_first


def ranks_sha256(rank: int, pattern: Mapping[str, int]) -> str:
    """One name for a rank and a pattern, whatever order the pattern was written in."""
    return hashlib.sha256(json.dumps([rank, longest_first(pattern)]).encode()).hexdigest()


def published(tx: Tx, run: str, number: int) -> Adapter:
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


def latest(tx: Tx, run: str) -> int | None:
    """The number of the last round that published, None before round 0 did."""
    wanted = select(Adapter.number).where(Adapter.run == run).order_by(Adapter.number.desc()).limit(1)
    return tx.session.scalar(wanted)


def publish(tx: Tx, run: str, number: int, blob: Blob) -> None:
    """A round's result; it never changes."""
    tx.session.add(Adapter(run=run, number=number, sha256=blob.sha256, size=blob.size))


def cut(tx: Tx, run: str, number: int, rank: int, pattern: Mapping[str, int]) -> Blob | None:
    """The slice, where it has been cut already."""
    row = tx.session.get(Slice, (run, number, ranks_sha256(rank, pattern)))
    return None if row is None else Blob(row.sha256, row.size)


def keep_cut(tx: Tx, run: str, number: int, rank: int, pattern: Mapping[str, int], blob: Blob) -> None:
    """Remember a slice; another request may have cut the same bytes meanwhile."""
    key = ranks_sha256(rank, pattern)
    tx.session.merge(Slice(run=run, number=number, ranks_sha256=key, sha256=blob.sha256, size=blob.size))


def wanted_slices(tx: Tx, run: str, largest: int) -> tuple[tuple[int, dict[str, int]], ...]:
    """The slices that the run's participants will ask for, and the largest, once each; nobody who was revoked counts."""
    told = (
        select(Participation.declaration)
        .join(Client, Client.id == Participation.client_id)
        .where(Participation.run == run, Client.revoked_at.is_(None))
        .order_by(Participation.client_id)
    )
    declared = [Declaration.model_validate(row) for row in tx.session.scalars(told)]
    wanted = [(one.rank, longest_first(one.rank_pattern)) for one in declared] + [(largest, {})]
    return tuple({ranks_sha256(*one): one for one in wanted}.values())


def declared(tx: Tx, run: str, rank: int, pattern: Mapping[str, int]) -> bool:
    """Whether a participant has declared these ranks, or is assigned them."""
    if any(ranks_sha256(*one) == ranks_sha256(rank, pattern) for one in wanted_slices(tx, run, rank)):
        return True
    assigned = (
        select(Assignment).join(Round).where(Round.run == run, Round.state == "COLLECTING", Assignment.rank == rank)
    )
    return any(place.rank_pattern == dict(pattern) for place in tx.session.scalars(assigned))


def evaluate(tx: Tx, run: Run, number: int, client: str, told: EvaluationMessage) -> None:
    """A participant's metrics of a slice; its latest report replaces an earlier one."""
    tx.session.merge(
        Evaluation(
            run=run.name,
            number=number,
            client_id=client,
            ranks_sha256=ranks_sha256(told.rank, told.rank_pattern),
            rank=told.rank,
            examples=told.examples,
            metrics=dict(told.metrics),
        )
    )


def evaluations(tx: Tx, run: str, number: int) -> Sequence[Evaluation]:
    """What participants measured of a round's adapter, in a fixed order."""
    wanted = select(Evaluation).where(Evaluation.run == run, Evaluation.number == number)
    return tx.session.scalars(wanted.order_by(Evaluation.client_id, Evaluation.ranks_sha256)).all()
