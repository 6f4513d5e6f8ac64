"""Texts to token ids: which tokens go in front of a text and behind it, and which tokens a part of a text became."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from flexlora_client.errors import ModelError
from flexlora_client.training.encoding.encoded import Tokens

Span = tuple[int, int]  # of characters, from the first to before the second


@dataclass(frozen=True)
class Texts:
    """Tokenizes the parts of an example."""

    tokenizer: PreTrainedTokenizerBase

    def ids(self, text: str) -> tuple[int, ...]:
        """The text's tokens alone."""
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)  # verbose: cut elsewhere

    def opening(self, text: str) -> tuple[int, ...]:
        """A text that begins a sequence: the tokens that belong in front are there once, also where it has them itself."""
        ids = self.ids(text)
        return ids if self.front and ids[: len(self.front)] == self.front else self.front + ids

    def ended(self, text: str) -> tuple[int, ...]:
        """A text to be learned with the end-of-sequence token behind it, once. Raises: ModelError."""
        ids = self.ids(text)
        return ids if ids[-1:] == (self.eos,) else (*ids, self.eos)

    @property
    def front(self) -> tuple[int, ...]:
        """The special tokens that the tokenizer puts before a text."""
        return self._around[0]

    @property
    def back(self) -> tuple[int, ...]:
        """The special tokens that the tokenizer puts behind a text."""
        return self._around[1]

    @property
    def eos(self) -> int:
        """The end-of-sequence token. Raises: ModelError."""
        token = self.tokenizer.eos_token_id
        if not isinstance(token, int):
            raise ModelError("the tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json.")
        return token

    @cached_property
    def special(self) -> tuple[str, ...]:
        """The texts of all special tokens."""
        added = self.tokenizer.added_tokens_decoder.values()
        named = [str(token) for token in self.tokenizer.all_special_tokens]
        return tuple({*named, *(str(token) for token in added if token.special)})

    def spanned(self, text: str, spans: Sequence[Span]) -> Tokens:
        """The whole text's tokens; those that begin within a span are learned."""
        if not self.tokenizer.is_fast:  # such a tokenizer does not tell where a token came from
            return self._piecewise(text, spans)
        made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        learned = tuple(any(start <= begin < end for start, end in spans) for begin, _ in made["offset_mapping"])
        return Tokens(tuple(made["input_ids"]), learned)

    def without_left(self, text: str, tokens: int) -> str:
        """The text without its first `tokens` tokens or a few more; at least its last token stays."""
        if not self.tokenizer.is_fast:
            ids = self.ids(text)
            return str(self.tokenizer.decode(list(ids[min(tokens, len(ids) - 1) :])))
        made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        begins = [begin for begin, _ in made["offset_mapping"]]
        later = [
            begin for begin in begins[min(tokens, len(begins) - 1) :] if begin > 0
        ]  # a letter may be several tokens
        return text[later[0] :] if later else text

    def _piecewise(self, text: str, spans: Sequence[Span]) -> Tokens:
        whole, done = Tokens((), ()), 0
        for start, end in (*spans, (len(text), len(text))):
            for piece, learned in ((text[done:start], False), (text[start:end], True)):
                ids = self.ids(piece) if piece else ()
                whole += Tokens(ids, (learned,) * len(ids))
            done = end
        return whole

    @cached_property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        bare, whole = self.ids("a"), tuple(self.tokenizer("a").input_ids)
        places = [n for n in range(len(whole)) if bare and whole[n : n + len(bare)] == bare]
        if not places:  # a vocabulary without this letter
            at = int(bool(whole) and whole[0] == self.tokenizer.bos_token_id)
            return whole[:at], whole[at:] if not bare else ()
        return whole[: places[0]], whole[places[0] + len(bare) :]
