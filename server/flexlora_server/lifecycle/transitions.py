"""Applies transitions of runs and rounds: the state machine decides, this module writes, in the caller's transaction.

Called after an accepted upload, on a poll, by a worker that published or failed, and by the operator's routes.
"""

from collections.abc import Collection
from dataclasses import dataclass

from flexlora_server import state_machine as machine
from flexlora_server.database.queries import adapters, events, inputs, rounds, runs, uploads
from flexlora_server.database.schema import Round, Run
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Refusal
from flexlora_server.storage import Blob
from flexlora_shared.messages.tasks import Failure
from flexlora_shared.problems import Code


@dataclass(frozen=True)
class PendingTransition:
    """A transition that a run's current round is due for, and the version of the round in which that was decided."""

    decision: machine.Begin | machine.Aggregate | machine.Abandon
    round_id: int
    version: int


def start(tx: Tx, run: Run) -> None:
    """Start a locked DRAFT run: round 0 waits for a worker to publish it."""
    runs.apply_action(tx, run, "start")
    rounds.open_attempt(tx, run, 0)


def cancel(tx: Tx, run: Run) -> None:
    """Cancel a locked run; its unfinished round is abandoned."""
    runs.apply_action(tx, run, "cancel")
    uploads.cancel_open_of_run(tx, run.name)
    round_ = rounds.current(tx, run.name)
    if round_ is not None and round_.state in {"OPEN", "COLLECTING", "AGGREGATING", "FAILED"}:
        rounds.change_state(tx, run, round_, "ABANDONED", "the run was cancelled")


def retry(tx: Tx, run: Run, round_: Round, exclude: Collection[str]) -> None:
    """Aggregate a locked run's failed or failing round again, without the uploads in `exclude`. Its worker loses the lease.

    Raises:
        Refusal: ROUND_STATE, UPLOAD_NOT_FOUND, INVALID_REQUEST.
    """
    if round_.state not in {"FAILED", "AGGREGATING"} or run.state in machine.FINAL_STATES:
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
        runs.apply_action(tx, run, "retry")
        rounds.change_state(tx, run, round_, "AGGREGATING", f"retry by the operator{without}")
    else:
        events.record(tx, run, "aggregation-retried", f"retry by the operator{without}", round_.number)


def roll_back(tx: Tx, run: Run, to: int) -> None:
    """Publish in a locked run what its round `to` published, as a new round; the next one begins from that.

    Nothing published changes. The round under way is abandoned, with the updates that were to count in it or later; a worker
    that aggregates it loses the lease.

    Raises:
        Refusal: RUN_STATE, ADAPTER_NOT_PUBLISHED.
    """
    runs.apply_action(tx, run, "rollback")
    old, newest, why = (
        adapters.get_published(tx, run.name, to),
        rounds.current(tx, run.name),
        f"rolled back to round {to}",
    )
    assert newest is not None, "a run that published has rounds"
    plan = machine.roll_back(rounds.round_view(tx, run, newest))
    uploads.cancel_open_of_run(tx, run.name)
    if plan.abandons:
        newest.lease_token += 1
        newest.lease_until, newest.lease_holder, newest.reason = None, None, why
        tx.session.flush()
        rounds.change_state(tx, run, newest, "ABANDONED", why)
    dropped = uploads.count_nowhere(tx, run.name, plan.number)
    round_ = rounds.publish_again(tx, run, plan.number, plan.attempt, why)
    adapters.save_published(tx, run.name, plan.number, Blob(old.sha256, old.size))
    told = f"round {plan.number} publishes the adapter of round {to} again; {dropped} updates are dropped"
    events.record(tx, run, "run-rolled-back", told, plan.number)
    _go_on(tx, run, round_)


def next_transition(tx: Tx, run: Run, window: float) -> PendingTransition | None:
    """The transition that the run's current round is due for, None while it waits."""
    round_ = rounds.current(tx, run.name)
    if round_ is None:
        return None
    spec, view = runs.spec_of(run), rounds.round_view(tx, run, round_)
    decision: machine.Begin | machine.Aggregate | machine.Abandon | machine.Wait
    if round_.state == "OPEN":
        present = rounds.present_clients(tx, round_, window)
        decision = machine.gather(spec, view, present, tx.now, uploads.clients_carried_over(tx, round_))
    elif round_.state == "COLLECTING":
        decision = machine.judge(spec, view, tx.now)
    else:
        return None
    return None if isinstance(decision, machine.Wait) else PendingTransition(decision, round_.id, round_.version)


def apply_transition(tx: Tx, run: Run, transition: PendingTransition) -> None:
    """Apply a transition to a locked run; does nothing where its round has changed since, and the next poll decides again."""
    round_ = rounds.current(tx, run.name)
    if round_ is None or (round_.id, round_.version) != (transition.round_id, transition.version):
        return
    if isinstance(transition.decision, machine.Begin) and run.state != "RUNNING":  # paused meanwhile
        return
    match transition.decision:
        case machine.Begin(participants, deadline):
            rounds.assign(tx, round_, participants, uploads.clients_carried_over(tx, round_))
            round_.deadline = deadline
            tx.session.flush()
            rounds.change_state(tx, run, round_, "COLLECTING", f"{len(participants)} participants are assigned")
        case machine.Aggregate():
            _aggregate(tx, run, round_)
        case machine.Abandon():
            _reopen(tx, run, round_, transition.decision.why)


def advance(tx: Tx, run: Run, window: float) -> None:
    """Apply the transition that a locked run's current round is due for, if there is one."""
    transition = next_transition(tx, run, window)
    if transition is not None:
        apply_transition(tx, run, transition)


def record_accepted_update(tx: Tx, run: Run, round_: Round, counts_in: int, window: float) -> None:
    """Record an accepted update of a locked run, and advance its round, which may be complete now."""
    late = "" if counts_in == round_.number else f", late: it counts in round {counts_in}"
    rounds.touch(tx, round_)
    events.record(tx, run, "update-accepted", f"an update was accepted{late}", round_.number)
    advance(tx, run, window)


def record_failed_participant(tx: Tx, run: Run, round_: Round, client: str, failure: Failure, window: float) -> None:
    """Record that a participant of a locked run cannot finish its task, and advance the round, which may end now.

    A report that comes again, or when the round or the participant's part in it is over, changes nothing.

    Raises:
        Refusal: NOT_ASSIGNED, ROUND_NOT_COLLECTING.
    """
    assignment = rounds.find_assignment_of(tx, round_, client, failure.attempt)
    accepted = uploads.find_accepted(tx, round_, client) is not None
    view = rounds.round_view(tx, run, round_)
    decision = machine.counts_as_failed(view, assigned=assignment is not None, accepted=accepted)
    if isinstance(decision, machine.Refuse):
        raise Refusal(decision.code, decision.detail)
    assert assignment is not None, "others are refused"
    if decision and assignment.failed_at is None:
        rounds.mark_failed(tx, run, round_, assignment, failure)
        advance(tx, run, window)


def _aggregate(tx: Tx, run: Run, round_: Round) -> None:
    spec = runs.spec_of(run)
    if spec.late_updates == "discard":
        uploads.cancel_open(tx, round_)
    count = inputs.freeze(tx, round_)
    rounds.change_state(tx, run, round_, "AGGREGATING", f"{count} updates are in")


def _reopen(tx: Tx, run: Run, round_: Round, why: str) -> None:
    """Abandon a round and open its next attempt, which takes over the uploads: nothing that was accepted is lost."""
    round_.reason = why
    rounds.change_state(tx, run, round_, "ABANDONED", why)
    uploads.carry_over(tx, round_, rounds.open_attempt(tx, run, round_.number, round_.attempt + 1))


def record_publication(tx: Tx, run: Run, round_: Round) -> None:
    """Record the publication of a locked run's round: the next one opens, or the run is complete."""
    round_.published_at, round_.lease_until, round_.lease_holder, round_.reason = tx.now, None, None, None
    rounds.change_state(tx, run, round_, "PUBLISHED", f"adapter {round_.number} is published")
    _go_on(tx, run, round_)


def _go_on(tx: Tx, run: Run, round_: Round) -> None:
    """Open the round behind a published one, or complete the run."""
    if machine.after_publication(runs.spec_of(run), round_.number) == "complete":
        if run.state == "COMPLETED":
            return
        uploads.cancel_open_of_run(tx, run.name)
        runs.set_state(tx, run, "COMPLETED", f"{round_.number} rounds are published")
    else:
        rounds.open_attempt(tx, run, round_.number + 1)


def record_failure(tx: Tx, run: Run, round_: Round, why: str) -> None:
    """Record a failed aggregation of a locked run: it is tried again later, or the run waits for its operator."""
    round_.failures += 1
    round_.reason, round_.lease_holder = why, None
    decision = machine.after_failure(round_.failures, tx.now)
    if isinstance(decision, machine.Retry):
        round_.lease_until = decision.at
        events.record(tx, run, "aggregation-failed", f"attempt {round_.failures}: {why}", round_.number)
    else:
        round_.lease_until = None
        rounds.change_state(tx, run, round_, "FAILED", why)
        runs.set_state(tx, run, "FAILED", f"aggregating round {round_.number} failed {round_.failures} times: {why}")
