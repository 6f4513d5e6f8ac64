"""A participant's task in a round, and its failure in it."""

from typing import Annotated, Literal

from pydantic import Field

from flexlora_shared.messages.base import Line, Message, RankPattern, RunName, Sha256
from flexlora_shared.messages.runs import RunSpec

# What an agent trains, and so what its upload holds; the run's strategy decides.
#   slice   both factors of the slice: the upload is the slice, trained
#   B       lora_B alone: the upload is the slice with its lora_A as it was served, bit for bit
#   A       lora_A alone: the upload is the slice with its lora_B as it was served, bit for bit
#   fresh   a new adapter of the slice's ranks and alphas, lora_B = 0 at its start, on top of the slice, which is frozen:
#           the upload is the new adapter alone, in the tensors and names of a slice
# Extra tensors are trained from the values served in each case.
Trainable = Literal["slice", "B", "A", "fresh"]
# What a participant failed on: its data, the base model or tokenizer, the memory or another fault of the device, the training
# itself (numbers that are not finite, a custom loop), or anything else.
FailureKind = Literal["data", "model", "memory", "device", "training", "other"]


class AdapterRef(Message):
    """Where the slice to start from lies and what it hashes to."""

    href: Annotated[str, Field(description="Path of the slice on the coordinator, with its query")]
    config_href: Annotated[str, Field(description="Path of its PEFT adapter_config.json")]
    sha256: Annotated[Sha256, Field(description="SHA-256 of the slice, hexadecimal")]
    size: Annotated[int, Field(description="Length of the slice in bytes")]


class Task(Message):
    """Train one round: download `adapter`, train what `trainable` says of it, upload to `round` before `deadline`."""

    run: Annotated[RunName, Field(description="Name of the run")]
    round: Annotated[int, Field(description="Round to train")]
    attempt: Annotated[int, Field(description="Attempt of the round, from 1")]
    rank: Annotated[int, Field(description="LoRA rank assigned")]
    rank_pattern: Annotated[RankPattern, Field(description="Ranks of modules that differ from `rank`")]
    deadline: Annotated[str, Field(description="When uploads of the round end, RFC 3339, UTC")]
    adapter: Annotated[AdapterRef, Field(description="The slice to start from")]
    trainable: Annotated[
        Trainable,
        Field(
            description="What to train: both factors of the slice, one of them alone (A, B), or a fresh adapter on top of it"
        ),
    ] = "slice"
    spec: Annotated[RunSpec, Field(description="The run's definition")]


class Failure(Message):
    """The participant cannot finish its task: the round no longer waits for it."""

    attempt: Annotated[int, Field(ge=1, lt=2**31, description="Attempt of the round, as in the task")]
    kind: Annotated[FailureKind, Field(description="What it failed on")]
    reason: Annotated[
        Line, Field(min_length=1, max_length=500, description="What happened, one sentence; shown to the operator")
    ]
