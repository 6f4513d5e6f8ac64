"""The rank that a machine affords, measured on a tiny real model."""

from pathlib import Path

import pytest

from benchmarks.lib.confined import Limits, can_confine
from benchmarks.rank_auto import GIB, make_llama, measure
from flexlora_client.errors import DeviceError, OutOfMemory
from flexlora_client.training.contract import Compute
from flexlora_client.training.data.examples import Example, Labelled, Prompted
from flexlora_client.training.encoding.encoder import Encoder
from flexlora_client.training.fitting import measure as measuring
from flexlora_client.training.fitting.measure import Participant, choose_rank, refused
from flexlora_client.training.fitting.workload import token_lengths
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.runs import RunSpec, TrainingSpec
from tests.support.tiny_models import make_run, make_tokenizer

EXAMPLES: list[Example] = [Prompted("What? " * (n % 5 + 1), "It is so.") for n in range(9)]
QUICK = TrainingSpec(batch_size=4, max_length=64)


def participant(
    base: Path, examples: list[Example] = EXAMPLES, compute: Compute | None = None, answers: int = 0
) -> Participant:
    return Participant(examples[:6], examples[6:], answers, "cpu", str(base), compute or Compute())


@pytest.fixture(scope="module")
def run(llama: Path) -> RunSpec:
    return make_run(llama, training=QUICK)


def test_with_room_the_largest_rank_is_chosen_and_the_model_stays_loaded(llama: Path, run: RunSpec) -> None:
    models = Models()
    choice = choose_rank(run, participant(llama, answers=2), models)
    assert choice.chosen is not None
    assert choice.chosen.rank == 8
    assert [option.rank for option in choice.options] == [8, 4, 2]
    assert models._base is not None
    below = choose_rank(run, participant(llama), models, below=(4, 4), holds_more=True).chosen
    assert below is not None
    assert (below.rank, below.held) == (2, 4), "no more is held than before"
    held = choose_rank(run, participant(llama), models, below=(2, 8), holds_more=True).chosen
    assert held is not None
    assert (held.rank, held.hold_rank) == (2, 4), "less is held before less is trained"


def test_a_classifiers_micro_batch_and_checkpointing_stay_as_asked(bert: Path) -> None:
    spec = make_run(bert, "SEQ_CLS", training=QUICK)
    labelled: list[Example] = [Labelled(f"sings number {n}", n % 3) for n in range(8)]
    asked = Compute(micro_batch=2, gradient_checkpointing=True)
    choice = choose_rank(spec, participant(bert, labelled, asked), Models())
    assert {(option.micro_batch, option.gradient_checkpointing) for option in choice.options} == {(2, True)}


def test_a_deadline_that_no_rank_meets_is_told(llama: Path, run: RunSpec) -> None:
    hurried = run.model_copy(update={"round_timeout": 1e-3})
    choice = choose_rank(hurried, participant(llama), Models())
    assert choice.chosen is None
    with pytest.raises(DeviceError, match=r"a round of the lowest rank, 2, would take .* minutes of 0.0; give fewer"):
        raise refused(choice)


def test_memory_that_no_rank_fits_is_told(llama: Path, run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "free_memory", lambda device: 100_000)
    choice = choose_rank(run, participant(llama), Models())
    assert choice.chosen is None
    with pytest.raises(OutOfMemory, match=r"the lowest rank, 2, would take .* GiB of .*; load the base model smaller"):
        raise refused(choice)


def test_a_model_that_cannot_fit_is_not_loaded(llama: Path, run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "free_memory", lambda device: 10_000)
    models = Models()
    with pytest.raises(OutOfMemory, match="the base model takes at least"):
        choose_rank(run, participant(llama), models)
    assert models._base is None


def test_below_the_lowest_rank_there_is_none(llama: Path, run: RunSpec) -> None:
    with pytest.raises(OutOfMemory, match="no rank below 2"):
        choose_rank(run, participant(llama), Models(), below=(2, 2))


def test_lengths_of_many_examples_are_estimated_from_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(make_tokenizer(), 64)
    exact = token_lengths(encoder, EXAMPLES)
    assert exact == [len(encoder.encode(example).ids) for example in EXAMPLES]
    monkeypatch.setattr("flexlora_client.training.fitting.workload.ENCODED_AT_MOST", 5)
    assert token_lengths(encoder, EXAMPLES) == pytest.approx(exact, abs=3)


@pytest.mark.slow
@pytest.mark.skipif(not can_confine(), reason="needs root and control groups")
@pytest.mark.parametrize(
    "limits", [Limits(GIB), Limits(2 * GIB)], ids=["1 GiB", "2 GiB"]
)  # more: scripts/bench rank-auto
def test_under_a_limit_the_chosen_round_ends_within_the_memory_predicted(tmp_path: Path, limits: Limits) -> None:
    found = measure(make_llama(tmp_path), limits, minutes=10)
    assert "error" not in found  # not killed
    assert found["changed"] is None  # memory did not end
    assert found["chosen"]["peak_bytes"] == pytest.approx(found["peak_bytes"], rel=0.25)
