"""Rounds as people and programs watch them."""

from typing import Literal

from flexlora_shared.messages.base import Message, RunName
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


class ModuleMetrics(Message):
    """One module's aggregate: leading singular values, and the energy kept at each served rank."""

    name: str
    singular_values: tuple[float, ...]
    total_energy: float  # squared Frobenius norm
    effective_rank: float  # exp of the entropy of the singular values' shares; 0 where the aggregate is 0
    energy_kept: tuple[EnergyKept, ...]


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
    state: Literal["assigned", "uploading", "accepted"]
    examples: int  # trained on, where the update is announced; else declared
    hardware: Hardware
    bytes_received: int


class RoundSummary(Message):
    """One round: its state, what it waits for, its figures. Times are RFC 3339, UTC."""

    run: RunName
    number: int
    attempt: int
    state: RoundState
    opened_at: str
    deadline: str | None
    published_at: str | None
    waiting_for: str
    participants: ParticipantCounts
    by_rank: tuple[RankCount, ...]
    bytes_received: int
    train_metrics: dict[str, float]  # of the accepted uploads, weighted by examples
    evaluations: tuple[EvaluationSummary, ...]  # of the adapter this round published
    energy_kept: tuple[EnergyKept, ...]
    aggregation_seconds: float | None


class RoundDetail(Message):
    """A round with its modules, and for the operator its participants."""

    summary: RoundSummary
    modules: tuple[ModuleMetrics, ...]
    participants: tuple[ParticipantStatus, ...] | None


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
