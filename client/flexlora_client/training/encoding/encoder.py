"""Examples become token ids and targets; docs/training-text.md says how each kind is laid out, masked and cut.

IGNORE_INDEX marks the tokens that are not learned. The end-of-sequence token closes what is.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from flexlora_client.errors import DataError, ModelError
from flexlora_client.training.data.examples import (
    Choice,
    Example,
    Instructed,
    Labelled,
    Pictured,
    Plain,
    Prompted,
    Scored,
    Tagged,
)
from flexlora_client.training.encoding.classification import classified, tagged
from flexlora_client.training.encoding.encoded import (
    IGNORE_INDEX,
    Encoded,
    NothingToLearn,
    Question,
    Tokens,
    merged,
    of_tokens,
    shortened,
)
from flexlora_client.training.encoding.images import pictured
from flexlora_client.training.encoding.layouts import Layout, TemplateLayout
from flexlora_client.training.encoding.prompt_formats import Asked, Turns, layout_of, turns_of
from flexlora_client.training.encoding.tokenizing import Texts
from flexlora_client.training.encoding.truncation import Fitted, fit
from flexlora_shared.messages.runs import PromptFormat, RunSpec

__all__ = ["IGNORE_INDEX", "Encoded", "Encoder", "NothingToLearn", "Question", "shortened"]


@dataclass(frozen=True)
class Encoder:
    """Encodes examples for one tokenizer as a run asks for; `max_length` is in tokens."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    prompt_format: PromptFormat = "as-is"
    learn_all: bool = False
    packing: bool = False  # a plain text that is too long becomes several sequences
    seq2seq: bool = False  # the answer is the decoder's

    @classmethod
    def of(
        cls, spec: RunSpec, preprocessor: PreTrainedTokenizerBase | BaseImageProcessor, max_length: int
    ) -> "Encoder":
        """The encoder of a run; `max_length` is the run's, or the model's where that is less."""
        training = spec.training
        return cls(
            cast(PreTrainedTokenizerBase, preprocessor),  # images need none: their pixels are made batch by batch
            max_length,
            training.prompt_format,
            learn_all=training.learn == "all",
            packing=training.packing,
            seq2seq=spec.model.task_type == "SEQ_2_SEQ_LM",
        )

    def encode(self, example: Example) -> Encoded:
        """The example's ids and targets, at most `max_length` long.

        Raises:
            NothingToLearn: nothing of the example is left to learn, `max_length` has no room for it, the chat template refuses
                it, or the run's prompt format has no form for it.
            DataError: the run's task learns from no such example.
            ModelError: the tokenizer has no end-of-sequence token, or no chat template where the run asks for it.
        """
        if isinstance(example, Labelled | Scored):
            return classified(self.tokenizer, example, self.max_length)
        if isinstance(example, Tagged):
            return tagged(self.tokenizer, example, self.max_length)
        if isinstance(example, Pictured):
            return pictured(example)
        made = self._plain(example) if isinstance(example, Plain) else self._answered(example)
        if made.weight == 0:
            raise NothingToLearn(f"an example has no token to learn ({str(example)[:80]}...); give it more text.")
        return made

    def question(self, example: Asked) -> Question:
        """The prompt up to where the (last) answer begins, as training sees it and generation continues it."""
        layout, turns = self._laid_out(example)
        fitted = self._fitted(layout, turns, last_only=True)
        answer = turns[-1].content
        if isinstance(layout, TemplateLayout) and not self.seq2seq:
            # a template may write more than the content, an empty thought for example, and so will the model
            learned = list(fitted.tokens.ids[fitted.tokens.answer :])
            answer = str(self.tokenizer.decode(learned, skip_special_tokens=True))
        references = example.references if isinstance(example, Prompted | Instructed) else ()
        return Question(self._prompt(layout, fitted.turns), answer, references)

    def choices(self, example: Choice) -> tuple[Encoded, ...]:
        """Each choice behind the same prompt, the choice and its end as targets: the likeliest has the least loss."""
        layout, turns = self._laid_out(example)
        answers = [replace(turns[-1], content=choice) for choice in example.choices]
        longest = max(answers, key=lambda turn: len(self._texts.ids(turn.content)))
        before = self._fitted(layout, (*turns[:-1], longest), last_only=True).turns[:-1]
        return tuple(self._choice(layout, (*before, answer)) for answer in answers)

    def plain(self, example: Plain) -> tuple[int, ...]:
        """A text's tokens with those that belong before and behind it."""
        ids = self._texts.opening(example.text)
        return ids if ids[-1:] == (self._texts.eos,) and len(ids) > 1 else (*ids, self._texts.eos)

    def _plain(self, example: Plain) -> Encoded:
        if self.seq2seq:
            raise DataError("a plain text has no answer, which this run's model learns; give prompt and completion.")
        ids = self.plain(example)
        size = self.max_length if self.packing else len(ids)
        parts = [ids[start : start + size] for start in range(0, len(ids), size)]
        return merged([of_tokens(Tokens(part, (True,) * len(part)), self.max_length) for part in parts])

    def _answered(self, example: Asked) -> Encoded:
        """One sequence, or one for each answer: of an encoder and decoder, and where the template rewrites earlier ones."""
        layout, turns = self._laid_out(example)
        if not self.seq2seq:
            whole = layout.tokens(turns, last_only=self.learn_all)
            if whole is not None:
                return self._one(layout, turns, whole, last_only=self.learn_all)
        ends = [number + 1 for number, turn in enumerate(turns) if turn.role == "assistant"]
        return merged([self._one(layout, turns[:end], None, last_only=True) for end in ends])

    def _one(self, layout: Layout, turns: Turns, whole: Tokens | None, last_only: bool) -> Encoded:
        fitted = self._fitted(layout, turns, last_only, whole)
        if self.seq2seq:
            return self._decoded(layout, fitted)
        lost, dropped = fitted.lost, fitted.dropped
        return of_tokens(fitted.tokens, self.max_length, learn_all=self.learn_all, lost=lost, dropped=dropped)

    def _decoded(self, layout: Layout, fitted: Fitted) -> Encoded:
        """The prompt for the encoder, the answer for the decoder, whose own input the model makes of it."""
        ids = self._prompt(layout, fitted.turns)
        labels = tuple(self.tokenizer(text_target=fitted.turns[-1].content, verbose=False).input_ids)
        labels = labels if labels[-1:] == (self._texts.eos,) else (*labels, self._texts.eos)
        kept = labels[: self.max_length]
        return Encoded(ids, kept, len(kept), cut=fitted.lost + len(labels) - len(kept), dropped=fitted.dropped)

    def _fitted(self, layout: Layout, turns: Turns, last_only: bool, whole: Tokens | None = None) -> Fitted:
        def render(kept: Turns) -> Tokens:
            if self.seq2seq:
                ids = self._prompt(layout, kept)
                return Tokens(ids, (False,) * len(ids))
            return _told_apart(layout.tokens(kept, last_only))

        return fit(self._texts, render, turns, whole or render(turns), self.max_length)

    def _choice(self, layout: Layout, turns: Turns) -> Encoded:
        if self.seq2seq:
            return self._decoded(layout, Fitted(turns, Tokens((), ()), 0, 0))
        return of_tokens(_told_apart(layout.tokens(turns, last_only=True)), self.max_length)

    def _prompt(self, layout: Layout, turns: Turns) -> tuple[int, ...]:
        return layout.opening(turns[:-1]) + (self._texts.back if self.seq2seq else ())

    def _laid_out(self, example: Asked) -> tuple[Layout, Turns]:
        return layout_of(example, self._texts, self.prompt_format), turns_of(example, self.prompt_format)

    @cached_property
    def _texts(self) -> Texts:
        return Texts(self.tokenizer)


def _told_apart(tokens: Tokens | None) -> Tokens:
    if tokens is None:
        raise ModelError(
            "the tokenizer's chat template rewrites earlier turns in a way that changes with their number; give the data as "
            "prompt and completion."
        )
    return tokens
