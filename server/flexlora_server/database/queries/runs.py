"""Queries of runs: creation, the operator's actions, and the locked row that serialises every change of one run."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from flexlora_server.database.queries import events
from flexlora_server.database.schema import Participation, Run
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Refusal
from flexlora_server.state_machine import Action, next_run_state
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.problems import Code


def create(tx: Tx, spec: RunSpec) -> Run:
    """A new run in DRAFT.

    Raises:
        Refusal: RUN_EXISTS.
    """
    run = Run(name=spec.name, spec=spec.model_dump(mode="json"), state="DRAFT", version=0, created_at=tx.now)
    tx.session.add(run)
    try:
        tx.session.flush()
    except IntegrityError:  # the primary key decides, not a query beforehand: two requests may create it at once
        raise Refusal(Code.RUN_EXISTS, f"A run named {spec.name!r} exists; choose another name.") from None
    start = "" if spec.start_from is None else f", from round {spec.start_from.round} of run {spec.start_from.run}"
    told = f"strategy {spec.strategy}, {spec.rounds} rounds, ranks {list(spec.ranks)}{start}"
    events.record(tx, run, "run-created", told)
    return run


def get(tx: Tx, name: str) -> Run:
    """A run, to read.

    Raises:
        Refusal: RUN_NOT_FOUND.
    """
    return _require_found(tx.session.get(Run, name), name)


def lock(tx: Tx, name: str) -> Run:
    """A run, to change: other changes of it wait until this transaction ends.

    Raises:
        Refusal: RUN_NOT_FOUND.
    """
    # no key update: rows that only name the run need not wait
    return _require_found(tx.session.get(Run, name, with_for_update={"key_share": True}, populate_existing=True), name)


def _require_found(run: Run | None, name: str) -> Run:
    if run is None:
        raise Refusal(Code.RUN_NOT_FOUND, f"There is no run named {name[:64]!r}; GET /v1/runs lists them.")
    return run


def spec_of(run: Run) -> RunSpec:
    """The run's definition."""
    return RunSpec.model_validate(run.spec)


def list_all(tx: Tx) -> Sequence[Run]:
    """All runs, newest first."""
    return tx.session.scalars(select(Run).order_by(Run.created_at.desc(), Run.name)).all()


def apply_action(tx: Tx, run: Run, action: Action) -> None:
    """Apply an operator's action to a locked run.

    Raises:
        Refusal: RUN_STATE.
    """
    after = next_run_state(run.state, action)  # type: ignore[arg-type]
    if after is None:
        raise Refusal(Code.RUN_STATE, f"Run {run.name!r} is {run.state}; {action} is not possible.", state=run.state)
    if after != run.state:
        set_state(tx, run, after, f"{action} by the operator")


def set_state(tx: Tx, run: Run, state: str, detail: str) -> None:
    """Write a locked run's state and log it."""
    run.state = state
    run.reason = detail if state in {"CANCELLED", "FAILED"} else None
    events.record(tx, run, f"run-{state.lower()}", detail)


def count_participants(tx: Tx, name: str) -> int:
    """How many clients have declared a rank in the run."""
    counted = select(func.count()).select_from(Participation).where(Participation.run == name)
    return tx.session.scalar(counted) or 0
