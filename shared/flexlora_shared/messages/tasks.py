"""What a participant is asked to do in a round."""

from typing import Literal

from flexlora_shared.messages.base import Message, RankPattern, RunName, Sha256
from flexlora_shared.messages.runs import RunSpec

# What an agent trains, and so what its upload holds; the run's strategy decides.
#   slice   both factors of the slice: the upload is the slice, trained
#   B       lora_B alone: the upload is the slice with its lora_A as it was served, bit for bit
#   fresh   a new adapter of the slice's ranks and alphas, lora_B = 0 at its start, on top of the slice, which is frozen:
#           the upload is the new adapter alone, in the tensors and names of a slice
# Extra tensors are trained from the values served in each case.
Trainable = Literal["slice", "B", "fresh"]


class AdapterRef(Message):
    """Where the slice to start from lies and what it hashes to."""

    href: str  # path on the coordinator, with its query
    config_href: str  # the matching PEFT adapter_config.json
    sha256: Sha256
    size: int  # bytes


class Task(Message):
    """Train one round: download `adapter`, train what `trainable` says of it, upload to `round` before `deadline`."""

    run: RunName
    round: int
    attempt: int
    rank: int
    rank_pattern: RankPattern
    deadline: str  # RFC 3339, UTC
    adapter: AdapterRef
    trainable: Trainable = "slice"
    spec: RunSpec
