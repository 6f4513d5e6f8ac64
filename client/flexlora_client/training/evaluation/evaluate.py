"""Metrics of a slice on held-out examples.

loss          what training minimises, on average: cross entropy in nats over all predicted tokens (of responses only, where
              there are prompts), over tagged words, or over a classifier's examples; over labels, too, of multi-label (binary
              cross entropy) and of regression (squared error)
perplexity    exp(loss) of models that write
exact_match   share of answers generated greedily that equal the expected one, but for white space at the ends
rouge_l       their mean ROUGE-L;  answers: how many there are; of several right answers, the nearest counts
choice_*      see `multiple_choice`, where there are examples of multiple choice
accuracy      share of examples classified right in every label; of tags, share of words
macro_f1      mean F1 of the classes that occur, of multi-label of all labels
tag_f1        of words that are or should be tagged other than "O", where the run has such a tag
mse, mae, pearson     of regression

Prompts and conversations (their last answer is asked for) are answered. A participant's own metric comes beside them.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch

from flexlora_client.errors import DataError, DivergedError
from flexlora_client.training.contract import DEFAULT_COMPUTE, Compute
from flexlora_client.training.data.examples import Chat, Choice, Example, Instructed, Prompted
from flexlora_client.training.data.of_task import check_task
from flexlora_client.training.data.store import by_key, of_kinds
from flexlora_client.training.encoding.batches import collate, loss_of, predictions
from flexlora_client.training.encoding.encoder import Encoded, Encoder, NothingToLearn, Question
from flexlora_client.training.encoding.packing import learnable
from flexlora_client.training.evaluation import metrics
from flexlora_client.training.evaluation.greedy_answers import answer, figures
from flexlora_client.training.evaluation.multiple_choice import choose
from flexlora_client.training.evaluation.own_metric import OwnMetric
from flexlora_client.training.evaluation.sample import Clock, SampleSize, TimeLimit
from flexlora_client.training.models.load_model import LoadedModel, Models
from flexlora_client.training.models.replicas import deal, set_mode
from flexlora_client.training.models.slice_files import read_slice
from flexlora_shared.messages.runs import ModelSpec, RunSpec

WINDOW_BATCHES = 4  # sorted by length and evaluated whole: less padding, and no favour to short examples
MAX_PERPLEXITY_LOSS = 200.0  # nats: the exponential of more is no number that the protocol takes
T = TypeVar("T")
Kind = Literal["text", "tags", "single-label", "multi-label", "regression"]


@dataclass(frozen=True)
class Measured:
    """Metrics by name, and over how many examples they are."""

    metrics: dict[str, float]
    sample: SampleSize


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
    compute: Compute = DEFAULT_COMPUTE,
) -> dict[str, float]:
    """The metrics of all of `heldout`, as `measure` gives them; `answers` bounds how many are generated (None: all)."""
    most = SampleSize(len(heldout), len(heldout), len(heldout) if answers is None else answers)
    options = {
        "device": device,
        "model_path": model_path,
        "models": models,
        "base_adapter": base_adapter,
        "compute": compute,
    }
    return measure(spec, adapter, heldout, most=most, **options).metrics  # type: ignore[arg-type]


def measure(
    spec: RunSpec,
    adapter: Path,
    heldout: Sequence[Example],
    *,
    most: SampleSize,
    seconds: float | None = None,
    device: str = "auto",
    model_path: str | None = None,
    models: Models | None = None,
    base_adapter: Path | None = None,
    compute: Compute = DEFAULT_COMPUTE,
    own_metric: OwnMetric | None = None,
    clock: Clock = time.monotonic,
) -> Measured:
    """Metrics of the slice in directory `adapter`, over at most `most` of the examples; no tensor is changed.

    `seconds` bounds the time beside loading the model: loss, choices and answers get equal parts of it, what one leaves is the
    others', and each ends with the batches begun. Give the trainer's `models` and `compute` to share its base model. Where
    `adapter` holds a fresh adapter, `base_adapter` is the directory of the slice that it was trained on top of.

    Raises:
        TrainingError: as `StandardTrainer.train` does; PluginError where the own metric returns no numbers.
    """
    check_task(heldout, spec.model)
    base_slice = read_slice(base_adapter, spec) if base_adapter is not None else None
    loaded = (models or Models()).with_slice(
        read_slice(adapter, spec), spec, device, model_path, base_slice=base_slice, compute=compute
    )
    set_mode(loaded, train=False)
    return _Measuring(loaded, spec, TimeLimit(seconds, clock), own_metric).run(by_key(heldout), most)


@dataclass
class _Tally:
    """What the forward passes gave: the summed loss and its weight, and of classifiers the decisions."""

    loss: float = 0.0
    weight: int = 0
    sizes: list[int] = field(default_factory=list)  # predictions of each example
    predicted: list[torch.Tensor] = field(default_factory=list)
    expected: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class _Measuring:
    """One evaluation of a loaded model."""

    loaded: LoadedModel
    spec: RunSpec
    limit: TimeLimit
    own_metric: OwnMetric | None

    @property
    def _batch_size(self) -> int:
        size = self.spec.training.batch_size
        return min(self.loaded.compute.micro_batch or size, size)

    def run(self, examples: Sequence[Example], most: SampleSize) -> Measured:
        """All metrics, the examples being in the order in which they are taken."""
        model, size = self.spec.model, self._batch_size
        encoder = Encoder.of(self.spec, self.loaded.preprocessor, self.loaded.max_length)
        choices = of_kinds(examples, (Choice,))[: most.choices]
        asked = asked_of(examples, most.answers)
        parts = 1 + bool(choices) + bool(asked)
        tally = self._forward(encoder, examples[: most.examples], self.limit.part(parts))
        found, chosen, answered = _figures(tally, model), 0, 0
        if choices:
            more, chosen = choose(
                self.loaded, encoder, cast(Sequence[Choice], choices), size, self.limit.part(1 + bool(asked))
            )
            found |= more
        if asked:
            questions = list(questions_of(encoder, asked))
            texts = answer(self.loaded, questions, size, self.limit.part(1))
            asked_for, answered = questions[: len(texts)], len(texts)
            found |= figures(texts, [question.right for question in asked_for])
            found |= self._own(texts, [one.right if one.references else one.answer for one in asked_for])
        elif tally.predicted:
            named = (_named(values, tally.sizes, model) for values in (tally.predicted, tally.expected))
            found |= self._own(*named)
        return Measured(found, SampleSize(len(tally.sizes), chosen, answered))

    def _own(self, predicted: Sequence[Any], expected: Sequence[Any]) -> dict[str, float]:
        return self.own_metric(predicted, expected) if self.own_metric is not None and predicted else {}

    def _forward(self, encoder: Encoder, examples: Sequence[Example], over: Callable[[], bool]) -> _Tally:
        tally, kind = _Tally(), kind_of(self.spec.model)
        window_size = WINDOW_BATCHES * self.spec.training.batch_size * len(self.loaded.all_replicas)
        for window in _parts(examples, window_size):
            if tally.sizes and over():
                break
            encoded = sorted(learnable(encoder, window), key=lambda one: len(one.ids))
            tally.sizes += [one.weight for one in encoded]
            tally.weight += sum(one.weight for one in encoded)
            rows = [row for one in encoded for row in one.sequences]  # more than examples only where text is learned
            for loss, *decided in deal(self.loaded, [*_parts(rows, self._batch_size)], partial(_look, kind)):
                tally.loss += loss
                if decided:
                    tally.predicted.append(decided[0])
                    tally.expected.append(decided[1])
        return tally


@torch.no_grad()
def _look(kind: Kind, replica: LoadedModel, part: Sequence[Encoded]) -> tuple[Any, ...]:
    """The summed loss of a batch; of classifiers also the decisions and what was expected, on the CPU."""
    logits, targets = predictions(replica, collate(part, replica))
    loss = loss_of(logits, targets, replica.problem_type).item()
    if kind == "text":
        return (loss,)
    decided = _decided(kind, logits).cpu()
    return loss, decided, targets.reshape(decided.shape).cpu()


def kind_of(model: ModelSpec) -> Kind:
    """What a run's model predicts."""
    if model.task_type == "SEQ_CLS":
        return model.problem_type
    return {"TOKEN_CLS": "tags", "IMAGE_CLASSIFICATION": "single-label"}.get(model.task_type, "text")  # type: ignore[return-value]


def asked_of(examples: Sequence[Example], most: int) -> Sequence[Example]:
    """Those that are answered by generating text, at most so many; `examples` are in the order in which they are taken."""
    return of_kinds(examples, (Prompted, Instructed, Chat))[:most]


def questions_of(encoder: Encoder, examples: Iterable[Example]) -> Iterator[Question]:
    """What is asked, without examples that have no room for an answer."""
    for example in examples:
        with suppress(NothingToLearn):
            yield encoder.question(cast(Prompted | Instructed | Chat, example))


def _decided(kind: Kind, logits: torch.Tensor) -> torch.Tensor:
    """What the model says: classes (n,), labels (n, labels) bool, or values (n, labels)."""
    if kind == "regression":
        return logits
    return logits > 0 if kind == "multi-label" else logits.argmax(dim=-1)


def _figures(tally: _Tally, model: ModelSpec) -> dict[str, float]:
    if not tally.weight:
        raise DataError("no held-out example has a token to predict; give them more text.")
    loss = tally.loss / tally.weight
    if not math.isfinite(loss):
        raise DivergedError(
            f"the held-out loss is {loss}; the adapter has diverged, lower the learning rate of the run."
        )
    kind, found = kind_of(model), {"loss": loss}
    if kind == "text":
        return found | ({"perplexity": math.exp(loss)} if loss < MAX_PERPLEXITY_LOSS else {})
    predicted, expected = torch.cat(tally.predicted), torch.cat(tally.expected)
    if kind == "regression":
        return found | metrics.regression(predicted, expected)
    if kind == "multi-label":
        expected = expected.bool()
        found["macro_f1"] = metrics.macro_f1_of_labels(predicted, expected)
    elif kind == "single-label":
        found["macro_f1"] = metrics.macro_f1(predicted, expected)
    elif "O" in model.labels:
        found["tag_f1"] = metrics.tag_f1(predicted, expected, model.labels.index("O"))
    return found | {"accuracy": metrics.accuracy(predicted, expected)}


def _named(values: Sequence[torch.Tensor], sizes: Sequence[int], model: ModelSpec) -> list[Any]:
    """Decisions as a participant's own metric reads them; see `own_metric`."""
    joined, kind = torch.cat(list(values)), kind_of(model)
    if kind == "regression":
        return [tuple(row) for row in joined.tolist()]
    if kind == "multi-label":
        return [tuple(label for label, on in zip(model.labels, row, strict=True) if on) for row in joined.tolist()]
    names: list[Any] = [model.labels[index] for index in joined.tolist()]
    if kind == "single-label":
        return names
    rest: Iterator[str] = iter(names)
    return [[next(rest) for _ in range(size)] for size in sizes]


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
