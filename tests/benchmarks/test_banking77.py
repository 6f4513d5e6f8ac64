"""BANKING77's questions as sampled, dealt out unevenly and written for the agents."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.banking77 import RANKS, SMALLEST, deal, dirichlet_split, sample
from benchmarks.lib.federation.federation import BenchmarkError
from flexlora_client.training.data.examples import Labelled
from flexlora_shared.messages.runs import ModelSpec
from flexlora_simulation.workloads.banking77 import Question
from tests.support.data_files import load

LABELS = [f"intent-{n % 40}" for n in range(2000)]
QUESTIONS = [Question(f'question {n}, with a comma and a "quote"', label) for n, label in enumerate(LABELS)]


def owned(parts: list[list[int]]) -> float:
    """The mean share of a label's examples that its largest owner holds."""
    shares = []
    for label in set(LABELS):
        counts = Counter(number for number, part in enumerate(parts) for index in part if LABELS[index] == label)
        shares.append(max(counts.values()) / counts.total())
    return sum(shares) / len(shares)


@given(
    labels=st.lists(st.sampled_from("abcde"), min_size=1, max_size=60),
    agents=st.integers(1, 5),
    alpha=st.sampled_from([0.001, 0.01, 0.5, 100.0]),
    seed=st.integers(0, 10),
)
def test_every_example_goes_to_exactly_one_agent(labels: list[str], agents: int, alpha: float, seed: int) -> None:
    parts = dirichlet_split(labels, agents, alpha, smallest=0, seed=seed)
    assert len(parts) == agents
    assert sorted(index for part in parts for index in part) == list(range(len(labels)))


def test_a_smaller_alpha_concentrates_every_label_on_one_owner() -> None:
    parts = {alpha: dirichlet_split(LABELS, 8, alpha, smallest=20, seed=0) for alpha in (0.01, 0.5, 1000.0)}
    assert owned(parts[0.01]) > 0.9
    assert 0.3 < owned(parts[0.5]) < 0.8
    assert owned(parts[1000.0]) < 0.2  # an even deal: an eighth each


def test_every_agent_has_as_many_as_asked_for() -> None:
    drawn = [dirichlet_split(LABELS, 8, 0.01, smallest, seed=3) for smallest in (0, 150)]
    assert min(map(len, drawn[0])) < 150 <= min(map(len, drawn[1]))


def test_the_same_seed_gives_the_same_split() -> None:
    one, same, other = (dirichlet_split(LABELS, 8, 0.5, smallest=20, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(("alpha", "sentence"), [(0.0, "above 0"), (float("nan"), "above 0"), (0.01, "more examples")])
def test_an_impossible_split_is_refused(alpha: float, sentence: str) -> None:
    with pytest.raises(BenchmarkError, match=sentence):
        dirichlet_split(LABELS[:40], 8, alpha, smallest=30, seed=0)


def test_the_agents_read_what_they_are_dealt(tmp_path: Path) -> None:
    people = deal(QUESTIONS, 0.5, 0, tmp_path / "data")
    model = ModelSpec(id="none", task_type="SEQ_CLS", labels=tuple(sorted(set(LABELS))))
    assert [person.rank for person in people] == list(RANKS)
    assert len({person.name for person in people}) == len(RANKS)
    read = [load(person.train, model) for person in people]
    assert min(map(len, read)) >= SMALLEST
    expected = {Labelled(one.text, model.labels.index(one.category)) for one in QUESTIONS}
    assert {example for part in read for example in part} == expected
    assert sum(map(len, read)) == len(QUESTIONS)


def test_a_sample_is_the_same_for_the_same_seed() -> None:
    assert sample(QUESTIONS, 50, 1) == sample(QUESTIONS, 50, 1) != sample(QUESTIONS, 50, 2)
    assert sorted(map(str, sample(QUESTIONS, 10_000, 0))) == sorted(map(str, QUESTIONS))
