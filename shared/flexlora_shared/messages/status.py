"""Rounds as people and programs watch them."""

from typing import Annotated, Literal

from pydantic import Field

from flexlora_shared.messages.base import Message, RunName, Tuple
from flexlora_shared.messages.clients import Hardware

RoundState = Literal["OPEN", "COLLECTING", "AGGREGATING", "PUBLISHED", "ABANDONED", "FAILED"]


class RankCount(Message):
    """How many participants have one rank."""

    rank: int
    participants: int


class ParticipantCounts(Message):
    """Participants of a round by state."""

    present: int  # declared and seen recently
    assigned: int
    uploading: int
    accepted: int


class EnergyKept(Message):
    """Share of the aggregate's energy (squared Frobenius norm, over all modules) that a slice of `rank` keeps."""

    rank: int
    share: float


class CosineRange(Message):
    """Cosines between the changes of all pairs of a round's participants."""

    least: float
    median: float
    most: float


class ModuleMetrics(Message):
    """One module's aggregate: its spectrum, what each served rank keeps of it, and how it was computed."""

    name: str
    singular_values: tuple[float, ...]  # the leading 64
    total_energy: float  # squared Frobenius norm; an estimate where the certificate is above 1
    effective_rank: float  # exp of the entropy of the singular values' shares; 0 where the aggregate is 0
    energy_kept: tuple[EnergyKept, ...]
    pairwise_cosine: CosineRange | None = None  # None where fewer than two participants changed it
    route: str = ""  # gram, qr, eigh, svd or subspace
    fell_back: tuple[str, ...] = ()  # the routes that failed before, and why
    certificate: float = 1.0  # the truncation's error is at most this many times the smallest possible; 1: exact
    seconds: float = 0.0  # on one thread
    bytes_read: int = 0  # of this module's uploads


class UpdateMetrics(Message):
    """What became of one participant's update."""

    client_id: str
    weight: float  # with which it counts; the rest of its share counts for what it was served, or for the others
    change_norm: float  # Frobenius norm of its change, over all modules
    cosine: float | None  # mean over the other participants; None where there is no direction to compare
    notes: tuple[str, ...]  # what the run's filters did to it


class AggregationMetrics(Message):
    """A round's updates beside each other."""

    change_norm: float  # median over the participants
    pairwise_cosine: CosineRange | None
    cosines: tuple[tuple[float | None, ...], ...]  # of all pairs, in the order of `updates`; empty beyond 32
    updates: tuple[UpdateMetrics, ...]


class AggregationSummary(Message):
    """What a list of rounds shows of one round's aggregation."""

    pairwise_cosine: CosineRange | None
    change_norm: float  # median over the participants
    filtered: int  # updates of which the run's filters noted something
    certificate: float  # the largest of all modules


class EvaluationSummary(Message):
    """A metric over the participants of one rank, weighted by held-out examples."""

    metric: str
    rank: int
    value: float
    participants: int


class ParticipantStatus(Message):
    """One participant of a round; shown to the operator only."""

    client_id: str
    name: str
    rank: int
    state: Literal["assigned", "uploading", "accepted"] | str
    examples: int  # trained on, where the update is announced; else declared
    hardware: Hardware
    bytes_received: int
    declared_at: str | None = None  # RFC 3339, UTC: when it last declared its rank
    update: UpdateMetrics | None = None  # once the round is published


class RoundSummary(Message):
    """One round: its state, what it waits for, its figures. Times are RFC 3339, UTC."""

    run: RunName
    number: int
    attempt: int
    state: RoundState | str
    opened_at: str
    deadline: str | None
    published_at: str | None
    waiting_for: str  # one sentence: what, and until when
    failures: int = 0  # of its aggregation, since the operator last retried it
    reason: str | None = None  # of the last failure
    participants: ParticipantCounts
    by_rank: tuple[RankCount, ...]
    bytes_received: int
    train_metrics: dict[str, float]  # of the accepted uploads, weighted by examples
    evaluations: tuple[EvaluationSummary, ...]  # of the adapter this round published
    energy_kept: tuple[EnergyKept, ...]
    energy_above_smallest_rank: float | None = None  # its fall towards 0 is rank collapse
    aggregation: AggregationSummary | None = None  # None of round 0, and of rounds an earlier version published
    aggregation_seconds: float | None


class RoundInput(Message):
    """One input of a round's aggregation; the list is frozen when the round begins to aggregate."""

    upload_id: str
    client_id: str
    round: int  # for which it was trained
    staleness: int  # rounds that it came late; it counts examples / sqrt(1 + staleness)
    excluded: bool  # by the operator


class RetryRequest(Message):
    """Aggregate a failed round again, without the uploads named."""

    exclude: Annotated[Tuple[Annotated[str, Field(max_length=64)]], Field(max_length=10_000)] = ()


class RoundDetail(Message):
    """A round with its modules, and for the operator its participants and inputs."""

    summary: RoundSummary
    modules: tuple[ModuleMetrics, ...]
    participants: tuple[ParticipantStatus, ...] | None
    inputs: tuple[RoundInput, ...] | None = None
    cosines: tuple[tuple[float | None, ...], ...] | None = (
        None  # of all pairs of accepted participants, by client id; for the operator
    )


class RoundList(Message):
    """A run's rounds, newest first; the latest attempt of each."""

    rounds: tuple[RoundSummary, ...]


class Event(Message):
    """One state change. `id` grows; a stream resumes after the last one seen."""

    id: int
    run: RunName
    at: str  # RFC 3339, UTC
    kind: str
    round: int | None
    detail: str
