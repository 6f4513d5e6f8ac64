"""The participant's examples, one frozen type per format of the data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompted:
    """Learn `completion` after `prompt`; the two are joined as they are, nothing is put between them."""

    prompt: str
    completion: str

    @property
    def characters(self) -> int:
        """How long it is; examples of like length train together."""
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """Learn every turn whose role is `assistant`; there is at least one."""

    turns: tuple[Turn, ...]

    @property
    def characters(self) -> int:
        """How long it is."""
        return sum(len(turn.content) for turn in self.turns)


@dataclass(frozen=True)
class Plain:
    """Learn every token of `text`."""

    text: str

    @property
    def characters(self) -> int:
        """How long it is."""
        return len(self.text)


@dataclass(frozen=True)
class Labelled:
    """Learn to give `text` its class; `label` is an index into the run's labels."""

    text: str
    label: int

    @property
    def characters(self) -> int:
        """How long it is."""
        return len(self.text)


Example = Prompted | Chat | Plain | Labelled
