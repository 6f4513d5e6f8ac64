"""Queries of rounds, declarations and assignments. Which change of state is allowed, `flexlora_server.state_machine` says."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, and_, bindparam, exists, func, or_, select, update

from flexlora_server import state_machine as machine
from flexlora_server.database.queries import events
from flexlora_server.database.queries.presence import PresentClients, is_enrolled
from flexlora_server.database.schema import (
    Assignment,
    Client,
    Participation,
    Round,
    RoundInput,
    RoundModules,
    Run,
    Upload,
)
from flexlora_server.database.timestamps import rfc3339
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Conflict, Refusal
from flexlora_shared.messages.clients import Declaration, Replaced
from flexlora_shared.messages.status import RoundState
from flexlora_shared.messages.tasks import Failure
from flexlora_shared.problems import Code

SEEN_LATELY = timedelta(minutes=2)


def open_attempt(tx: Tx, run: Run, number: int, attempt: int = 1) -> Round:
    """Open an attempt at a round of a locked run. Round 0 gathers nobody: a worker publishes it from the run's seed."""
    state: RoundState = "AGGREGATING" if number == 0 else "OPEN"
    round_ = Round(run=run.name, number=number, attempt=attempt, state=state, opened_at=tx.now)
    tx.session.add(round_)
    tx.session.flush()
    events.record(tx, run, f"round-{state.lower()}", f"attempt {attempt}", number)
    return round_


def publish_again(tx: Tx, run: Run, number: int, attempt: int, reason: str) -> Round:
    """An attempt at a round of a locked run that is PUBLISHED from the beginning: what an earlier round published."""
    round_ = Round(
        run=run.name, number=number, attempt=attempt, state="PUBLISHED", opened_at=tx.now, published_at=tx.now
    )
    round_.reason = reason
    tx.session.add(round_)
    tx.session.flush()
    return round_


def rollbacks(tx: Tx, run: str) -> frozenset[int]:
    """The numbers of the rounds that published again what an earlier one had: they alone have no inputs."""
    has_inputs = exists().where(RoundInput.round_id == Round.id)
    query = select(Round.number).where(Round.run == run, Round.number > 0, Round.state == "PUBLISHED", ~has_inputs)
    return frozenset(tx.session.scalars(query))


def latest(tx: Tx, run: str, number: int) -> Round:
    """The latest attempt at a round.

    Raises:
        Refusal: ROUND_NOT_FOUND.
    """
    query = select(Round).where(Round.run == run, Round.number == number).order_by(Round.attempt.desc()).limit(1)
    round_ = tx.session.scalar(query)
    if round_ is None:
        raise Refusal(
            Code.ROUND_NOT_FOUND, f"Run {run!r} has no round {number} yet; GET /v1/runs/{run}/rounds lists them."
        )
    return round_


def current(tx: Tx, run: str) -> Round | None:
    """The newest round's latest attempt, None before the start."""
    query = select(Round).where(Round.run == run).order_by(Round.number.desc(), Round.attempt.desc()).limit(1)
    return tx.session.scalar(query)


def list_latest(tx: Tx, run: str) -> Sequence[Round]:
    """The latest attempt of every round, newest first."""
    last = select(Round.number, func.max(Round.attempt).label("attempt")).where(Round.run == run)
    attempts = last.group_by(Round.number).subquery()
    query = select(Round).join(attempts, (Round.number == attempts.c.number) & (Round.attempt == attempts.c.attempt))
    return tx.session.scalars(query.where(Round.run == run).order_by(Round.number.desc())).all()


def change_norms(tx: Tx, run: str, number: int) -> tuple[float, ...]:
    """The median change norms of the published rounds before `number`, oldest first."""
    query = select(RoundModules.summary).join(Round, Round.id == RoundModules.round_id)
    query = query.where(Round.run == run, Round.number < number, Round.state == "PUBLISHED").order_by(Round.number)
    return tuple(summary["change_norm"] for summary in tx.session.scalars(query) if summary)


def round_view(tx: Tx, run: Run, round_: Round) -> machine.RoundView:
    """The round as the state machine sees it."""
    parameters = {"run": run.name, "round": round_.id, "number": round_.number, "until": round_.deadline or tx.now}
    counts = tx.session.execute(_COUNTS, parameters).one()
    return machine.RoundView(
        run_state=run.state,  # type: ignore[arg-type]
        number=round_.number,
        attempt=round_.attempt,
        state=round_.state,  # type: ignore[arg-type]
        opened_at=round_.opened_at,
        deadline=round_.deadline,
        assigned=counts.assigned,
        accepted=counts.accepted,
        uploading=counts.uploading,
        declared=counts.declared,
        failed=counts.failed,
        failures=round_.failures,
        reason=round_.reason,
        leased=round_.lease_holder is not None,
        lease_until=round_.lease_until,
    )


def _failed_clients(run: Any, number: Any) -> Select[str]:
    """The clients that failed in any attempt of the round, and have not come back."""
    attempts = select(Round.id).where(Round.run == run, Round.number == number)
    return select(Assignment.client_id).where(Assignment.round_id.in_(attempts), Assignment.failed_at.is_not(None))


def _counts() -> Select[Any]:
    """The counts of `round_view` in one statement, which is built once: every decision about a round executes it.

    `assigned` counts those whose update is accepted or may still come: without clients revoked, or failed, before their update
    was accepted.
    """
    of_round = Upload.round_id == bindparam("round")
    sent = select(func.count()).select_from(Upload).where(of_round)
    accepted = sent.where(Upload.state == "ACCEPTED", Upload.counts_in == bindparam("number"))
    failed_clients = _failed_clients(bindparam("run"), bindparam("number"))
    uploading = sent.where(Upload.state == "OPEN", Upload.created_at < bindparam("until"))
    uploading = uploading.where(Upload.client_id.not_in(failed_clients))
    declared = select(func.count()).select_from(Participation).where(Participation.run == bindparam("run"))
    declared = declared.where(is_enrolled(Participation.client_id), Participation.client_id.not_in(failed_clients))
    failed = select(func.count()).select_from(Client).where(Client.id.in_(failed_clients), Client.revoked_at.is_(None))
    still = or_(
        and_(Client.revoked_at.is_(None), Assignment.failed_at.is_(None)),
        Assignment.client_id.in_(select(Upload.client_id).where(of_round, Upload.state == "ACCEPTED")),
    )
    places = select(func.count()).select_from(Assignment).join(Client, Client.id == Assignment.client_id)
    assigned = places.where(Assignment.round_id == bindparam("round"), still)
    return select(
        assigned.scalar_subquery().label("assigned"),
        accepted.scalar_subquery().label("accepted"),
        uploading.scalar_subquery().label("uploading"),
        declared.scalar_subquery().label("declared"),
        failed.scalar_subquery().label("failed"),
    )


_COUNTS = _counts()


def count_uploads(tx: Tx, round_: Round, state: str) -> int:
    """How many uploads of the round are in a state."""
    counted = select(func.count()).select_from(Upload).where(Upload.round_id == round_.id, Upload.state == state)
    return tx.session.scalar(counted) or 0


def change_state(tx: Tx, run: Run, round_: Round, to: RoundState, detail: str) -> None:
    """Move a round of a locked run: compare-and-set on the version it was read in."""
    before: RoundState = round_.state  # type: ignore[assignment]
    if (before, to) not in machine.ROUND_MOVES:
        raise AssertionError(f"round {round_.number} cannot go from {before} to {to}")
    touch(tx, round_, state=to)
    events.record(tx, run, f"round-{to.lower()}", detail, round_.number)


def touch(tx: Tx, round_: Round, **values: Any) -> None:
    """Change fields that decisions about a round depend on: compare-and-set on its version.

    Raises:
        Conflict: the round has changed since it was read.
    """
    held = update(Round).where(Round.id == round_.id, Round.version == round_.version)
    held = held.values(version=Round.version + 1, **values).returning(Round.id)
    if tx.session.execute(held.execution_options(synchronize_session=False)).first() is None:
        raise Conflict(f"round {round_.number} of run {round_.run} has changed since it was read")
    tx.session.refresh(round_)


def assign(tx: Tx, round_: Round, clients: Iterable[str], carried: Iterable[str] = ()) -> None:
    """Assign the participants of a round, each at its declared rank; `carried` ones at the rank of the update carried over."""
    carried_clients, client_ids = frozenset(carried), list(clients)
    query = select(Participation.client_id, Participation.declaration).where(Participation.run == round_.run)
    declarations = {row.client_id: row.declaration for row in tx.session.execute(query)}
    earlier = tx.session.scalars(_assignments_of_attempts(round_)) if carried_clients else ()
    carried_ranks = {row.client_id: (row.rank, row.rank_pattern, row.hold_rank) for row in earlier}
    for client in client_ids:
        if client in carried_clients:
            ranks = carried_ranks[client]
        else:
            declared = declarations[client]
            ranks = declared["rank"], declared["rank_pattern"], declared.get("hold_rank")
        tx.session.add(_new_assignment(round_, client, *ranks))
    tx.session.flush()


def carry_assignment(tx: Tx, round_: Round, client: str) -> None:
    """Copy a participant's assignment of an earlier attempt into this one."""
    earlier = find_assignment(tx, round_, client)
    assert earlier is not None, "only participants of an earlier attempt join"
    if earlier.round_id != round_.id:
        tx.session.add(_new_assignment(round_, client, earlier.rank, earlier.rank_pattern, earlier.hold_rank))
        tx.session.flush()


def _new_assignment(
    round_: Round, client: str, rank: int, pattern: Mapping[str, int], hold_rank: int | None
) -> Assignment:
    return Assignment(round_id=round_.id, client_id=client, rank=rank, rank_pattern=dict(pattern), hold_rank=hold_rank)


def _assignments_of_attempts(round_: Round) -> Select[Assignment]:
    """The assignments of this attempt and those before it, in the order of the attempts."""
    query = select(Assignment).join(Round, Round.id == Assignment.round_id)
    query = query.where(Round.run == round_.run, Round.number == round_.number, Round.attempt <= round_.attempt)
    return query.order_by(Round.attempt)


def find_assignment(tx: Tx, round_: Round, client: str) -> Assignment | None:
    """A participant's assignment in this attempt, or the last one in an earlier attempt; None without any.

    All attempts at a round begin from the same adapter: what was trained in an abandoned one is as good in the next.
    """
    query = _assignments_of_attempts(round_).where(Assignment.client_id == client)
    assignments = tx.session.scalars(query).all()
    return assignments[-1] if assignments else None


def find_assignment_of(tx: Tx, round_: Round, client: str, attempt: int) -> Assignment | None:
    """A participant's assignment in one attempt of the round, None without it."""
    query = _assignments_of_attempts(round_).where(Assignment.client_id == client, Round.attempt == attempt)
    return tx.session.scalar(query)


def mark_failed(tx: Tx, run: Run, round_: Round, assignment: Assignment, failure: Failure) -> None:
    """Write that an assigned participant of a locked run failed in the round: it is no longer waited for."""
    assignment.failed_at, assignment.failure = tx.now, failure.model_dump(mode="json")
    touch(tx, round_)
    events.record(tx, run, "participant-failed", "a participant cannot finish its task", round_.number)


def list_failed(tx: Tx, round_: Round) -> Sequence[Assignment]:
    """The assignments, in this attempt and earlier ones, of participants that failed and have not come back."""
    return tx.session.scalars(_assignments_of_attempts(round_).where(Assignment.failed_at.is_not(None))).all()


def clear_failure(tx: Tx, run: Run, round_: Round, client: str) -> bool:
    """Delete a participant's failure in a round of a locked run, because it goes on; whether there was one."""
    failed = [row for row in list_failed(tx, round_) if row.client_id == client]
    for assignment in failed:
        assignment.failed_at = assignment.failure = None
    if failed:
        touch(tx, round_)
        events.record(tx, run, "participant-returned", "a participant that had failed goes on", round_.number)
    return bool(failed)


def _give_again(tx: Tx, run: Run, client: str, declaration: Declaration) -> None:
    """Give the task of an unfinished round again to a participant that failed in it, at the rank that it declares now."""
    round_ = current(tx, run.name)
    if round_ is None or round_.state not in {"OPEN", "COLLECTING"} or not clear_failure(tx, run, round_, client):
        return
    assignment = tx.session.get(Assignment, (round_.id, client))
    if assignment is not None:
        assignment.rank, assignment.rank_pattern = declaration.rank, dict(declaration.rank_pattern)
        assignment.hold_rank = declaration.hold_rank
        assignment.given += 1


def next_open_number(tx: Tx, round_: Round) -> int:
    """The first round after this one whose inputs are not frozen."""
    newest = current(tx, round_.run)
    assert newest is not None, "there is at least this round"
    return max(newest.number + (newest.state not in {"OPEN", "COLLECTING"}), round_.number + 1)


def list_assignments(tx: Tx, round_: Round) -> Sequence[Assignment]:
    """The assignments of this attempt, in a fixed order."""
    query = select(Assignment).where(Assignment.round_id == round_.id).order_by(Assignment.client_id)
    return tx.session.scalars(query).all()


def declare(tx: Tx, run: Run, client: str, declaration: Declaration, instance: str | None) -> Replaced | None:
    """Save a participant's declaration, by this instance of its agent; it applies from the next assignment on.

    The result is the instance that declared before, where it was another one that seems to run still.
    """
    row = tx.session.get(Participation, (run.name, client))
    if row is None:
        row = Participation(run=run.name, client_id=client)
        tx.session.add(row)
        replaced = None
    else:
        replaced = _replaced(tx, row, instance)
    document = declaration.model_dump(mode="json")
    changed = row.declaration != document
    row.declaration, row.declared_at, row.last_seen_at, row.instance = document, tx.now, tx.now, instance
    if changed:
        holding = "" if declaration.hold_rank in {None, declaration.rank} else f", holding {declaration.hold_rank}"
        events.record(tx, run, "declared", f"a participant declared rank {declaration.rank}{holding}")
    _give_again(tx, run, client, declaration)
    return replaced


def _replaced(tx: Tx, before: Participation, instance: str | None) -> Replaced | None:
    """The instance that declared before, if it is another one, and was seen lately or has a task that it may be training on."""
    if instance is None or before.instance in {None, instance}:
        return None
    seen = before.last_seen_at is not None and before.last_seen_at >= tx.now - SEEN_LATELY
    if not seen and before.client_id not in clients_with_work(tx, before.run):
        return None
    hardware = Declaration.model_validate(before.declaration).hardware
    return Replaced(declared_at=rfc3339(before.declared_at), hardware=hardware)


def participation(tx: Tx, run: str, client: str) -> Participation | None:
    """A participant's row in a run, None where it declared nothing."""
    return tx.session.get(Participation, (run, client))


def declaration_of(tx: Tx, run: str, client: str) -> Declaration | None:
    """A participant's latest declaration, None where it made none."""
    row = participation(tx, run, client)
    return None if row is None else Declaration.model_validate(row.declaration)


def present_clients(tx: Tx, round_: Round, window: float) -> PresentClients:
    """The enrolled participants seen within `window` seconds that did not fail in this round; counted without being
    listed."""
    failed = _failed_clients(round_.run, round_.number)
    return PresentClients(tx, round_.run, tx.now - timedelta(seconds=window), failed)


def clients_with_work(tx: Tx, run: str) -> frozenset[str]:
    """The participants that have work to do: assigned in the collecting round, with no failure and nothing accepted yet."""
    done = exists().where(
        Upload.round_id == Assignment.round_id, Upload.client_id == Assignment.client_id, Upload.state == "ACCEPTED"
    )
    query = (
        select(Assignment.client_id)
        .join(Round, Round.id == Assignment.round_id)
        .where(Round.run == run, Round.state == "COLLECTING", Assignment.failed_at.is_(None), ~done)
    )
    return frozenset(tx.session.scalars(query))
