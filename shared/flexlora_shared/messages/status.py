"""The status of rounds: figures, participants, events."""

from typing import Annotated, Literal

from pydantic import Field

from flexlora_shared.messages.base import Message, Rank, RunName, Tuple, omitted_if_default
from flexlora_shared.messages.clients import Hardware

RoundState = Literal["OPEN", "COLLECTING", "AGGREGATING", "PUBLISHED", "ABANDONED", "FAILED"]


class RankCount(Message):
    """How many participants have one rank, and hold the same."""

    rank: Annotated[int, Field(description="LoRA rank")]
    hold_rank: Annotated[
        int | None,
        Field(
            description="LoRA rank of the slice that they hold; null: the one they train",
            exclude_if=omitted_if_default(None),
        ),
    ] = None
    participants: Annotated[int, Field(description="Participants that have it")]


class ParticipantCounts(Message):
    """Participants of a round by state."""

    present: Annotated[int, Field(description="Declared and seen recently")]
    assigned: Annotated[int, Field(description="Assigned to the round")]
    uploading: Annotated[int, Field(description="Have announced an update")]
    accepted: Annotated[int, Field(description="Their update is accepted")]
    failed: Annotated[int, Field(description="Cannot finish their task, and are not waited for")] = 0


class EnergyKept(Message):
    """Share of the aggregate's energy (squared Frobenius norm, over all modules) that a slice of `rank` keeps."""

    rank: Annotated[int, Field(description="Rank of the slice")]
    share: Annotated[float, Field(description="Share kept, 0 to 1")]


class CosineRange(Message):
    """Cosines between the changes of all pairs of a round's participants."""

    least: Annotated[float, Field(description="Smallest cosine")]
    median: Annotated[float, Field(description="Median")]
    most: Annotated[float, Field(description="Largest cosine")]


class ModuleMetrics(Message):
    """One module's aggregate: its spectrum, what each served rank keeps of it, and how it was computed."""

    name: Annotated[str, Field(description="Name of the module")]
    singular_values: Annotated[tuple[float, ...], Field(description="The leading 64")]
    total_energy: Annotated[
        float, Field(description="Squared Frobenius norm; an estimate where the certificate is above 1")
    ]
    effective_rank: Annotated[
        float,
        Field(
            description="exp of the entropy of the singular values' shares; 0 where the aggregate is 0, or was published by the "
            "first version"
        ),
    ] = 0.0
    energy_kept: Annotated[tuple[EnergyKept, ...], Field(description="What a slice of each rank keeps")]
    pairwise_cosine: Annotated[
        CosineRange | None, Field(description="Null where fewer than two participants changed the module")
    ] = None
    route: Annotated[str, Field(description="How it was computed: gram, qr, eigh, svd or subspace")] = ""
    fell_back: Annotated[tuple[str, ...], Field(description="The routes that failed before, and why")] = ()
    certificate: Annotated[
        float, Field(description="The truncation's error is at most this many times the smallest possible; 1: exact")
    ] = 1.0
    seconds: Annotated[float, Field(description="Computing time on one thread")] = 0.0
    bytes_read: Annotated[int, Field(description="Bytes read of this module's uploads")] = 0


class UpdateMetrics(Message):
    """The part of one participant's update in the aggregation."""

    client_id: Annotated[str, Field(description="Id of the client")]
    weight: Annotated[
        float,
        Field(
            description="Weight with which it counts; the rest of its share counts for what it was served, or for the others"
        ),
    ]
    change_norm: Annotated[float, Field(description="Frobenius norm of its change, over all modules")]
    cosine: Annotated[
        float | None,
        Field(
            description="Mean cosine with the other participants' changes; null where there is no direction to compare"
        ),
    ]
    notes: Annotated[tuple[str, ...], Field(description="What the run's cap and filters did to it")]
    uncapped: Annotated[
        float | None,
        Field(
            description="Weight that its examples would have given it without the run's cap; null where that changed nothing",
            exclude_if=omitted_if_default(None),
        ),
    ] = None


class AggregationMetrics(Message):
    """A round's updates beside each other."""

    change_norm: Annotated[float, Field(description="Frobenius norm of a change, median over the participants")]
    pairwise_cosine: Annotated[CosineRange | None, Field(description="Cosines of all pairs of changes")]
    cosines: Annotated[
        tuple[tuple[float | None, ...], ...],
        Field(description="Cosines of all pairs, in the order of `updates`; empty beyond 32"),
    ]
    updates: Annotated[tuple[UpdateMetrics, ...], Field(description="What became of each update")]
    software: Annotated[
        dict[str, str],
        Field(description="Versions and device of the worker", exclude_if=omitted_if_default({})),
    ] = {}


class AggregationSummary(Message):
    """What a list of rounds shows of one round's aggregation."""

    pairwise_cosine: Annotated[CosineRange | None, Field(description="Cosines of all pairs of changes")]
    change_norm: Annotated[float, Field(description="Frobenius norm of a change, median over the participants")]
    filtered: Annotated[int, Field(description="Updates of which the run's filters noted something")]
    late: Annotated[
        int, Field(description="Updates that came late, for an earlier round", exclude_if=omitted_if_default(0))
    ] = 0
    capped: Annotated[
        int,
        Field(
            description="Updates that weigh less than their examples say, by the run's cap",
            exclude_if=omitted_if_default(0),
        ),
    ] = 0
    certificate: Annotated[float, Field(description="The largest of all modules' certificates")]


class EvaluationSummary(Message):
    """A metric over the participants of one rank and role, weighted by held-out examples."""

    metric: Annotated[str, Field(description="Name of the metric")]
    rank: Annotated[int, Field(description="LoRA rank of the slices evaluated")]
    value: Annotated[float, Field(description="Mean, weighted by held-out examples")]
    participants: Annotated[int, Field(description="Participants that reported it")]
    role: Annotated[
        Literal["trainer", "evaluator"] | str,
        Field(
            description="Whose data it is: of participants that declared a rank in the run, or of evaluators, who only measure",
            exclude_if=omitted_if_default("trainer"),
        ),
    ] = "trainer"


class ParticipantStatus(Message):
    """One participant of a round; shown to the operator only."""

    client_id: Annotated[str, Field(description="Id of the client")]
    name: Annotated[str, Field(description="Name given at enrollment")]
    rank: Annotated[int, Field(description="LoRA rank assigned")]
    hold_rank: Annotated[
        Rank | None,
        Field(description="LoRA rank of the slice that it holds; null: `rank`", exclude_if=omitted_if_default(None)),
    ] = None
    state: Annotated[
        Literal["assigned", "uploading", "accepted", "failed", "late"] | str,
        Field(
            description="assigned, uploading, accepted or failed; late: it has no place here, but an update of an earlier round"
        ),
    ]
    failure: Annotated[str | None, Field(description="What it failed on, and how; null where it did not")] = None
    examples: Annotated[int, Field(description="Examples trained on where the update is announced, else declared")]
    hardware: Annotated[Hardware, Field(description="What it trains on")]
    bytes_received: Annotated[int, Field(description="Bytes of its update received")]
    declared_at: Annotated[str | None, Field(description="When it last declared its rank, RFC 3339, UTC")] = None
    update: Annotated[
        UpdateMetrics | None, Field(description="What became of its update; null until the round is published")
    ] = None
    late: Annotated[
        tuple[UpdateMetrics, ...],
        Field(
            description="What became of its updates of earlier rounds that count in this one",
            exclude_if=omitted_if_default(()),
        ),
    ] = ()


class RoundSummary(Message):
    """One round: its state, what it waits for, its figures. Times are RFC 3339, UTC."""

    run: Annotated[RunName, Field(description="Name of the run")]
    number: Annotated[int, Field(description="Number of the round, from 0")]
    attempt: Annotated[int, Field(description="Attempt of the round, from 1")]
    state: Annotated[
        RoundState | str, Field(description="OPEN, COLLECTING, AGGREGATING, PUBLISHED, ABANDONED or FAILED")
    ]
    opened_at: Annotated[str, Field(description="RFC 3339, UTC")]
    deadline: Annotated[str | None, Field(description="When uploads end, RFC 3339, UTC; null before the assignment")]
    published_at: Annotated[str | None, Field(description="RFC 3339, UTC")]
    waiting_for: Annotated[str, Field(description="What the round waits for and until when, one sentence for people")]
    failures: Annotated[int, Field(description="Failures of its aggregation since the operator last retried it")] = 0
    reason: Annotated[str | None, Field(description="Reason of the last failure, or of a rollback")] = None
    participants: Annotated[ParticipantCounts, Field(description="Participants by state")]
    by_rank: Annotated[tuple[RankCount, ...], Field(description="Participants by rank")]
    bytes_received: Annotated[int, Field(description="Bytes of all its uploads received")]
    train_metrics: Annotated[
        dict[str, float], Field(description="Metrics of the accepted uploads, weighted by examples")
    ]
    evaluations: Annotated[
        tuple[EvaluationSummary, ...], Field(description="Evaluations of the adapter that this round published")
    ]
    energy_kept: Annotated[
        tuple[EnergyKept, ...], Field(description="What a slice of each rank keeps, over all modules")
    ]
    energy_above_smallest_rank: Annotated[
        float | None, Field(description="Share of energy above the smallest rank; its fall towards 0 is rank collapse")
    ] = None
    aggregation: Annotated[
        AggregationSummary | None,
        Field(
            description="Figures of the aggregation; null in round 0 and in rounds that an earlier version published"
        ),
    ] = None
    aggregation_seconds: Annotated[float | None, Field(description="Duration of the aggregation")]


class RoundInput(Message):
    """One input of a round's aggregation; the list is frozen when the round begins to aggregate."""

    upload_id: Annotated[str, Field(description="Id of the upload")]
    client_id: Annotated[str, Field(description="Id of the client")]
    round: Annotated[int, Field(description="Round for which it was trained")]
    staleness: Annotated[int, Field(description="Rounds that it came late; it counts examples / sqrt(1 + staleness)")]
    excluded: Annotated[bool, Field(description="Whether the operator excluded it")]
    update: Annotated[
        UpdateMetrics | None,
        Field(
            description="What became of it; null until the round is published, and where it is excluded",
            exclude_if=omitted_if_default(None),
        ),
    ] = None


class RetryRequest(Message):
    """Aggregate a failed round again, without the uploads named."""

    exclude: Annotated[
        Tuple[Annotated[str, Field(max_length=64)]],
        Field(max_length=10_000, description="Ids of the uploads to leave out for good"),
    ] = ()


class RollbackRequest(Message):
    """Go on from what a published round published."""

    to: Annotated[int, Field(ge=0, le=100_000, description="Number of the round")]


class RoundDetail(Message):
    """A round with its modules, and for the operator its participants and inputs."""

    summary: Annotated[RoundSummary, Field(description="The round at a glance")]
    modules: Annotated[tuple[ModuleMetrics, ...], Field(description="Figures of each module's aggregate")]
    participants: Annotated[
        tuple[ParticipantStatus, ...] | None, Field(description="The participants; for the operator, else null")
    ]
    inputs: Annotated[
        tuple[RoundInput, ...] | None,
        Field(description="The frozen inputs of the aggregation; for the operator, else null"),
    ] = None
    cosines: Annotated[
        tuple[tuple[float | None, ...], ...] | None,
        Field(description="Cosines of all pairs of updates, by client id and the round trained for; for the operator"),
    ] = None


class RoundList(Message):
    """A run's rounds, newest first; the latest attempt of each."""

    rounds: Annotated[tuple[RoundSummary, ...], Field(description="The rounds")]


class Event(Message):
    """One state change. `id` grows; a stream resumes after the last one seen."""

    id: Annotated[int, Field(description="Grows with each event; a stream resumes after the last one seen")]
    run: Annotated[RunName, Field(description="Name of the run")]
    at: Annotated[str, Field(description="RFC 3339, UTC")]
    kind: Annotated[str, Field(description="What happened")]
    round: Annotated[int | None, Field(description="Number of the round; null: it concerns the run")]
    detail: Annotated[str, Field(description="The change, in words")]
