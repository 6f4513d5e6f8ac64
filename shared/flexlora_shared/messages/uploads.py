"""Sending an update: create, parts, commit; and evaluations of a served slice."""

from typing import Annotated, Literal

from pydantic import Field

from flexlora_shared.messages.base import (
    Alpha,
    AlphaPattern,
    Count,
    Message,
    Metrics,
    Rank,
    RankPattern,
    RunName,
    Sha256,
)
from flexlora_shared.messages.tasks import Trainable

UploadState = Literal["OPEN", "ACCEPTED", "CANCELLED"]
PART_MEDIA_TYPE = "application/partial-upload"


class UploadCreate(Message):
    """Announce an update before its bytes; the alphas are the ones it was trained with."""

    rank: Rank
    rank_pattern: RankPattern = {}
    alpha: Alpha
    alpha_pattern: AlphaPattern = {}
    use_rslora: bool = False
    trainable: Trainable = "slice"  # what was trained: as the task asked
    examples: Count  # trained on this round; the update's weight
    size: Annotated[int, Field(ge=1, lt=2**46)]  # bytes
    sha256: Sha256
    metrics: Metrics = {}  # of local training, e.g. train_loss


class UploadStatus(Message):
    """An upload: how many bytes arrived and what is expected."""

    id: str
    run: RunName
    round: int
    state: UploadState | str
    offset: int  # bytes received so far
    size: int
    sha256: Sha256


class Receipt(Message):
    """The coordinator counts this update, exactly once."""

    upload_id: str
    run: RunName
    round: int
    counts_in: int  # the round whose aggregation it is part of: a later one, where it came late
    sha256: Sha256
    accepted_at: str  # RFC 3339, UTC


class Evaluation(Message):
    """Metrics of the slice published by a round, on the participant's own held-out data."""

    rank: Rank
    rank_pattern: RankPattern = {}
    examples: Count  # held-out examples, the metrics' weight
    metrics: Annotated[Metrics, Field(min_length=1)]
