"""What a participant of a run has to do now."""

import json
from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import urlencode

from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.database.queries import rounds, runs, uploads
from flexlora_server.database.schema import Assignment, Round, Run
from flexlora_server.database.timestamps import rfc3339
from flexlora_server.database.transactions import Store
from flexlora_server.errors import Refusal
from flexlora_server.lifecycle.serve_slice import slice_blob
from flexlora_server.state_machine import OVER
from flexlora_server.storage import BlobStore
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import AdapterRef, Task
from flexlora_shared.problems import Code


def refuse_over(run: Run) -> None:
    """Tell a participant that it can stop.

    Raises:
        Refusal: RUN_OVER, with the run's final state in the context.
    """
    if run.state in OVER:
        raise Refusal(
            Code.RUN_OVER, f"Run {run.name!r} is {run.state}; its last adapter can be exported.", state=run.state
        )


def check(store: Store, name: str, client: str) -> None:
    """Refuse whoever has nothing to wait for.

    Raises:
        Refusal: RUN_NOT_FOUND, RUN_OVER, NOT_DECLARED.
    """
    with store.reading() as tx:
        refuse_over(runs.get(tx, name))
        if rounds.declaration_of(tx, name, client) is None:
            raise Refusal(Code.NOT_DECLARED, f"Declare a rank for run {name!r} first: PUT /v1/runs/{name}/declaration.")


def find(store: Store, blobs: BlobStore, name: str, client: str) -> tuple[Task | None, int]:
    """The client's task, if it has one, and the run's version it was looked up in.

    Raises:
        Refusal: RUN_NOT_FOUND, RUN_OVER.
    """
    with store.reading() as tx:
        run = runs.get(tx, name)
        refuse_over(run)
        spec, round_ = runs.spec_of(run), rounds.current(tx, name)
        if round_ is None or round_.deadline is None or round_.state != "COLLECTING":
            return None, run.version
        place = rounds.assignment(tx, round_, client)
        here = place is not None and place.round_id == round_.id  # another attempt's place is for uploads alone
        if place is None or not here or uploads.accepted(tx, round_, client) is not None:
            return None, run.version
        under_way = uploads.under_way(tx, round_, client) is not None  # in grace it may still arrive
        if tx.now >= round_.deadline + timedelta(seconds=spec.grace if under_way else 0):
            return None, run.version
    blob = slice_blob(store, blobs, name, round_.number - 1, place.rank, place.rank_pattern)
    return _message(spec, round_, place, blob.sha256, blob.size), run.version


def _message(spec: RunSpec, round_: Round, place: Assignment, sha256: str, size: int) -> Task:
    assert round_.deadline is not None, "a collecting round has a deadline"
    path = f"/v1/runs/{spec.name}/rounds/{round_.number - 1}"
    query = _query(place.rank, place.rank_pattern)
    return Task(
        run=spec.name,
        round=round_.number,
        attempt=round_.attempt,
        rank=place.rank,
        rank_pattern=dict(place.rank_pattern),
        deadline=rfc3339(round_.deadline),
        adapter=AdapterRef(
            href=f"{path}/adapter?{query}", config_href=f"{path}/adapter-config?{query}", sha256=sha256, size=size
        ),
        trainable=strategy(spec.strategy).agents_train,
        spec=spec,
    )


def _query(rank: int, pattern: Mapping[str, int]) -> str:
    asked = {"rank": str(rank)} | ({"pattern": json.dumps(pattern)} if pattern else {})
    return urlencode(asked)
