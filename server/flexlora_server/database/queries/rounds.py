"""Rounds and assignments: opening, finding, moving. Which move is allowed, `flexlora_server.state_machine` says."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, bindparam, exists, func, or_, select, update

from flexlora_server import state_machine as machine
from flexlora_server.database.queries import events
from flexlora_server.database.queries.presence import Present, enrolled
from flexlora_server.database.schema import Assignment, Client, Participation, Round, RoundModules, Run, Upload
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Conflict, Refusal
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.status import RoundState
from flexlora_shared.problems import Code


def open_(tx: Tx, run: Run, number: int, attempt: int = 1) -> Round:
    """Open an attempt at a round of a locked run. Round 0 gathers nobody: a worker publishes it from the run's seed."""
    state: RoundState = "AGGREGATING" if number == 0 else "OPEN"
    round_ = Round(run=run.name, number=number, attempt=attempt, state=state, opened_at=tx.now)
    tx.session.add(round_)
    tx.session.flush()
    events.record(tx, run, f"round-{state.lower()}", f"attempt {attempt}", number)
    return round_


def latest(tx: Tx, run: str, number: int) -> Round:
    """The latest attempt at a round.

    Raises:
        Refusal: ROUND_NOT_FOUND.
    """
    wanted = select(Round).where(Round.run == run, Round.number == number).order_by(Round.attempt.desc()).limit(1)
    round_ = tx.session.scalar(wanted)
    if round_ is None:
        raise Refusal(
            Code.ROUND_NOT_FOUND, f"Run {run!r} has no round {number} yet; GET /v1/runs/{run}/rounds lists them."
        )
    return round_


def current(tx: Tx, run: str) -> Round | None:
    """The newest round's latest attempt, None before the start."""
    wanted = select(Round).where(Round.run == run).order_by(Round.number.desc(), Round.attempt.desc()).limit(1)
    return tx.session.scalar(wanted)


def every(tx: Tx, run: str) -> Sequence[Round]:
    """The latest attempt of every round, newest first."""
    last = select(Round.number, func.max(Round.attempt).label("attempt")).where(Round.run == run)
    attempts = last.group_by(Round.number).subquery()
    wanted = select(Round).join(attempts, (Round.number == attempts.c.number) & (Round.attempt == attempts.c.attempt))
    return tx.session.scalars(wanted.where(Round.run == run).order_by(Round.number.desc())).all()


def change_norms(tx: Tx, run: str, number: int) -> tuple[float, ...]:
    """The median change norms of the published rounds before `number`, oldest first."""
    wanted = select(RoundModules.summary).join(Round, Round.id == RoundModules.round_id)
    wanted = wanted.where(Round.run == run, Round.number < number, Round.state == "PUBLISHED").order_by(Round.number)
    return tuple(summary["change_norm"] for summary in tx.session.scalars(wanted) if summary)


def view(tx: Tx, run: Run, round_: Round) -> machine.RoundView:
    """The round as the state machine sees it."""
    asked = {"run": run.name, "round": round_.id, "number": round_.number, "until": round_.deadline or tx.now}
    counted = tx.session.execute(_COUNTS, asked).one()
    return machine.RoundView(
        run_state=run.state,  # type: ignore[arg-type]
        number=round_.number,
        attempt=round_.attempt,
        state=round_.state,  # type: ignore[arg-type]
        opened_at=round_.opened_at,
        deadline=round_.deadline,
        assigned=counted.assigned,
        accepted=counted.accepted,
        uploading=counted.uploading,
        declared=counted.declared,
        failures=round_.failures,
        reason=round_.reason,
        leased=round_.lease_holder is not None,
        lease_until=round_.lease_until,
    )


def _counts() -> Select[Any]:
    """All that `view` counts, in one statement that is made once: every decision about a round asks for it.

    Of the assigned, those whose update is in or may still come: nobody who was revoked before.
    """
    of_round = Upload.round_id == bindparam("round")
    sent = select(func.count()).select_from(Upload).where(of_round)
    accepted = sent.where(Upload.state == "ACCEPTED", Upload.counts_in == bindparam("number"))
    uploading = sent.where(Upload.state == "OPEN", Upload.created_at < bindparam("until"))
    declared = select(func.count()).select_from(Participation).where(Participation.run == bindparam("run"))
    declared = declared.where(enrolled(Participation.client_id))
    still = or_(
        Client.revoked_at.is_(None),
        Assignment.client_id.in_(select(Upload.client_id).where(of_round, Upload.state == "ACCEPTED")),
    )
    places = select(func.count()).select_from(Assignment).join(Client, Client.id == Assignment.client_id)
    assigned = places.where(Assignment.round_id == bindparam("round"), still)
    return select(
        assigned.scalar_subquery().label("assigned"),
        accepted.scalar_subquery().label("accepted"),
        uploading.scalar_subquery().label("uploading"),
        declared.scalar_subquery().label("declared"),
    )


_COUNTS = _counts()


def uploads_in(tx: Tx, round_: Round, state: str) -> int:
    """How many uploads of the round are in a state."""
    counted = select(func.count()).select_from(Upload).where(Upload.round_id == round_.id, Upload.state == state)
    return tx.session.scalar(counted) or 0


def move(tx: Tx, run: Run, round_: Round, to: RoundState, detail: str) -> None:
    """Move a round of a locked run: compare-and-set on the version it was read in."""
    before: RoundState = round_.state  # type: ignore[assignment]
    if (before, to) not in machine.ROUND_MOVES:
        raise AssertionError(f"round {round_.number} cannot go from {before} to {to}")
    touch(tx, round_, state=to)
    events.record(tx, run, f"round-{to.lower()}", detail, round_.number)


def touch(tx: Tx, round_: Round, **values: Any) -> None:
    """Change what decisions about a round look at: compare-and-set on its version.

    Raises:
        Conflict: the round has changed since it was read.
    """
    held = update(Round).where(Round.id == round_.id, Round.version == round_.version)
    held = held.values(version=Round.version + 1, **values).returning(Round.id)
    if tx.session.execute(held.execution_options(synchronize_session=False)).first() is None:
        raise Conflict(f"round {round_.number} of run {round_.run} has changed since it was read")
    tx.session.refresh(round_)


def assign(tx: Tx, round_: Round, clients: Iterable[str], carried: Iterable[str] = ()) -> None:
    """Fix the participants of a round, each at the rank declared now; whose update was carried, at the rank it has."""
    kept, wanted = frozenset(carried), list(clients)
    declared = select(Participation.client_id, Participation.declaration).where(Participation.run == round_.run)
    told = {row.client_id: row.declaration for row in tx.session.execute(declared)}
    before = {place.client_id: place for place in tx.session.scalars(_places(round_))} if kept else {}
    for client in wanted:
        if client in kept:
            tx.session.add(_place(round_, client, before[client].rank, before[client].rank_pattern))
        else:
            tx.session.add(_place(round_, client, told[client]["rank"], told[client]["rank_pattern"]))
    tx.session.flush()


def join(tx: Tx, round_: Round, client: str) -> None:
    """Give a participant the place in this attempt that an earlier one gave it."""
    before = assignment(tx, round_, client)
    assert before is not None, "only participants of an earlier attempt join"
    if before.round_id != round_.id:
        tx.session.add(_place(round_, client, before.rank, before.rank_pattern))
        tx.session.flush()


def _place(round_: Round, client: str, rank: int, pattern: Mapping[str, int]) -> Assignment:
    return Assignment(round_id=round_.id, client_id=client, rank=rank, rank_pattern=dict(pattern))


def _places(round_: Round) -> Select[Assignment]:
    """The places that this attempt and those before it gave, in the order of the attempts."""
    wanted = select(Assignment).join(Round, Round.id == Assignment.round_id)
    wanted = wanted.where(Round.run == round_.run, Round.number == round_.number, Round.attempt <= round_.attempt)
    return wanted.order_by(Round.attempt)


def assignment(tx: Tx, round_: Round, client: str) -> Assignment | None:
    """A participant's place in the round, in this attempt or the last one before that gave it one; None without any.

    All attempts at a round begin from the same adapter: what was trained in an abandoned one is as good in the next.
    """
    wanted = _places(round_).where(Assignment.client_id == client)
    found = tx.session.scalars(wanted).all()
    return found[-1] if found else None


def next_number(tx: Tx, round_: Round) -> int:
    """The first round after this one whose inputs are not frozen."""
    newest = current(tx, round_.run)
    assert newest is not None, "there is at least this round"
    return max(newest.number + (newest.state not in {"OPEN", "COLLECTING"}), round_.number + 1)


def assignments(tx: Tx, round_: Round) -> Sequence[Assignment]:
    """Everyone's place in the round, in a fixed order."""
    wanted = select(Assignment).where(Assignment.round_id == round_.id).order_by(Assignment.client_id)
    return tx.session.scalars(wanted).all()


def declare(tx: Tx, run: Run, client: str, declaration: Declaration) -> None:
    """Write a participant's declaration; it holds from the next assignment on."""
    row = tx.session.get(Participation, (run.name, client))
    if row is None:
        row = Participation(run=run.name, client_id=client)
        tx.session.add(row)
    told = declaration.model_dump(mode="json")
    changed = row.declaration != told
    row.declaration, row.declared_at, row.last_seen_at = told, tx.now, tx.now
    if changed:
        events.record(tx, run, "declared", f"a participant declared rank {declaration.rank}")


def participation(tx: Tx, run: str, client: str) -> Participation | None:
    """A participant's row in a run, None where it declared nothing."""
    return tx.session.get(Participation, (run, client))


def declaration_of(tx: Tx, run: str, client: str) -> Declaration | None:
    """A participant's latest declaration, None where it made none."""
    row = participation(tx, run, client)
    return None if row is None else Declaration.model_validate(row.declaration)


def present(tx: Tx, run: str, window: float) -> Present:
    """The enrolled participants seen within `window` seconds, in a fixed order; counted without being listed."""
    return Present(tx, run, tx.now - timedelta(seconds=window))


def waiting_clients(tx: Tx, run: str) -> frozenset[str]:
    """The participants that have work to do: assigned in the collecting round, with nothing accepted yet."""
    done = exists().where(
        Upload.round_id == Assignment.round_id, Upload.client_id == Assignment.client_id, Upload.state == "ACCEPTED"
    )
    wanted = (
        select(Assignment.client_id)
        .join(Round, Round.id == Assignment.round_id)
        .where(Round.run == run, Round.state == "COLLECTING", ~done)
    )
    return frozenset(tx.session.scalars(wanted))
