"""What a participant is asked to do in a round."""

from flexlora_shared.messages.base import Message, RankPattern, RunName, Sha256
from flexlora_shared.messages.runs import RunSpec


class AdapterRef(Message):
    """Where the slice to start from lies and what it hashes to."""

    href: str  # path on the coordinator, with its query
    config_href: str  # the matching PEFT adapter_config.json
    sha256: Sha256
    size: int  # bytes


class Task(Message):
    """Train one round: download `adapter`, train, upload to `round` before `deadline`."""

    run: RunName
    round: int
    attempt: int
    rank: int
    rank_pattern: RankPattern
    deadline: str  # RFC 3339, UTC
    adapter: AdapterRef
    spec: RunSpec
