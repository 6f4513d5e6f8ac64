"""What a participant agreed to: the run's definition as it was when it joined, and the ranks that it declared.

The coordinator sends the definition with every task. A task of another one would train another model, longer, or other tensors,
and none of that shows in the data that leave: so each is compared, field by field, before anything is downloaded for it.
"""

import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from flexlora_client.errors import NotAgreed
from flexlora_shared.messages.base import Message, RankPattern
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Task

SHOWN = 3  # differences in a sentence


class Ranks(Message):
    """Ranks that were declared."""

    rank: int
    rank_pattern: RankPattern = {}
    hold_rank: int | None = None  # None: as it trains

    @classmethod
    def of(cls, asked: Declaration | Task) -> "Ranks":
        """Those of a declaration, or of a task."""
        held = None if asked.hold_rank == asked.rank else asked.hold_rank
        return cls(rank=asked.rank, rank_pattern=dict(asked.rank_pattern), hold_rank=held)

    def __str__(self) -> str:
        held = f", holding {self.hold_rank}" if self.hold_rank is not None else ""
        pattern = f", {dict(self.rank_pattern)}" if self.rank_pattern else ""
        return f"{self.rank}{held}{pattern}"


def definition_digest(spec: RunSpec) -> str:
    """SHA-256 over the definition's fields that are not their defaults, as JSON with sorted keys: two parties can compare it."""
    fields = spec.model_dump(mode="json", exclude_defaults=True)
    return sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_definition(agreed: RunSpec, found: RunSpec, kept: Path) -> None:
    """Compare the run with the one that was joined, which the file `kept` holds.

    Raises:
        NotAgreed: they differ.
    """
    if agreed != found:
        raise NotAgreed(
            f"run {found.name} is not the one that this participant joined: {_told(agreed, found)}; ask its operator why, and "
            f"move {kept} away to join it as it is now"
        )


def only_known(spec: RunSpec, kept: dict[str, Any]) -> RunSpec:
    """The definition with the fields alone that are in `kept`, a definition in JSON's types; the others at their defaults."""
    return RunSpec.model_validate(_known(spec.model_dump(mode="json"), kept), strict=False)


def _known(found: Any, kept: Any) -> Any:
    if isinstance(found, dict) and isinstance(kept, dict):
        return {name: _known(value, kept[name]) for name, value in found.items() if name in kept}
    if isinstance(found, list) and isinstance(kept, list) and len(found) == len(kept):
        return [_known(*pair) for pair in zip(found, kept, strict=True)]
    return found


def check_task(task: Task, agreed: RunSpec, declared: Iterable[Ranks]) -> None:
    """Compare a task with the definition and with the ranks that were declared.

    Raises:
        NotAgreed: it asks for something else; the sentence says what.
    """
    if task.spec != agreed or task.run != agreed.name:
        raise NotAgreed(
            f"the task of round {task.round} is not of the run that this participant joined: {_told(agreed, task.spec)}; "
            "nothing was trained, ask the operator why"
        )
    asked, known = Ranks.of(task), tuple(declared)
    if asked not in known:
        raise NotAgreed(
            f"the task of round {task.round} is for rank {asked}, this participant declared {' or '.join(map(str, known))}; "
            "nothing was trained, ask the operator why"
        )


def _told(agreed: RunSpec, found: RunSpec) -> str:
    different = list(_differing(agreed.model_dump(mode="json"), found.model_dump(mode="json"), ""))
    more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return (", ".join(different[:SHOWN]) or "another name") + more


def _differing(agreed: Any, found: Any, path: str) -> Iterator[str]:
    """Each field that differs, with both values where they are short."""
    if isinstance(agreed, dict) and isinstance(found, dict):
        for name in {**agreed, **found}:
            yield from _differing(agreed.get(name), found.get(name), f"{path}.{name}" if path else name)
    elif agreed != found:
        simple = not isinstance(agreed, list) and not isinstance(found, list)
        yield f"{path} is {str(found)[:60]!r} instead of {str(agreed)[:60]!r}" if simple else path
