"""Finds the task that a participant has in a run now."""

import json
from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import urlencode

from flexlora_server.database.queries import rounds, runs, uploads
from flexlora_server.database.schema import Assignment, Round, Run
from flexlora_server.database.timestamps import rfc3339
from flexlora_server.database.transactions import Store, Tx
from flexlora_server.errors import Refusal
from flexlora_server.lifecycle.serve_slice import slice_blob
from flexlora_server.lifecycle.validation import trained_part
from flexlora_server.state_machine import FINAL_STATES
from flexlora_server.storage import BlobStore
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import AdapterRef, Task
from flexlora_shared.problems import Code
from flexlora_shared.ranks import held_ranks


def require_not_over(run: Run) -> None:
    """Refuse a run that is over, so that its participants stop.

    Raises:
        Refusal: RUN_OVER, with the run's final state in the context.
    """
    if run.state in FINAL_STATES:
        raise Refusal(
            Code.RUN_OVER, f"Run {run.name!r} is {run.state}; its last adapter can be exported.", state=run.state
        )


def require_declared(store: Store, name: str, client: str, instance: str | None) -> str | None:
    """Refuse a client that has declared no rank in the run, or whose run is over; the instance that declared.

    Raises:
        Refusal: RUN_NOT_FOUND, RUN_OVER, NOT_DECLARED, SUPERSEDED.
    """
    with store.reading() as tx:
        require_not_over(runs.get(tx, name))
        participation = rounds.participation(tx, name, client)
        if participation is None:
            raise Refusal(Code.NOT_DECLARED, f"Declare a rank for run {name!r} first: PUT /v1/runs/{name}/declaration.")
        require_newest_agent(tx, name, client, instance)
        return participation.instance


def require_newest_agent(tx: Tx, name: str, client: str, instance: str | None) -> None:
    """Refuse an agent when another one with its key has declared since. Agents of earlier releases name no instance.

    Raises:
        Refusal: SUPERSEDED.
    """
    newest = rounds.participation(tx, name, client)
    if instance is None or newest is None or newest.instance in {None, instance}:
        return
    device = Declaration.model_validate(newest.declaration).hardware.device or "an unnamed device"
    raise Refusal(
        Code.SUPERSEDED,
        f"Another agent with this key declared at {rfc3339(newest.declared_at)} on {device}; stop one of the two, or enroll "
        "this one with a token of its own.",
        declared_at=rfc3339(newest.declared_at),
        device=device,
    )


def find_task(store: Store, blobs: BlobStore, name: str, client: str, instance: str | None) -> tuple[Task | None, int]:
    """The client's task, None without one, and the version of the run in which it was read.

    Raises:
        Refusal: RUN_NOT_FOUND, RUN_OVER, SUPERSEDED.
    """
    with store.reading() as tx:
        run = runs.get(tx, name)
        require_not_over(run)
        require_newest_agent(tx, name, client, instance)
        spec, round_ = runs.spec_of(run), rounds.current(tx, name)
        if round_ is None or round_.deadline is None or round_.state != "COLLECTING":
            return None, run.version
        assignment = rounds.find_assignment(tx, round_, client)
        if assignment is None or assignment.round_id != round_.id:  # that of an earlier attempt is for uploads alone
            return None, run.version
        if assignment.failed_at is not None:
            return None, run.version
        if uploads.find_accepted(tx, round_, client) is not None:
            return None, run.version
        uploading = uploads.find_open(tx, round_, client) is not None  # it may still arrive within the grace period
        if tx.now >= round_.deadline + timedelta(seconds=spec.grace if uploading else 0):
            return None, run.version
    held = held_ranks(assignment.rank, assignment.rank_pattern, assignment.hold_rank)
    blob = slice_blob(store, blobs, name, round_.number - 1, *held)
    return task_message(spec, round_, assignment, blob.sha256, blob.size), run.version


def task_message(spec: RunSpec, round_: Round, assignment: Assignment, sha256: str, size: int) -> Task:
    """The task of a place in a round that began, with the digest and the size in bytes of the slice that it starts from."""
    assert round_.deadline is not None, "a collecting round has a deadline"
    path = f"/v1/runs/{spec.name}/rounds/{round_.number - 1}"
    query = _query(*held_ranks(assignment.rank, assignment.rank_pattern, assignment.hold_rank))
    return Task(
        run=spec.name,
        round=round_.number,
        attempt=round_.attempt,
        rank=assignment.rank,
        rank_pattern=dict(assignment.rank_pattern),
        hold_rank=assignment.hold_rank,
        deadline=rfc3339(round_.deadline),
        adapter=AdapterRef(
            href=f"{path}/adapter?{query}", config_href=f"{path}/adapter-config?{query}", sha256=sha256, size=size
        ),
        trainable=trained_part(spec, round_.number, assignment),
        spec=spec,
    )


def _query(rank: int, pattern: Mapping[str, int]) -> str:
    parameters = {"rank": str(rank)} | ({"pattern": json.dumps(pattern)} if pattern else {})
    return urlencode(parameters)
