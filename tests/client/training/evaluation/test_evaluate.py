"""Evaluation on small real models, against transformers' own figures."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flexlora_client.errors import DataError, DivergedError
from flexlora_client.training.data.examples import Chat, Choice, Example, Labelled, Plain, Prompted, Turn
from flexlora_client.training.encoding.batches import loss_of
from flexlora_client.training.encoding.encoder import IGNORE_INDEX, Encoder
from flexlora_client.training.evaluation.evaluate import evaluate, measure
from flexlora_client.training.evaluation.greedy_answers import SPARE_TOKENS, figures, generate, most_tokens
from flexlora_client.training.evaluation.metrics import macro_f1
from flexlora_client.training.evaluation.multiple_choice import picked
from flexlora_client.training.evaluation.own_metric import OwnMetric, load_metric
from flexlora_client.training.evaluation.sample import SampleSize
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.models.slice_files import read_slice
from flexlora_shared.messages.runs import ProblemType, TrainingSpec
from tests.support.tiny_models import load_peft, make_job, make_run, make_slice, make_tokenizer, scale_tensors

TEXT = {"loss", "perplexity"}
QUESTIONS: list[Example] = [
    Prompted("Who sings? ", "The bird."),
    Prompted("Who swims under it, far away? ", "A fish."),
    Prompted("Who stands there? ", "The tall tree."),
]


def test_loss_is_the_mean_over_response_tokens_that_transformers_gives(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama, training=TrainingSpec(batch_size=2, max_length=64))
    served = make_slice(tmp_path / "served", llama, spec)
    encoder, model = Encoder(make_tokenizer(), 64), load_peft(llama, spec, served)
    total, count = 0.0, 0
    for example in QUESTIONS:
        encoded = encoder.encode(example)
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([encoded.ids]), labels=torch.tensor([encoded.targets])).loss.item()
        tokens = sum(target != IGNORE_INDEX for target in encoded.targets)
        total, count = total + loss * tokens, count + tokens
    metrics = evaluate(spec, served, QUESTIONS, device="cpu", answers=0)
    assert metrics == pytest.approx({"loss": total / count, "perplexity": math.exp(total / count)}, rel=1e-4)


def test_answers_generated_in_a_batch_are_those_generated_alone(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama, training=TrainingSpec(max_length=100))
    served = make_slice(tmp_path / "served", llama, spec)
    loaded = Models().with_slice(read_slice(served, spec), spec, "cpu")
    tokenizer, model = make_tokenizer(), load_peft(llama, spec, served)
    encoder = Encoder(tokenizer, 100)
    questions = [encoder.question(example) for example in QUESTIONS if isinstance(example, Prompted)]
    assert len({len(question.ids) for question in questions}) == 3  # so that two of them are padded
    longest = max(len(tokenizer(question.answer, add_special_tokens=False).input_ids) for question in questions)
    alone = []
    for question in questions:
        ids = torch.tensor([question.ids])
        options = {"max_new_tokens": longest + SPARE_TOKENS, "do_sample": False, "pad_token_id": 1}
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[no-untyped-call]
        alone.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    assert generate(loaded, questions) == alone
    assert len(set(alone)) == 3


def test_the_models_own_generation_settings_do_not_count(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    loaded = Models().with_slice(read_slice(make_slice(tmp_path / "served", llama, spec), spec), spec, "cpu")
    questions = [Encoder(make_tokenizer(), 64).question(QUESTIONS[0])]  # type: ignore[arg-type]
    greedy = generate(loaded, questions)
    for name, value in [("repetition_penalty", 1e6), ("no_repeat_ngram_size", 1), ("num_beams", 4)]:
        setattr(loaded.model.generation_config, name, value)
    assert generate(loaded, questions) == greedy


def test_what_was_learned_by_heart_matches_exactly(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama, training=TrainingSpec(learning_rate=0.01, epochs=60, batch_size=3, max_length=64))
    served = make_slice(tmp_path / "served", llama, spec, rank=8)
    models = Models()
    before = evaluate(spec, served, QUESTIONS, device="cpu", models=models)
    StandardTrainer(models).train(make_job(spec, served, QUESTIONS, tmp_path / "out"))
    after = evaluate(spec, tmp_path / "out", QUESTIONS, device="cpu", models=models)
    assert before["exact_match"] == 0
    assert (after["exact_match"], after["rouge_l"]) == (1, 1)
    assert after["loss"] < 1 < before["loss"]  # the random output layer, which is frozen, allows 0.58
    wrong = [Prompted(QUESTIONS[0].prompt, "Nobody at all.")]  # type: ignore[union-attr]
    assert evaluate(spec, tmp_path / "out", wrong, device="cpu", models=models)["exact_match"] == 0


def test_evaluation_changes_nothing(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    models = Models()
    trainer = StandardTrainer(models)
    job = make_job(spec, served, QUESTIONS, tmp_path / "out")
    first = trainer.train(job).adapter.read_bytes()
    once = evaluate(spec, tmp_path / "out", QUESTIONS, device="cpu", models=models)
    assert evaluate(spec, tmp_path / "out", QUESTIONS, device="cpu") == once
    assert trainer.train(job).adapter.read_bytes() == first


def test_conversations_are_asked_for_their_last_answer(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    talk = Chat((Turn("user", "hello"), Turn("assistant", "good day")))
    assert evaluate(spec, served, [talk], device="cpu").keys() == {*TEXT, "exact_match", "rouge_l", "answers"}


def test_plain_text_has_no_answers(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    metrics = evaluate(spec, served, [Plain("The bird sings.")], device="cpu")
    assert metrics.keys() == TEXT
    assert metrics["loss"] > math.log(2)


def test_prompts_longer_than_the_model_are_asked_by_their_end(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama, training=TrainingSpec(max_length=1024))  # the model takes 128
    served = make_slice(tmp_path / "served", llama, spec)
    metrics = evaluate(spec, served, [Prompted("q" * 500, "z" * 500), Prompted("q" * 500, "z")], device="cpu")
    assert metrics["exact_match"] == 0


def test_accuracy_and_loss_of_a_classifier(bert: Path, tmp_path: Path) -> None:
    spec = make_run(bert, "SEQ_CLS", training=TrainingSpec(batch_size=2, max_length=64))
    served = make_slice(tmp_path / "served", bert, spec)
    model, tokenizer = load_peft(bert, spec, served), make_tokenizer()
    texts = ["sings", "swims under the long, long bridge", "grows", "flies over it", "stands"]
    ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
    with torch.no_grad():
        logits = torch.cat([model(input_ids=row).logits for row in ids])
    classes = logits.argmax(-1).tolist()
    wrong = [*classes[:3], (classes[3] + 1) % 3, (classes[4] + 1) % 3]
    metrics = evaluate(spec, served, [Labelled(text, n) for text, n in zip(texts, wrong, strict=True)], device="cpu")
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(wrong)).item()
    assert metrics.keys() == {"loss", "accuracy", "macro_f1"}
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["accuracy"] == 0.6
    assert metrics["macro_f1"] == pytest.approx(macro_f1(torch.tensor(classes), torch.tensor(wrong)))


def test_nothing_to_evaluate_on(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    with pytest.raises(DataError, match="no examples"):
        evaluate(spec, served, [], device="cpu")
    with pytest.raises(DataError, match="another task"):
        evaluate(spec, served, [Labelled("a", 0)], device="cpu")


def test_a_diverged_adapter_has_no_metrics(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    scale_tensors(served, 1e25)
    with pytest.raises(DivergedError, match="has diverged"):
        evaluate(spec, served, QUESTIONS, device="cpu", answers=0)


ALL = SampleSize(100, 100, 100)


class Ticking:
    """A clock that goes on by one second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_time_that_is_over_ends_the_evaluation_after_the_batches_begun(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama, training=TrainingSpec(batch_size=1, max_length=64))
    served = make_slice(tmp_path / "served", llama, spec)
    models, many = Models(), [Prompted(f"{n}? ", f"{n}.") for n in range(9)]

    def found(seconds: float | None) -> SampleSize:
        return measure(
            spec, served, many, most=ALL, seconds=seconds, device="cpu", models=models, clock=Ticking()
        ).sample

    assert found(None) == SampleSize(9, 0, 9)
    assert found(0) == SampleSize(4, 0, 0)  # one window of the loss, so that there is a figure; no half answers
    some = found(100)
    assert (some.examples, some.choices) == (9, 0)
    assert 0 < some.answers < 9


def test_the_examples_of_a_part_are_the_same_ones_whatever_stands_beside_them(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama, training=TrainingSpec(batch_size=2, max_length=64))
    served = make_slice(tmp_path / "served", llama, spec)
    models, many = Models(), [Prompted(f"{n}? ", f"{n}.") for n in range(20)]
    few = SampleSize(5, 0, 2)
    one = measure(spec, served, many, most=few, device="cpu", models=models)
    other = measure(spec, served, list(reversed(many)), most=few, device="cpu", models=models)
    assert one.sample == few
    assert one == other


def test_multiple_choice_by_likelihood(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama, training=TrainingSpec(batch_size=2, max_length=64))
    served = make_slice(tmp_path / "served", llama, spec)
    texts = ("yes", "no, it does not sing at all", "perhaps")
    model, tokenizer = load_peft(llama, spec, served), make_tokenizer()
    prompt, sums = tokenizer("Does it sing? ").input_ids, []
    for text in texts:
        own = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1]
        sums.append(logits.log_softmax(-1)[range(len(own)), own].sum().item())
    plain = max(range(3), key=lambda n: sums[n])
    norm = max(range(3), key=lambda n: sums[n] / len(texts[n]))
    assert plain != norm  # long texts are unlikely as wholes
    asked = [Choice("Does it sing? ", texts, answer) for answer in range(3)]
    metrics = evaluate(spec, served, asked, device="cpu", answers=0)
    assert metrics.keys() == {*TEXT, "choice_accuracy", "choice_accuracy_norm"}
    for example in asked:
        one = evaluate(spec, served, [example], device="cpu", answers=0)
        assert one["choice_accuracy"] == (example.answer == plain)
        assert one["choice_accuracy_norm"] == (example.answer == norm)


def test_the_space_that_parts_a_choice_from_its_prompt_is_none_of_its_length() -> None:
    sums = torch.tensor([-3.0, -8.0])
    assert picked(sums, ("a", "bcd")) == picked(sums, (" a", " bcd")) == (0, 1)


def test_of_several_right_answers_the_nearest_counts(llama: Path, tmp_path: Path) -> None:
    found = figures(["a cat", "two "], [("the dog barks", "a black cat"), ("one", "two")])
    assert found == pytest.approx({"exact_match": 0.5, "rouge_l": (0.8 + 1) / 2, "answers": 2})
    spec = make_run(llama, training=TrainingSpec(max_length=100))
    served = make_slice(tmp_path / "served", llama, spec)
    seen: list[object] = []

    def keep(predictions: Sequence[str], references: Sequence[object]) -> int:
        seen.extend(references)
        return len(predictions)

    asked = Prompted("Does it sing? ", "no")
    for example in (asked, replace(asked, references=("no, it swims",))):
        measure(spec, served, [example], most=ALL, device="cpu", own_metric=OwnMetric("kept", keep))
    assert seen == ["no", ("no", "no, it swims")]
    loaded, encoder = Models().with_slice(read_slice(served, spec), spec, "cpu"), Encoder(make_tokenizer(), 100)
    short, long = (encoder.question(replace(asked, references=others)) for others in ((), ("no, it swims",)))
    assert most_tokens(loaded, long) > most_tokens(loaded, short)  # room for the longest


def test_a_metric_of_ones_own(llama: Path, bert: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    own = load_metric("tests.support.metrics:same_length")
    found = measure(spec, served, QUESTIONS, most=ALL, device="cpu", own_metric=own).metrics
    assert found["same_length"] == 0  # an untrained model never ends
    spec = make_run(bert, "SEQ_CLS")
    served = make_slice(tmp_path / "classifier", bert, spec)
    found = measure(spec, served, [Labelled("sings", 0)], most=ALL, device="cpu", own_metric=own).metrics
    assert found["same_length"] == 1  # all names of labels have four letters


@pytest.mark.parametrize(
    ("problem", "logits", "targets", "expected"),
    [
        ("single-label", [[0.0, 0.0]], [1], math.log(2)),
        ("multi-label", [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 1.0]], 2 * math.log(2)),
        ("regression", [[1.0, 3.0]], [[0.0, 0.0]], 5.0),
        ("regression", [[1.0], [2.0]], [[0.0], [0.0]], 5.0),
    ],
)
def test_losses_are_summed_over_examples_and_averaged_over_labels(
    problem: ProblemType, logits: list[list[float]], targets: list[float], expected: float
) -> None:
    assert loss_of(torch.tensor(logits), torch.tensor(targets), problem).item() == pytest.approx(expected)
