"""Moves runs on: asks the state machine what follows and writes it, inside the caller's transaction.

Called by whoever brought news: an accepted upload, the clock, a worker that published or failed, the operator.
"""

from collections.abc import Collection
from dataclasses import dataclass

from flexlora_server import state_machine as machine
from flexlora_server.database.queries import events, inputs, rounds, runs, uploads
from flexlora_server.database.schema import Round, Run
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Refusal
from flexlora_shared.problems import Code


@dataclass(frozen=True)
class Due:
    """What has become possible in a run's current round, and the version of the round that this was decided on."""

    decision: machine.Begin | machine.Aggregate | machine.Abandon
    round_id: int
    version: int


def start(tx: Tx, run: Run) -> None:
    """Start a locked DRAFT run: round 0 waits for a worker to publish it."""
    runs.act(tx, run, "start")
    rounds.open_(tx, run, 0)


def cancel(tx: Tx, run: Run) -> None:
    """Cancel a locked run; its unfinished round is abandoned."""
    runs.act(tx, run, "cancel")
    uploads.cancel_open_of_run(tx, run.name)
    round_ = rounds.current(tx, run.name)
    if round_ is not None and round_.state in {"OPEN", "COLLECTING", "AGGREGATING", "FAILED"}:
        rounds.move(tx, run, round_, "ABANDONED", "the run was cancelled")


def retry(tx: Tx, run: Run, round_: Round, exclude: Collection[str]) -> None:
    """Aggregate a locked run's failed or failing round again, without the uploads named. A worker at it loses its lease.

    Raises:
        Refusal: ROUND_STATE, UPLOAD_NOT_FOUND, INVALID_REQUEST.
    """
    if round_.state not in {"FAILED", "AGGREGATING"} or run.state in machine.OVER:
        raise Refusal(
            Code.ROUND_STATE,
            f"Round {round_.number} is {round_.state} and its run {run.state}; only an aggregation can be tried again.",
            state=round_.state,
        )
    inputs.exclude(tx, round_, exclude)
    round_.failures, round_.reason, round_.lease_until, round_.lease_holder = 0, None, None, None
    round_.lease_token += 1
    tx.session.flush()
    without = f", without {len(exclude)} uploads" if exclude else ""
    if round_.state == "FAILED":
        runs.act(tx, run, "retry")
        rounds.move(tx, run, round_, "AGGREGATING", f"retry by the operator{without}")
    else:
        events.record(tx, run, "aggregation-retried", f"retry by the operator{without}", round_.number)


def due(tx: Tx, run: Run, window: float) -> Due | None:
    """What the clock or an arrival has made possible in the run's current round; None while it waits."""
    round_ = rounds.current(tx, run.name)
    if round_ is None:
        return None
    spec, view = runs.spec_of(run), rounds.view(tx, run, round_)
    decision: machine.Begin | machine.Aggregate | machine.Abandon | machine.Wait
    if round_.state == "OPEN":
        present = rounds.present(tx, run.name, window)
        decision = machine.gather(spec, view, present, tx.now, uploads.carried(tx, round_))
    elif round_.state == "COLLECTING":
        decision = machine.judge(spec, view, tx.now)
    else:
        return None
    return None if isinstance(decision, machine.Wait) else Due(decision, round_.id, round_.version)


def apply(tx: Tx, run: Run, found: Due) -> None:
    """Do in a locked run what was found due; nothing where the round has changed since: it is looked at again."""
    round_ = rounds.current(tx, run.name)
    if round_ is None or (round_.id, round_.version) != (found.round_id, found.version):
        return
    if isinstance(found.decision, machine.Begin) and run.state != "RUNNING":  # paused meanwhile
        return
    match found.decision:
        case machine.Begin(participants, deadline):
            rounds.assign(tx, round_, participants, uploads.carried(tx, round_))
            round_.deadline = deadline
            tx.session.flush()
            rounds.move(tx, run, round_, "COLLECTING", f"{len(participants)} participants are assigned")
        case machine.Aggregate():
            _aggregate(tx, run, round_)
        case machine.Abandon():
            _again(tx, run, round_, found.decision.why)


def advance(tx: Tx, run: Run, window: float) -> None:
    """Do what is due in a locked run's current round."""
    found = due(tx, run, window)
    if found is not None:
        apply(tx, run, found)


def accepted(tx: Tx, run: Run, round_: Round, counts_in: int, window: float) -> None:
    """An update of a locked run counts: its round may be complete now."""
    late = "" if counts_in == round_.number else f", late: it counts in round {counts_in}"
    rounds.touch(tx, round_)
    events.record(tx, run, "update-accepted", f"an update was accepted{late}", round_.number)
    advance(tx, run, window)


def _aggregate(tx: Tx, run: Run, round_: Round) -> None:
    spec = runs.spec_of(run)
    if spec.late_updates == "discard":
        uploads.cancel_open(tx, round_)
    found = inputs.freeze(tx, round_)
    rounds.move(tx, run, round_, "AGGREGATING", f"{found} updates are in")


def _again(tx: Tx, run: Run, round_: Round, why: str) -> None:
    """The next attempt goes on with what this one has: nothing that was accepted is lost."""
    round_.reason = why
    rounds.move(tx, run, round_, "ABANDONED", why)
    uploads.carry(tx, round_, rounds.open_(tx, run, round_.number, round_.attempt + 1))


def published(tx: Tx, run: Run, round_: Round) -> None:
    """A worker has published a locked run's round: the next one opens, or the run is complete."""
    round_.published_at, round_.lease_until, round_.lease_holder, round_.reason = tx.now, None, None, None
    rounds.move(tx, run, round_, "PUBLISHED", f"adapter {round_.number} is published")
    if machine.after_publication(runs.spec_of(run), round_.number) == "complete":
        uploads.cancel_open_of_run(tx, run.name)
        runs.set_state(tx, run, "COMPLETED", f"{round_.number} rounds are published")
    else:
        rounds.open_(tx, run, round_.number + 1)


def failed(tx: Tx, run: Run, round_: Round, why: str) -> None:
    """An aggregation failed: it is tried again later, or the run waits for its operator."""
    round_.failures += 1
    round_.reason, round_.lease_holder = why, None
    decision = machine.after_failure(round_.failures, tx.now)
    if isinstance(decision, machine.Retry):
        round_.lease_until = decision.at
        events.record(tx, run, "aggregation-failed", f"attempt {round_.failures}: {why}", round_.number)
    else:
        round_.lease_until = None
        rounds.move(tx, run, round_, "FAILED", why)
        runs.set_state(tx, run, "FAILED", f"aggregating round {round_.number} failed {round_.failures} times: {why}")
