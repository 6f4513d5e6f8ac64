"""Answers generated greedily for held-out prompts, and how near they are to the expected ones."""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from flexlora_client.training.encoding.encoder import Question, shortened
from flexlora_client.training.evaluation.rouge import rouge_l
from flexlora_client.training.models.load_model import LoadedModel

SPARE_TOKENS = 16  # generated beyond a batch's longest answer, so that an answer that does not end counts as wrong


def answer(
    loaded: LoadedModel, questions: Sequence[Question], size: int, over: Callable[[], bool] = lambda: False
) -> list[str]:
    """The answers to the first of the questions, `size` at a time, until `over`; what is unfinished then is left out."""
    texts: list[str] = []
    while len(texts) < len(questions) and not over():
        made = generate(loaded, questions[len(texts) : len(texts) + size], over)
        if over():  # the clock stopped some of them in the middle; to keep the others alone would favour short answers
            break
        texts.extend(made)
    return texts


def figures(texts: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """`exact_match`, `rouge_l` (means) and their number, `answers`; nothing of no texts.

    Each text counts against the nearest of its right answers, as the evaluation of Super-NaturalInstructions takes it.
    """
    if not texts:
        return {}
    pairs = list(zip(texts, right, strict=True))
    exact = sum(any(text.strip() == other.strip() for other in others) for text, others in pairs)
    rouge = sum(max(rouge_l(text, other) for other in others) for text, others in pairs)
    count = len(pairs)
    return {"exact_match": exact / count, "rouge_l": rouge / count, "answers": float(count)}


def generate(loaded: LoadedModel, questions: Sequence[Question], over: Callable[[], bool] = lambda: False) -> list[str]:
    """Each question's greedy continuation, without special tokens, generated as one batch.

    At most as many tokens as the longest right answer has, and a few more; fewer where `over` is true meanwhile. A prompt
    loses its left where the model's positions end.
    """
    made = ask(loaded, questions, max(most_tokens(loaded, question) for question in questions), over)
    return [str(loaded.tokenizer.decode(row, skip_special_tokens=True)) for row in made]


def most_tokens(loaded: LoadedModel, question: Question) -> int:
    """As many tokens as the longest of the right answers has, and a few more."""
    ids = loaded.tokenizer(list(question.right), add_special_tokens=False).input_ids
    return max(map(len, ids)) + SPARE_TOKENS


def ask(
    loaded: LoadedModel,
    questions: Sequence[Question],
    tokens: int,
    over: Callable[[], bool] = lambda: False,
    least: int = 0,
) -> list[torch.Tensor]:
    """The ids of each question's greedy continuation, at most `tokens` and at least `least`; see `generate`."""
    new = min(tokens, loaded.positions - 1)
    apart = is_encoder_decoder(loaded)  # the prompt takes no positions of the answer
    room = max(1, loaded.positions - (0 if apart else new))
    prompts = [shortened(question.ids, room, loaded.tokenizer.bos_token_id) for question in questions]
    width = max(len(ids) for ids in prompts)
    padding = [[loaded.pad_id] * (width - len(ids)) for ids in prompts]
    # a decoder goes on at the right end, so that must be the prompt's; an encoder may count its positions from the left
    ids = [[*own, *pad] if apart else [*pad, *own] for own, pad in zip(prompts, padding, strict=True)]
    mask = [
        [*[1] * len(own), *[0] * len(pad)] if apart else [*[0] * len(pad), *[1] * len(own)]
        for own, pad in zip(prompts, padding, strict=True)
    ]
    with torch.no_grad(), loaded.precision():
        made = loaded.model.generate(  # type: ignore[no-untyped-call]
            input_ids=torch.tensor(ids, device=loaded.device),
            attention_mask=torch.tensor(mask, device=loaded.device),
            generation_config=greedy(loaded, new, min_new_tokens=min(least, new)),
            stopping_criteria=StoppingCriteriaList([_Over(over)]),
        )
    return [row[0 if apart else width :] for row in made]


def greedy(loaded: LoadedModel, new: int, **settings: object) -> GenerationConfig:
    """Settings of greedy generation of at most `new` tokens; `settings` are others than greedy ones.

    All that matters is set, because the model's generation_config.json may set others.
    """
    chosen = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, **settings}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=new, pad_token_id=loaded.pad_id, eos_token_id=list(loaded.stop_ids), **chosen
    )


def is_encoder_decoder(loaded: LoadedModel) -> bool:
    """Whether the model reads the prompt with an encoder and writes the answer with a decoder."""
    return bool(getattr(loaded.model.get_base_model().config, "is_encoder_decoder", False))


class _Over(StoppingCriteria):
    """Stops a whole batch when the time is over."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over

    def __call__(self, input_ids: torch.LongTensor, scores: object, **_: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._over(), dtype=torch.bool, device=input_ids.device)
