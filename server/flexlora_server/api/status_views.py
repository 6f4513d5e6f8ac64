"""Builds the status messages of runs and rounds from the database's rows."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from flexlora_server import state_machine as machine
from flexlora_server.database.queries import adapters, inputs, rounds, runs, uploads
from flexlora_server.database.schema import Client, Round, RoundModules, Run, Upload
from flexlora_server.database.timestamps import rfc3339, rfc3339_or_none
from flexlora_server.database.transactions import Tx
from flexlora_server.lifecycle.wait_reasons import waiting_for
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec, RunStatus
from flexlora_shared.messages.status import (
    AggregationMetrics,
    AggregationSummary,
    EnergyKept,
    EvaluationSummary,
    ModuleMetrics,
    ParticipantCounts,
    ParticipantStatus,
    RankCount,
    RoundDetail,
    RoundInput,
    RoundSummary,
    UpdateMetrics,
)


def run_status(tx: Tx, run: Run, window: float) -> RunStatus:
    """A run's status."""
    spec = runs.spec_of(run)
    round_ = rounds.current(tx, run.name)
    going = round_ is not None and run.state in {"RUNNING", "PAUSED"}
    return RunStatus(
        name=run.name,
        state=run.state,
        strategy=spec.strategy,
        strategy_options=spec.strategy_options,
        model=spec.model.id,
        ranks=spec.ranks,
        rounds=spec.rounds,
        rounds_published=adapters.latest_number(tx, run.name) or 0,
        current_round=round_.number if going and round_ else None,
        round_state=round_.state if going and round_ else None,
        waiting_for=_run_waits_for(tx, run, spec, round_, window),
        participants=runs.count_participants(tx, run.name),
        created_at=rfc3339(run.created_at),
        reason=run.reason,
    )


def _run_waits_for(tx: Tx, run: Run, spec: RunSpec, round_: Round | None, window: float) -> str:
    if run.state == "DRAFT":
        return "Waiting for the operator to start it."
    if round_ is None or run.state in machine.FINAL_STATES:
        return f"Nothing: the run is {run.state.lower()}."
    return _round_waits_for(tx, run, spec, round_, _present(tx, round_, window))


def _present(tx: Tx, round_: Round, window: float) -> Mapping[str, str]:
    """The clients present for an OPEN round; not queried for a round in another state, where nothing depends on it."""
    return rounds.present_clients(tx, round_, window) if round_.state == "OPEN" else {}


def _round_waits_for(tx: Tx, run: Run, spec: RunSpec, round_: Round, present: Mapping[str, str]) -> str:
    carried = uploads.clients_carried_over(tx, round_) if round_.state == "OPEN" else ()
    return waiting_for(spec, rounds.round_view(tx, run, round_), present, carried, tx.now)


def round_summary(tx: Tx, run: Run, round_: Round, window: float) -> RoundSummary:
    """One round: its state, what it waits for, its metrics."""
    assigned = rounds.list_assignments(tx, round_)
    present = _present(tx, round_, window)
    published = tx.session.get(RoundModules, round_.id)
    return RoundSummary(
        run=run.name,
        number=round_.number,
        attempt=round_.attempt,
        state=round_.state,
        opened_at=rfc3339(round_.opened_at),
        deadline=rfc3339_or_none(round_.deadline),
        published_at=rfc3339_or_none(round_.published_at),
        waiting_for=_round_waits_for(tx, run, runs.spec_of(run), round_, present),
        failures=round_.failures,
        reason=round_.reason,
        participants=ParticipantCounts(
            present=len(present),
            assigned=len(assigned),
            uploading=rounds.count_uploads(tx, round_, "OPEN"),
            accepted=rounds.count_uploads(tx, round_, "ACCEPTED"),
            failed=len(failures(tx, round_)),
        ),
        by_rank=tuple(
            RankCount(rank=rank, hold_rank=hold_rank or None, participants=count)
            for (rank, hold_rank), count in sorted(Counter((a.rank, a.hold_rank or 0) for a in assigned).items())
        ),
        bytes_received=uploads.bytes_received(tx, round_),
        train_metrics=_train_metrics([row for row in uploads.list_of_round(tx, round_) if row.state == "ACCEPTED"]),
        evaluations=_evaluations(tx, run.name, round_.number),
        **_aggregation_fields(published),
        aggregation_seconds=round_.aggregation_seconds,
    )


def _aggregation_fields(published: RoundModules | None) -> dict[str, Any]:
    """The fields of a summary that describe the aggregation of a published round."""
    if published is None:
        return {"energy_kept": ()}
    energy_kept = tuple(EnergyKept.model_validate(energy) for energy in published.energy_kept)
    fields: dict[str, Any] = {
        "energy_kept": energy_kept,
        "energy_above_smallest_rank": 1 - energy_kept[0].share if energy_kept else None,
    }
    if published.summary is not None:
        fields["aggregation"] = AggregationSummary.model_validate_json(json.dumps(published.summary))
    return fields


def _update_metrics(published: RoundModules | None) -> AggregationMetrics | None:
    if published is None or published.updates is None:
        return None
    return AggregationMetrics.model_validate_json(json.dumps(published.updates))


def round_detail(tx: Tx, run: Run, round_: Round, window: float, *, operator: bool) -> RoundDetail:
    """A round with its modules; participants, inputs and cosines for the operator alone."""
    published = tx.session.get(RoundModules, round_.id)
    modules = published.modules if published else []
    updates = _update_metrics(published) if operator else None
    frozen = inputs.list_frozen(tx, round_) if operator else ()
    became = _became(frozen, updates)
    return RoundDetail(
        summary=round_summary(tx, run, round_, window),
        modules=tuple(ModuleMetrics.model_validate_json(json.dumps(module)) for module in modules),
        participants=_participants(tx, round_, frozen, became) if operator else None,
        inputs=tuple(_input(item, became.get(item.upload.id)) for item in frozen) if operator else None,
        cosines=_cosines(frozen, updates),
    )


def _became(frozen: Sequence[inputs.FrozenInput], updates: AggregationMetrics | None) -> dict[str, UpdateMetrics]:
    """What became of each update, by the id of its upload: a participant may have an own one and late ones in a round."""
    if updates is None:
        return {}
    counted = [item.upload.id for item in frozen if not item.excluded]
    return dict(zip(counted, updates.updates, strict=True))


def _input(item: inputs.FrozenInput, update: UpdateMetrics | None) -> RoundInput:
    return RoundInput(
        upload_id=item.upload.id,
        client_id=item.upload.client_id,
        round=item.round,
        staleness=item.staleness,
        excluded=item.excluded,
        update=update,
    )


def _cosines(
    frozen: Sequence[inputs.FrozenInput], updates: AggregationMetrics | None
) -> tuple[tuple[float | None, ...], ...] | None:
    """In the order that the protocol promises: by client id, then by the round that an update was trained for."""
    if updates is None or not updates.cosines:
        return None
    counted = [item for item in frozen if not item.excluded]
    order = sorted(range(len(counted)), key=lambda index: (counted[index].upload.client_id, counted[index].round))
    return tuple(tuple(updates.cosines[row][column] for column in order) for row in order)


def _participants(
    tx: Tx, round_: Round, frozen: Sequence[inputs.FrozenInput], became: Mapping[str, UpdateMetrics]
) -> tuple[ParticipantStatus, ...]:
    """The round's participants, then those without a place in it whose late updates count here."""
    late = _late_updates(frozen)
    # nobody has both an open and an accepted one
    upload_by_client = {row.client_id: row for row in uploads.list_of_round(tx, round_)}
    failed, statuses = failures(tx, round_), []
    # those that failed in an earlier attempt are left out of this one
    listed = {row.client_id: row for row in (*rounds.list_failed(tx, round_), *rounds.list_assignments(tx, round_))}
    for assignment in listed.values():
        upload = upload_by_client.get(assignment.client_id)
        row = rounds.participation(tx, round_.run, assignment.client_id)
        assert row is not None, "only declared participants are assigned"
        declaration = Declaration.model_validate(row.declaration)
        statuses.append(
            ParticipantStatus(
                client_id=assignment.client_id,
                name=tx.session.get_one(Client, assignment.client_id).name,
                rank=assignment.rank,
                hold_rank=assignment.hold_rank,
                state=_participant_state(upload, failed=assignment.client_id in failed),
                failure=failed.get(assignment.client_id),
                examples=declaration.examples if upload is None else upload.announced["examples"],
                hardware=declaration.hardware,
                declared_at=rfc3339(row.declared_at),
                bytes_received=0 if upload is None else upload.offset,
                update=None if upload is None else became.get(upload.id),
                late=tuple(became[one.id] for one in late.pop(assignment.client_id, ()) if one.id in became),
            )
        )
    return tuple(statuses) + tuple(_without_a_place(tx, round_, uploads_, became) for uploads_ in late.values())


def _late_updates(frozen: Sequence[inputs.FrozenInput]) -> dict[str, list[Upload]]:
    """The uploads that came late and count here, by client id, in the order of the rounds that they were trained for."""
    late = defaultdict[str, list[Upload]](list)
    for item in sorted(frozen, key=lambda item: (item.upload.client_id, item.round)):
        if item.staleness and not item.excluded:
            late[item.upload.client_id].append(item.upload)
    return dict(late)


def _without_a_place(
    tx: Tx, round_: Round, late: Sequence[Upload], became: Mapping[str, UpdateMetrics]
) -> ParticipantStatus:
    newest = late[-1]
    row = rounds.participation(tx, round_.run, newest.client_id)
    assert row is not None, "only declared participants are assigned"
    return ParticipantStatus(
        client_id=newest.client_id,
        name=tx.session.get_one(Client, newest.client_id).name,
        rank=newest.announced["rank"],
        state="late",
        examples=newest.announced["examples"],
        hardware=Declaration.model_validate(row.declaration).hardware,
        declared_at=rfc3339(row.declared_at),
        bytes_received=0,
        late=tuple(became[one.id] for one in late if one.id in became),
    )


def _participant_state(upload: Upload | None, *, failed: bool) -> str:
    if failed:
        return "failed"
    return "assigned" if upload is None else "accepted" if upload.state == "ACCEPTED" else "uploading"


def failures(tx: Tx, round_: Round) -> dict[str, str]:
    """What the participants failed on that are not waited for, by client id; for the operator alone."""
    failed = {row.client_id: row.failure or {} for row in rounds.list_failed(tx, round_)}
    return {client: f"{failure['kind']}: {failure['reason']}" for client, failure in failed.items()}


def _train_metrics(accepted: Sequence[Upload]) -> dict[str, float]:
    """Every metric's mean over the uploads that report it, weighted by training examples."""
    sums: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for upload in accepted:
        for name, value in upload.announced["metrics"].items():
            sums[name].append((value, upload.announced["examples"]))
    return {name: _mean(values) for name, values in sorted(sums.items())}


def _mean(values: list[tuple[float, int]]) -> float:
    total = math.fsum(value * weight for value, weight in values)  # whatever the order, the same sum
    return total / sum(weight for _, weight in values)


def _evaluations(tx: Tx, run: str, number: int) -> tuple[EvaluationSummary, ...]:
    sums: defaultdict[tuple[str, str, int], list[tuple[float, int]]] = defaultdict(list)
    for row, declared in adapters.list_evaluations(tx, run, number):
        for name, value in row.metrics.items():
            sums["trainer" if declared else "evaluator", name, row.rank].append((value, row.examples))
    return tuple(
        EvaluationSummary(metric=name, rank=rank, value=_mean(values), participants=len(values), role=role)
        for (role, name, rank), values in sorted(sums.items(), key=lambda item: (item[0][0] != "trainer", item[0]))
    )
