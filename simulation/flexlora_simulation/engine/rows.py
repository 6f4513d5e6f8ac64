"""Rows of the results' tables, from what the coordinator holds."""

from typing import Literal

from flexlora_shared.messages.uploads import UploadCreate
from flexlora_simulation.engine.coordinator import Published
from flexlora_simulation.engine.places import Place
from flexlora_simulation.engine.virtual_clock import START
from flexlora_simulation.results.tables import ParticipantRow, RoundRow

Outcome = Literal["accepted", "late", "discarded", "vanished", "failed"]


def round_row(published: Published, wall_seconds: float) -> RoundRow:
    """A round's row; `wall_seconds` since the simulation began or was resumed."""
    view = published.view
    return RoundRow(
        round=view.number,
        attempt=view.attempt,
        virtual_seconds=(published.at - START).total_seconds(),
        assigned=view.assigned,
        accepted=view.accepted,
        adapter_sha256=published.adapter_sha256,
        wall_seconds=wall_seconds,
        aggregation_seconds=published.seconds,
    )


def outcome_of(place: Place, counts_in: int | None) -> Outcome:
    """What became of an accepted update that counts in round `counts_in`."""
    return "accepted" if counts_in == place.task.round else "late"


def place_row(
    place: Place,
    outcome: Outcome,
    seconds: float | None = None,
    upload: UploadCreate | None = None,
    cpu_seconds: float = 0.0,
    reason: str = "",
) -> ParticipantRow:
    """A participant's row; `seconds` from its assignment until its update arrived, `upload` what it sent, if anything."""
    task, metrics = place.task, {} if upload is None else upload.metrics
    steps = metrics.get("train_steps")
    return ParticipantRow(
        round=task.round,
        attempt=task.attempt,
        participant=place.name,
        rank=task.rank,
        hold_rank=task.hold_rank or task.rank,
        outcome=outcome,
        virtual_seconds=seconds,
        examples=0 if upload is None else upload.examples,
        train_loss=metrics.get("train_loss"),
        steps=None if steps is None else int(steps),
        bytes_up=0 if upload is None else upload.size,
        bytes_down=task.adapter.size,
        cpu_seconds=cpu_seconds,
        reason=reason,
    )
