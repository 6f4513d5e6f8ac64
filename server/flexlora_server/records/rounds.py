"""Rounds and assignments: opening, finding, moving. Which move is allowed, `flexlora_server.rounds` says."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select, update

from flexlora_server import rounds as machine
from flexlora_server.errors import Refusal
from flexlora_server.records import events
from flexlora_server.store import Tx
from flexlora_server.tables import Assignment, Client, Participation, Round, RoundModules, Run, Upload
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
    assigned = select(func.count()).select_from(Assignment).where(Assignment.round_id == round_.id)
    declared = select(func.count()).select_from(Participation).join(Client, Client.id == Participation.client_id)
    return machine.RoundView(
        run_state=run.state,  # type: ignore[arg-type]
        number=round_.number,
        attempt=round_.attempt,
        state=round_.state,  # type: ignore[arg-type]
        opened_at=round_.opened_at,
        deadline=round_.deadline,
        assigned=tx.session.scalar(assigned) or 0,
        accepted=uploads_in(tx, round_, "ACCEPTED"),
        declared=tx.session.scalar(declared.where(Participation.run == run.name, Client.revoked_at.is_(None))) or 0,
    )


def uploads_in(tx: Tx, round_: Round, state: str) -> int:
    """How many uploads of the round are in a state."""
    counted = select(func.count()).select_from(Upload).where(Upload.round_id == round_.id, Upload.state == state)
    return tx.session.scalar(counted) or 0


def move(tx: Tx, run: Run, round_: Round, to: RoundState, detail: str) -> None:
    """Move a round of a locked run: compare-and-set on the state it was read in."""
    before: RoundState = round_.state  # type: ignore[assignment]
    if (before, to) not in machine.ROUND_MOVES:
        raise AssertionError(f"round {round_.number} cannot go from {before} to {to}")
    moved = update(Round).where(Round.id == round_.id, Round.state == before).values(state=to).returning(Round.id)
    if tx.session.execute(moved).first() is None:
        raise AssertionError(f"round {round_.number} was not {before} any more, though its run was locked")
    round_.state = to
    events.record(tx, run, f"round-{to.lower()}", detail, round_.number)


def assign(tx: Tx, round_: Round, clients: Iterable[str]) -> None:
    """Fix the participants of a round, each at the rank declared now."""
    for client in clients:
        declaration = declaration_of(tx, round_.run, client)
        assert declaration is not None, "only declared participants are gathered"
        tx.session.add(
            Assignment(
                round_id=round_.id,
                client_id=client,
                rank=declaration.rank,
                rank_pattern=dict(declaration.rank_pattern),
            )
        )
    tx.session.flush()


def assignment(tx: Tx, round_: Round, client: str) -> Assignment | None:
    """A participant's place in the round, None where it has none."""
    return tx.session.get(Assignment, (round_.id, client))


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


def declaration_of(tx: Tx, run: str, client: str) -> Declaration | None:
    """A participant's latest declaration, None where it made none."""
    row = tx.session.get(Participation, (run, client))
    return None if row is None else Declaration.model_validate(row.declaration)


def saw(tx: Tx, seen: Iterable[tuple[str, str]]) -> None:
    """Write that these (run, client) pairs are polling for a task now."""
    rows = [{"run": run, "client_id": client, "last_seen_at": tx.now} for run, client in seen]
    if rows:
        tx.session.execute(update(Participation), rows)


def present(tx: Tx, run: str, window: float) -> Sequence[str]:
    """The enrolled participants seen within `window` seconds, in a fixed order."""
    since: datetime = tx.now - timedelta(seconds=window)
    wanted = (
        select(Participation.client_id)
        .join(Client, Client.id == Participation.client_id)
        .where(Participation.run == run, Participation.last_seen_at >= since, Client.revoked_at.is_(None))
        .order_by(Participation.client_id)
    )
    return tx.session.scalars(wanted).all()


def waiting_clients(tx: Tx, run: str) -> frozenset[str]:
    """The participants that have work to do: assigned in the collecting round, with nothing accepted yet."""
    done = select(Upload.client_id).where(Upload.round_id == Round.id, Upload.state == "ACCEPTED")
    wanted = (
        select(Assignment.client_id)
        .join(Round, Round.id == Assignment.round_id)
        .where(Round.run == run, Round.state == "COLLECTING", Assignment.client_id.not_in(done))
    )
    return frozenset(tx.session.scalars(wanted))
