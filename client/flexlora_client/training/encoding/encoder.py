"""Examples become token ids and targets.

A language model's prompt and completion are tokenised apart and joined, the end-of-sequence token closes what it is to
learn, and IGNORE_INDEX marks the tokens it is not to learn. Conversations follow the tokenizer's chat template; without one,
each turn is `role:`, a line break, the content, for the assistant the end-of-sequence token, and a line break.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from flexlora_client.errors import DataError, ModelError
from flexlora_client.training.data.examples import Chat, Example, Labelled, Plain, Prompted, Turn

IGNORE_INDEX = -100  # torch's cross_entropy default for targets that do not count


@dataclass(frozen=True)
class Encoded:
    """One example for the model: token ids, and targets of the same length (of classification: the one class)."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    weight: int  # predictions that count: tokens learned (the first has nothing before it), or 1 class


@dataclass(frozen=True)
class Question:
    """What a model is asked to continue, and the answer expected."""

    ids: tuple[int, ...]
    answer: str


@dataclass(frozen=True)
class Encoder:
    """Encodes examples for one tokenizer; `max_length` is in tokens."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def encode(self, example: Example) -> Encoded:
        """The example's ids and targets, at most `max_length` long.

        What is too long loses the left of its prompt first (never a leading beginning-of-sequence token), then its end.

        Raises:
            DataError: nothing of the example is left to learn, or the chat template refuses it.
            ModelError: the tokenizer has no end-of-sequence token, or its template rewrites earlier turns.
        """
        if isinstance(example, Labelled):
            ids = self.tokenizer(example.text, truncation=True, max_length=self.max_length).input_ids
            return Encoded(tuple(ids), (example.label,), weight=1)
        if not isinstance(example, Prompted | Chat | Plain):
            raise DataError(f"a {type(example).__name__} cannot be encoded yet.")
        encoded = self._cut([part for part in self._parts(example) if part[0]])
        if encoded.weight == 0:
            raise DataError(f"an example has no token to learn ({str(example)[:80]}...); give it more text.")
        return encoded

    def question(self, example: Prompted | Chat) -> Question:
        """The prompt up to where the (last) completion begins, as generation continues it."""
        if isinstance(example, Prompted):
            return Question(tuple(self._opening(example.prompt)), example.completion)
        last = max(n for n, turn in enumerate(example.turns) if turn.role == "assistant")
        before, answer = example.turns[:last], example.turns[last].content
        if self.tokenizer.chat_template is None:
            parts = [ids for ids, _ in self._plain_turns(before)]
            parts.append(self._open_or_go_on("assistant:\n", first=not before))
            return Question(tuple(token for part in parts for token in part), answer)
        return Question(tuple(self._ids(self._rendered(before, True))), answer)

    def _parts(self, example: Prompted | Chat | Plain) -> Iterator[tuple[list[int], bool]]:
        """Token ids in order, each run with whether it is learned."""
        if isinstance(example, Prompted):
            yield self._opening(example.prompt), False
            yield [*self._ids(example.completion), self._eos], True
        elif isinstance(example, Plain):
            yield [*self._opening(example.text), self._eos], True
        elif self.tokenizer.chat_template is None:
            yield from self._plain_turns(example.turns)
        else:
            yield from self._template_turns(example.turns)

    def _plain_turns(self, turns: Sequence[Turn]) -> Iterator[tuple[list[int], bool]]:
        for number, turn in enumerate(turns):
            learned = turn.role == "assistant"
            yield self._open_or_go_on(f"{turn.role}:\n", first=number == 0), False
            yield [*self._ids(turn.content), *([self._eos] if learned else [])], learned
            yield self._ids("\n"), False

    def _template_turns(self, turns: Sequence[Turn]) -> Iterator[tuple[list[int], bool]]:
        """The rendered conversation, cut where each assistant's turn begins and ends."""
        done = ""
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            opened, closed = self._rendered(turns[:number], True), self._rendered(turns[: number + 1], False)
            if not (opened.startswith(done) and closed.startswith(opened)):
                raise ModelError(
                    "the tokenizer's chat template rewrites earlier turns, so the assistant's words cannot be told "
                    "apart; give the data as prompt and completion."
                )
            yield self._ids(opened[len(done) :]), False
            yield self._ids(closed[len(opened) :]), True
            done = closed

    def _rendered(self, turns: Sequence[Turn], opened: bool) -> str:
        """The template's text of the turns; `opened` adds what stands before an assistant's answer."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
        except TemplateError as error:
            raise DataError(
                f"the tokenizer's chat template refuses a conversation ({error}); change its turns."
            ) from error
        return str(text)

    def _cut(self, parts: list[tuple[list[int], bool]]) -> Encoded:
        prompt = parts[0][0] if parts and not parts[0][1] else []
        rest = parts[1:] if prompt else parts
        room = max(1, self.max_length - sum(len(part) for part, _ in rest))
        kept = [(shortened(tuple(prompt), room, self.tokenizer.bos_token_id), False), *rest]
        ids = [token for part, _ in kept for token in part]
        targets = [token if learned else IGNORE_INDEX for part, learned in kept for token in part][: self.max_length]
        weight = sum(target != IGNORE_INDEX for target in targets[1:])
        return Encoded(tuple(ids[: self.max_length]), tuple(targets), weight)

    @property
    def _eos(self) -> int:
        token = self.tokenizer.eos_token_id
        if not isinstance(token, int):
            raise ModelError("the tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json.")
        return token

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _opening(self, text: str) -> list[int]:
        """The text with the tokens its tokenizer puts in front, without an end-of-sequence token it may put behind."""
        ids = list(self.tokenizer(text, verbose=False).input_ids)  # verbose: it is cut here, not there
        return ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids

    def _open_or_go_on(self, text: str, first: bool) -> list[int]:
        return self._opening(text) if first else self._ids(text)


def shortened(ids: tuple[int, ...], room: int, bos: object) -> tuple[int, ...]:
    """The prompt's last tokens, at most `room` (from 1); a beginning-of-sequence token in front stays there."""
    if len(ids) <= room:
        return ids
    first = ids[:1] if ids[0] == bos else ()
    return first + ids[len(ids) - room + len(first) :]
