"""Texts with classes: one or several labels, numbers, or a class for each word."""

from transformers import BatchEncoding, PreTrainedTokenizerBase

from flexlora_client.errors import DataError, ModelError
from flexlora_client.training.data.examples import Labelled, Scored, Tagged
from flexlora_client.training.encoding.encoded import IGNORE_INDEX, Encoded, NothingToLearn


def classified(tokenizer: PreTrainedTokenizerBase, example: Labelled | Scored, max_length: int) -> Encoded:
    """A text, or a pair of them; what is too long loses its right, of a pair the longer one first."""
    made = tokenizer(example.text, example.pair, verbose=False)
    whole = len(made.input_ids)
    if whole > max_length:
        made = tokenizer(example.text, example.pair, truncation=True, max_length=max_length)
    ids = tuple(made.input_ids)
    if not ids:
        raise NothingToLearn("a text has no token; give it more text.")
    target = (example.label,) if isinstance(example, Labelled) else ()
    values = example.values if isinstance(example, Scored) else ()
    types = tuple(made.get("token_type_ids", ()))
    return Encoded(ids, target, weight=1, type_ids=types, values=values, cut=whole - len(ids))


def tagged(tokenizer: PreTrainedTokenizerBase, example: Tagged, max_length: int) -> Encoded:
    """The first token of each word has its class, the others none.

    Raises:
        ModelError: the tokenizer does not tell which word a token is of.
        NothingToLearn: no word has a token.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "the tokenizer does not tell which word a token is of; use a model that has a tokenizer.json, "
            "which token classification needs."
        )
    if len(example.words) != len(example.tags):
        raise DataError(f"{len(example.words)} words have {len(example.tags)} tags; give each word one.")
    spaced = _needs_spaces(tokenizer)
    words = [f" {word}" if spaced and not word.startswith(" ") else word for word in example.words]
    made = tokenizer(words, is_split_into_words=True, verbose=False)
    whole = len(made.input_ids)
    if whole > max_length:
        made = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    targets = _first_tokens(made, example.tags)
    weight = sum(target != IGNORE_INDEX for target in targets)
    if weight == 0:
        raise NothingToLearn("none of an example's words has a token; delete the row.")
    return Encoded(tuple(made.input_ids), targets, weight, cut=whole - len(made.input_ids))


def _first_tokens(made: BatchEncoding, tags: tuple[int, ...]) -> tuple[int, ...]:
    targets, before = [], None
    for word in made.word_ids():
        targets.append(IGNORE_INDEX if word is None or word == before else tags[word])
        before = word
    return tuple(targets)


def _needs_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word must have a space before it to become the tokens that it has within a text (GPT-2, RoBERTa)."""
    within = tokenizer("a b", add_special_tokens=False).input_ids
    apart = tokenizer(["a", "b"], is_split_into_words=True, add_special_tokens=False).input_ids
    return bool(within != apart)
