"""The participant's examples, one frozen type for each kind of data.

`repr` of an example decides on which side of the held-out split it stands and whether a kept update is of the same data: a
field that is added later is left out of it at its default.
"""

from dataclasses import dataclass, field, fields
from hashlib import sha256


class _Compared:
    """Gives an example a `repr` without the fields that are at the default of a later release."""

    def __repr__(self) -> str:
        shown = [f for f in fields(self) if not (f.metadata.get("later") and getattr(self, f.name) == f.default)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"


@dataclass(frozen=True, repr=False)
class Prompted(_Compared):
    """Learn `completion` after `prompt`; the run's prompt format decides how the two are joined.

    `references` are other answers that evaluations count as right.
    """

    prompt: str
    completion: str
    references: tuple[str, ...] = field(default=(), metadata={"later": True})

    @property
    def characters(self) -> int:
        """How long it is; examples of like length train together."""
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, repr=False)
class Instructed(_Compared):
    """Learn `output` after an instruction and its context (may be empty), laid out by the run's prompt format.

    `references` are other answers that evaluations count as right.
    """

    instruction: str
    context: str
    output: str
    references: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The instruction and the context, each with a line break: the prompt of the format `as-is`."""
        return f"{self.instruction}\n" + (f"{self.context}\n" if self.context else "")

    def __repr__(self) -> str:
        """That of the `Prompted` which releases before 0.3 made of such a row: its side of the split stays the same."""
        return repr(Prompted(self.prompt, self.output, self.references))

    @property
    def characters(self) -> int:
        """How long it is."""
        return len(self.instruction) + len(self.context) + len(self.output)


@dataclass(frozen=True, repr=False)
class Turn(_Compared):
    """One message of a conversation. `further` are its other fields as a JSON object (tool_calls, name ...), else empty."""

    role: str
    content: str
    further: str = field(default="", metadata={"later": True})


@dataclass(frozen=True, repr=False)
class Chat(_Compared):
    """Learn every turn whose role is `assistant`; there is at least one. `tools`: those on offer, a JSON list, else empty."""

    turns: tuple[Turn, ...]
    tools: str = field(default="", metadata={"later": True})

    @property
    def characters(self) -> int:
        """How long it is."""
        return sum(len(turn.content) for turn in self.turns)


@dataclass(frozen=True, repr=False)
class Plain(_Compared):
    """Learn every token of `text`."""

    text: str

    @property
    def characters(self) -> int:
        """How long it is."""
        return len(self.text)


@dataclass(frozen=True, repr=False)
class Choice(_Compared):
    """Learn `choices[answer]` after `prompt`; evaluation picks the likeliest choice."""

    prompt: str
    choices: tuple[str, ...]
    answer: int

    @property
    def characters(self) -> int:
        """How long it is."""
        return len(self.prompt) + len(self.choices[self.answer])


@dataclass(frozen=True, repr=False)
class Labelled(_Compared):
    """Learn to give `text`, or the pair of `text` and `pair`, its class; `label` is an index into the run's labels."""

    text: str
    label: int
    pair: str | None = field(default=None, metadata={"later": True})

    @property
    def characters(self) -> int:
        """How long it is."""
        return len(self.text) + len(self.pair or "")


@dataclass(frozen=True, repr=False)
class Scored(_Compared):
    """Learn one number for each of the run's labels: 0 or 1 of multi-label classification, any of regression."""

    text: str
    values: tuple[float, ...]
    pair: str | None = None

    @property
    def characters(self) -> int:
        """How long it is."""
        return len(self.text) + len(self.pair or "")


@dataclass(frozen=True, repr=False)
class Tagged(_Compared):
    """Learn to give each word its class; `tags` are indices into the run's labels, one a word."""

    words: tuple[str, ...]
    tags: tuple[int, ...]

    @property
    def characters(self) -> int:
        """How long it is."""
        return sum(len(word) + 1 for word in self.words)


@dataclass(frozen=True, repr=False)
class Pictured(_Compared):
    """Learn to give an image its class. `image` is the encoded file's content (PNG, JPEG ...)."""

    image: bytes
    label: int

    def __repr__(self) -> str:
        """With the image's SHA-256 in place of its bytes."""
        return f"Pictured(image={sha256(self.image).hexdigest()}, label={self.label})"

    @property
    def characters(self) -> int:
        """The same for all: images become tensors of one shape."""
        return 1


Example = Prompted | Instructed | Chat | Plain | Choice | Labelled | Scored | Tagged | Pictured
