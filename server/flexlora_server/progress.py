"""Moves runs on: asks the state machine what follows and writes it, inside the caller's transaction.

Called by whoever brought news: an accepted upload, the clock, a worker that published or failed.
"""

from flexlora_server import rounds as machine
from flexlora_server.records import events, rounds, runs, uploads
from flexlora_server.store import Tx
from flexlora_server.tables import Round, Run


def start(tx: Tx, run: Run) -> None:
    """Start a locked DRAFT run: round 0 waits for a worker to publish it."""
    runs.act(tx, run, "start")
    rounds.open_(tx, run, 0)


def cancel(tx: Tx, run: Run) -> None:
    """Cancel a locked run; its unfinished round is abandoned."""
    runs.act(tx, run, "cancel")
    round_ = rounds.current(tx, run.name)
    if round_ is not None and round_.state in {"OPEN", "COLLECTING", "AGGREGATING"}:
        uploads.cancel_open(tx, round_)
        rounds.move(tx, run, round_, "ABANDONED", "the run was cancelled")


def due(tx: Tx, run: Run, window: float) -> machine.Begin | machine.Aggregate | machine.Abandon | None:
    """What the clock or an arrival has made possible in the run's current round; None while it waits."""
    round_ = rounds.current(tx, run.name)
    if round_ is None:
        return None
    decision: machine.Begin | machine.Aggregate | machine.Abandon | machine.Wait
    if round_.state == "OPEN":
        present = rounds.present(tx, run.name, window)
        decision = machine.gather(runs.spec_of(run), rounds.view(tx, run, round_), present, tx.now)
    elif round_.state == "COLLECTING":
        decision = machine.judge(runs.spec_of(run), rounds.view(tx, run, round_), tx.now)
    else:
        return None
    return None if isinstance(decision, machine.Wait) else decision


def advance(tx: Tx, run: Run, window: float) -> None:
    """Do what is due in a locked run's current round."""
    decision = due(tx, run, window)
    round_ = rounds.current(tx, run.name)
    if decision is None or round_ is None:
        return
    match decision:
        case machine.Begin():
            rounds.assign(tx, round_, decision.participants)
            round_.deadline = decision.deadline
            tx.session.flush()
            rounds.move(tx, run, round_, "COLLECTING", f"{len(decision.participants)} participants are assigned")
        case machine.Aggregate():
            uploads.cancel_open(tx, round_)
            rounds.move(tx, run, round_, "AGGREGATING", f"{rounds.uploads_in(tx, round_, 'ACCEPTED')} updates are in")
        case machine.Abandon():
            _again(tx, run, round_, decision.why)


def accepted(tx: Tx, run: Run, round_: Round, window: float) -> None:
    """An update of a locked run's collecting round counts: the round may be complete now."""
    events.record(tx, run, "update-accepted", "an update was accepted", round_.number)
    advance(tx, run, window)


def _again(tx: Tx, run: Run, round_: Round, why: str) -> None:
    uploads.cancel_open(tx, round_)
    round_.reason = why
    rounds.move(tx, run, round_, "ABANDONED", why)
    rounds.open_(tx, run, round_.number, round_.attempt + 1)


def published(tx: Tx, run: Run, round_: Round) -> None:
    """A worker has published a locked run's round: the next one opens, or the run is complete."""
    round_.published_at = tx.now
    rounds.move(tx, run, round_, "PUBLISHED", f"adapter {round_.number} is published")
    if machine.after_publication(runs.spec_of(run), round_.number) == "complete":
        runs.set_state(tx, run, "COMPLETED", f"{round_.number} rounds are published")
    else:
        rounds.open_(tx, run, round_.number + 1)


def failed(tx: Tx, run: Run, round_: Round, why: str) -> None:
    """An aggregation failed: it is tried again later, or the run ends."""
    round_.failures += 1
    round_.reason = why
    decision = machine.after_failure(round_.failures, tx.now)
    if isinstance(decision, machine.Retry):
        round_.lease_until = decision.at
        events.record(tx, run, "aggregation-failed", f"attempt {round_.failures}: {why}", round_.number)
    else:
        rounds.move(tx, run, round_, "FAILED", why)
        runs.set_state(tx, run, "FAILED", f"aggregating round {round_.number} failed {round_.failures} times: {why}")
