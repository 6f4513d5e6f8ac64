"""Metrics of a slice on held-out examples."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from flexlora_client.errors import DivergedError
from flexlora_client.training.data.examples import Chat, Example, Prompted
from flexlora_client.training.encoding.batches import collate, predictions
from flexlora_client.training.encoding.encoder import Encoded, Encoder, Question, shortened
from flexlora_client.training.evaluation.rouge import rouge_l
from flexlora_client.training.loop.standard import check_task
from flexlora_client.training.models.load_model import LoadedModel, Models
from flexlora_client.training.models.slice_files import read_slice
from flexlora_shared.messages.runs import RunSpec

T = TypeVar("T")
SPARE_TOKENS = 16  # generated beyond a batch's longest answer, so that an answer that does not end counts as wrong


def evaluate(
    spec: RunSpec,
    adapter: Path,
    heldout: Sequence[Example],
    *,
    device: str = "auto",
    model_path: str | None = None,
    models: Models | None = None,
    answers: int | None = None,
    base_adapter: Path | None = None,
) -> dict[str, float]:
    """Metrics of the slice in directory `adapter`, by metric name; no tensor is changed.

    loss         cross entropy in nats: mean over all predicted tokens (of responses only, where there are prompts), or
                 over a classifier's examples
    accuracy     share of examples classified right, of classifiers
    exact_match  share of answers generated greedily that equal the expected one, but for white space at the ends
    rouge_l      their mean ROUGE-L

    The last two exist where `heldout` holds prompts or conversations (their last answer is asked for). Generation takes
    most of the time: `answers` bounds how many, the first ones, are generated (None: all, 0: none).
    Give the trainer's `models` to share its base model. Where `adapter` holds a fresh adapter, `base_adapter` is the directory
    of the slice that it was trained on top of: the two act together.

    Raises:
        TrainingError: as `StandardTrainer.train` does.
    """
    check_task(heldout, spec.model.task_type == "SEQ_CLS")
    base_slice = read_slice(base_adapter, spec) if base_adapter is not None else None
    loaded = (models or Models()).with_slice(read_slice(adapter, spec), spec, device, model_path, base_slice=base_slice)
    loaded.model.eval()
    encoder = Encoder.of(spec, loaded.tokenizer, loaded.max_length)
    sequences = (sequence for example in heldout for sequence in encoder.encode(example).sequences)
    encoded = sorted(sequences, key=lambda sequence: len(sequence.ids))
    metrics = _losses(loaded, encoded, spec.training.batch_size)
    questions = [encoder.question(example) for example in heldout if isinstance(example, Prompted | Chat)][:answers]
    return metrics | _answers(loaded, questions, spec.training.batch_size) if questions else metrics


def generate(loaded: LoadedModel, questions: Sequence[Question]) -> list[str]:
    """Each question's greedy continuation, without special tokens, generated as one batch.

    At most as many tokens as the longest answer has, and a few more. A prompt loses its left where training would cut
    it, or where the model's positions end.
    """
    lengths = [len(loaded.tokenizer(question.answer, add_special_tokens=False).input_ids) for question in questions]
    new = min(max(lengths) + SPARE_TOKENS, loaded.positions - 1)
    prompts = []
    for question, length in zip(questions, lengths, strict=True):
        room = max(1, min(loaded.max_length - length - 1, loaded.positions - new))
        prompts.append(shortened(question.ids, room, loaded.tokenizer.bos_token_id))
    width = max(len(ids) for ids in prompts)
    ids = [[loaded.pad_id] * (width - len(ids)) + list(ids) for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,  # set, because the model's generation_config.json may set others
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=loaded.pad_id,
        eos_token_id=list(loaded.stop_ids),
    )
    with torch.no_grad(), loaded.precision():
        generated = loaded.model.generate(  # type: ignore[no-untyped-call]
            input_ids=torch.tensor(ids, device=loaded.device),
            attention_mask=torch.tensor(mask, device=loaded.device),
            generation_config=settings,
        )
    return [str(loaded.tokenizer.decode(row[width:], skip_special_tokens=True)) for row in generated]


@torch.no_grad()
def _losses(loaded: LoadedModel, encoded: Sequence[Encoded], size: int) -> dict[str, float]:
    loss, right = 0.0, 0
    for part in _parts(encoded, size):
        logits, targets = predictions(loaded, collate(part, loaded))
        loss += cross_entropy(logits, targets, reduction="sum").item()
        right += int((logits.argmax(-1) == targets).sum())
    mean = loss / sum(example.weight for example in encoded)
    if not math.isfinite(mean):
        raise DivergedError(
            f"the held-out loss is {mean}; the adapter has diverged, lower the learning rate of the run."
        )
    return {"loss": mean, "accuracy": right / len(encoded)} if loaded.classifies else {"loss": mean}


def _answers(loaded: LoadedModel, questions: Sequence[Question], size: int) -> dict[str, float]:
    exact, rouge = 0, 0.0
    for part in _parts(sorted(questions, key=lambda question: len(question.ids)), size):
        for question, text in zip(part, generate(loaded, part), strict=True):
            exact += text.strip() == question.answer.strip()
            rouge += rouge_l(text, question.answer)
    return {"exact_match": exact / len(questions), "rouge_l": rouge / len(questions)}


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
