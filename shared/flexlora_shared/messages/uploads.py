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
    omitted_if_default,
)
from flexlora_shared.messages.tasks import Trainable

UploadState = Literal["OPEN", "ACCEPTED", "CANCELLED"]
PART_MEDIA_TYPE = "application/partial-upload"


class UploadCreate(Message):
    """Announce an update before its bytes; the alphas are the ones it was trained with."""

    rank: Annotated[Rank, Field(description="LoRA rank of the update: the one assigned")]
    rank_pattern: Annotated[
        RankPattern, Field(description="Ranks of modules that differ from `rank`: the pattern assigned")
    ] = {}
    hold_rank: Annotated[
        Rank | None,
        Field(
            description="LoRA rank of the slice that the update is the first directions of: the one assigned; null: `rank`",
            exclude_if=omitted_if_default(None),
        ),
    ] = None
    alpha: Annotated[Alpha, Field(description="`lora_alpha` that the update was trained with")]
    alpha_pattern: Annotated[AlphaPattern, Field(description="Alphas of modules that differ from `alpha`")] = {}
    use_rslora: Annotated[
        bool, Field(description="Whether the scaling is `alpha / sqrt(rank)` (rsLoRA) instead of `alpha / rank`")
    ] = False
    trainable: Annotated[Trainable, Field(description="What was trained: as the task asked")] = "slice"
    examples: Annotated[Count, Field(description="Examples trained on in this round; the update's weight")]
    size: Annotated[int, Field(ge=1, lt=2**46, description="Length of the file in bytes")]
    sha256: Annotated[Sha256, Field(description="SHA-256 of the file, hexadecimal")]
    metrics: Annotated[Metrics, Field(description="Metrics of local training, e.g. train_loss")] = {}


class UploadStatus(Message):
    """An upload: how many bytes arrived and what is expected."""

    id: Annotated[str, Field(description="Id of the upload")]
    run: Annotated[RunName, Field(description="Name of the run")]
    round: Annotated[int, Field(description="Round that the upload was announced to")]
    state: Annotated[UploadState | str, Field(description="OPEN, ACCEPTED or CANCELLED")]
    offset: Annotated[int, Field(description="Bytes received so far")]
    size: Annotated[int, Field(description="Bytes expected")]
    sha256: Annotated[Sha256, Field(description="SHA-256 expected, hexadecimal")]


class Receipt(Message):
    """The coordinator counts this update, exactly once."""

    upload_id: Annotated[str, Field(description="Id of the upload")]
    run: Annotated[RunName, Field(description="Name of the run")]
    round: Annotated[int, Field(description="Round that the upload was announced to")]
    counts_in: Annotated[
        int, Field(description="Round in whose aggregation the update counts: a later one where it came late")
    ]
    sha256: Annotated[Sha256, Field(description="SHA-256 of the file, hexadecimal")]
    accepted_at: Annotated[str, Field(description="RFC 3339, UTC")]


class Evaluation(Message):
    """Metrics of the slice published by a round, on the participant's own held-out data."""

    rank: Annotated[Rank, Field(description="LoRA rank of the slice evaluated")]
    rank_pattern: Annotated[RankPattern, Field(description="Ranks of modules that differ from `rank`")] = {}
    examples: Annotated[Count, Field(description="Held-out examples; the metrics' weight")]
    metrics: Annotated[Metrics, Field(min_length=1, description="The values by metric name, e.g. loss")]
