"""How turns become tokens: joined as they are, as `role:` lines, or by a chat template.

A template's text is tokenized whole, as generation sees it. What of it the assistant said, the template tells
(`{% generation %}`), or it is found by rendering the conversation up to each of its turns and with it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from jinja2 import TemplateError

from flexlora_client.errors import ModelError
from flexlora_client.training.data.examples import Turn
from flexlora_client.training.encoding.encoded import NothingToLearn, Tokens
from flexlora_client.training.encoding.tokenizing import Span, Texts

Turns = Sequence[Turn]


class Layout(Protocol):
    """Lays out the turns of a conversation that ends with the assistant's."""

    def tokens(self, turns: Turns, last_only: bool) -> Tokens | None:
        """The conversation, its answers learned (or the last one alone); None: earlier answers cannot be told apart."""

    def opening(self, turns: Turns) -> tuple[int, ...]:
        """The turns up to where the assistant's next answer begins."""


@dataclass(frozen=True)
class PiecewiseLayout:
    """Each piece is tokenized by itself; the end-of-sequence token closes the assistant's. `roles`: `role:` lines."""

    texts: Texts
    roles: bool

    def tokens(self, turns: Turns, last_only: bool = False) -> Tokens:
        """See `Layout`; earlier answers are always told apart."""
        return self._joined(self._pieces(turns))

    def opening(self, turns: Turns) -> tuple[int, ...]:
        """See `Layout`."""
        return self._joined([*self._pieces(turns), *([("assistant:\n", False)] if self.roles else [])]).ids

    def _pieces(self, turns: Turns) -> Iterator[tuple[str, bool]]:
        for turn in turns:
            if self.roles:
                yield f"{turn.role}:\n", False
            yield turn.content, turn.role == "assistant"
            if self.roles:
                yield "\n", False

    def _joined(self, pieces: Iterator[tuple[str, bool]] | list[tuple[str, bool]]) -> Tokens:
        whole = Tokens((), ())
        for number, (text, learned) in enumerate(pieces):
            ids = self.texts.ended(text) if learned else self.texts.ids(text) if number else self.texts.opening(text)
            whole += Tokens(ids, (learned,) * len(ids))
        return whole


@dataclass(frozen=True)
class TemplateLayout:
    """A chat template: the tokenizer's own, or a named form, which begins with what the tokenizer puts before a text."""

    texts: Texts
    form: str | None = None
    tools: str = ""

    def tokens(self, turns: Turns, last_only: bool) -> Tokens | None:
        """See `Layout`."""
        if self.form is None and self.texts.tokenizer.is_fast and "generation" in _statements(self._template):
            return self._masked_by_template(turns)
        found = self._answers(turns, last_only)
        if found is None:
            return None
        text, spans = found
        tokens = self._front() + self.texts.spanned(text, spans)
        if not text.endswith(self.texts.special):
            tokens += Tokens((self.texts.eos,), (True,))  # else nothing would say that the answer is over
        return tokens

    def opening(self, turns: Turns) -> tuple[int, ...]:
        """See `Layout`."""
        return (self._front() + self.texts.spanned(self._text(turns, opened=True), ())).ids

    def _front(self) -> Tokens:
        front = self.texts.front if self.form is not None else ()  # a template of the tokenizer's writes them itself
        return Tokens(front, (False,) * len(front))

    def _masked_by_template(self, turns: Turns) -> Tokens:
        made = self._applied(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = tuple(made["input_ids"]), list(made["assistant_masks"])
        for place, token in enumerate(ids[1:], 1):  # an end that a template leaves outside its mask is learned, too
            mask[place] = mask[place] or int(bool(mask[place - 1]) and token == self.texts.tokenizer.eos_token_id)
        return Tokens(ids, tuple(map(bool, mask)))

    def _answers(self, turns: Turns, last_only: bool) -> tuple[str, list[Span]] | None:
        """The text up to the end of the last answer, and where the answers stand in it."""
        last = len(turns) - 1
        whole, spans = self._text(turns), []
        for number, turn in enumerate(turns):
            if turn.role != "assistant" or (last_only and number < last):
                continue
            closed = whole if number == last else self._text(turns[: number + 1])
            start = self._begin(turns[:number], closed)
            if start is None and (number == last or last_only):
                raise ModelError(
                    "the tokenizer's chat template rewrites earlier turns when an answer follows, so the assistant's words "
                    "cannot be told apart; give the data as prompt and completion."
                )
            end = self._end(closed, start or 0)
            if start is None or not whole.startswith(closed[:end]):
                return None
            spans.append((start, end))
        return whole[: spans[-1][1]], spans

    def _begin(self, before: Turns, closed: str) -> int | None:
        """Where the answer begins: behind the generation prompt, or behind as much of it as the template keeps."""
        opened = self._text(before, opened=True)
        if closed.startswith(opened):
            return len(opened)
        history = self._text(before) if before else ""
        return _common(opened, closed) if closed.startswith(history) else None

    def _end(self, closed: str, start: int) -> int:
        """Behind the stop token; a line break after it is never generated, and not learned."""
        stripped = closed.rstrip()
        return len(stripped) if len(stripped) > start and stripped.endswith(self.texts.special) else len(closed)

    @cached_property
    def _template(self) -> str:
        if self.form is not None:
            return self.form
        try:
            return self.texts.tokenizer.get_chat_template(tools=self._tools)
        except ValueError as error:  # several templates, none of them the default
            raise ModelError(
                f"the tokenizer's chat template cannot be chosen ({error}); name one `default`."
            ) from error

    @cached_property
    def _tools(self) -> Any:
        return json.loads(self.tools) if self.tools else None

    def _text(self, turns: Turns, *, opened: bool = False) -> str:
        return str(self._applied(turns, tokenize=False, add_generation_prompt=opened))

    def _applied(self, turns: Turns, **options: Any) -> Any:
        if self.tools and "tools" not in self._template:
            raise NothingToLearn(
                "a conversation has tools, for which the chat template has no place; leave the tools out."
            )
        try:
            return self.texts.tokenizer.apply_chat_template(
                [message(turn) for turn in turns],
                tools=self._tools,
                chat_template=self.form,
                **(options | self._end_of_turn()),
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise NothingToLearn(
                f"the tokenizer's chat template refuses a conversation ({error}); change its turns."
            ) from error

    def _end_of_turn(self) -> dict[str, str]:
        """What ends an assistant's turn of ChatML: generation stops at a token, so the end must be one."""
        if self.form is None:
            return {}
        self.texts.eos  # noqa: B018  # raises where there is none
        eos = str(self.texts.tokenizer.eos_token)
        known = "<|im_end|>" if len(self.texts.ids("<|im_end|>")) == 1 else ""
        return {"assistant_end": known + (eos if eos != known else "")}


def message(turn: Turn) -> dict[str, Any]:
    """The turn as templates want it; arguments of tool calls, which OpenAI's files hold as texts, as objects."""
    further: dict[str, Any] = json.loads(turn.further) if turn.further else {}
    for call in further.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, dict) else {}
        if isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"])
            except ValueError:
                continue  # free text, then: the template's to write
    return {**further, "role": turn.role, "content": turn.content}


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def _statements(template: str) -> set[str]:
    """The first word of every statement of a template."""
    return {part.lstrip("-+ \n").split("%")[0].rstrip("-+ \n") for part in template.split("{%")[1:]}
