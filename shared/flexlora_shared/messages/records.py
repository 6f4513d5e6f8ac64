"""The record of a published round: what a third party needs, beside the files, to aggregate it again."""

from typing import Annotated, Literal

from pydantic import Field

from flexlora_shared.messages.base import Message, Sha256, Tuple, omitted_if_default
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate


class RecordedInput(Message):
    """One update of a round's aggregation; whose it was is not told."""

    update: Annotated[
        UploadCreate, Field(description="Its digest, ranks, alphas and examples, as announced; without metrics")
    ]
    staleness: Annotated[int, Field(ge=0, description="Rounds that it came late")]
    base: Annotated[
        Sha256 | None,
        Field(description="SHA-256 of the older global update that a late one was trained from; else null"),
    ]
    weight: Annotated[float, Field(ge=0, le=1, description="Its share in the round, before any filter")]


class RoundRecord(Message):
    """A published round, as `flexlora-server replay` aggregates it again."""

    format: Annotated[Literal[1], Field(description="Version of this form")] = 1
    spec: Annotated[RunSpec, Field(description="The run's definition, with its strategy, filters and their options")]
    round: Annotated[int, Field(ge=0, description="Number of the round")]
    inputs: Annotated[Tuple[RecordedInput], Field(description="What was aggregated, in the order of the sums")]
    previous: Annotated[
        Sha256 | None, Field(description="SHA-256 of the global update that participants were served; null in round 0")
    ]
    before: Annotated[
        Sha256 | None, Field(description="SHA-256 of the one a round earlier, with which filters compare; null without")
    ]
    past_norms: Annotated[
        Tuple[float], Field(description="Median norms of the past rounds' changes, oldest first, for the filters")
    ]
    software: Annotated[
        dict[str, str],
        Field(description="Versions and device of the worker; empty where an earlier release, or round 0, kept none"),
    ]
    published: Annotated[Sha256, Field(description="SHA-256 of the global update that the round published")]
    restored: Annotated[
        int | None,
        Field(
            description="Round whose global update this one published again, by a rollback; null: it aggregated its inputs",
            exclude_if=omitted_if_default(None),
        ),
    ] = None
