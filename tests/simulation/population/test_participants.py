"""Who affords what: shares and counts, the paper's types and distributions, ranks by the number of examples, ranks by module."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexlora_client.training.data.examples import Labelled
from flexlora_shared.messages.runs import ModuleSpec
from flexlora_shared.ranks import module_ranks
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment, Resource, parse
from flexlora_simulation.population.participants import draw_participants
from flexlora_simulation.population.resources import rank_pattern, ranks_of, shared_out
from flexlora_simulation.workloads.contract import Item

ITEMS = [Item(Labelled(str(n), n % 2), str(n % 2)) for n in range(100)]
NAMES = ("h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj")
MODULES = [ModuleSpec(name=name, out_features=300, in_features=300) for name in NAMES]


def experiment(**fields: Any) -> Experiment:
    return parse({"name": "x", "workload": {"name": "w"}, "run": {"rounds": 1}, **fields})


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(0, 500))
def test_shares_hold_to_the_next_whole_number(shares: list[float], participants: int) -> None:
    dealt = Counter(shared_out([Resource(rank=1, share=share) for share in shares], participants))
    assert dealt.total() == participants
    assert all(abs(dealt[n] - participants * share / sum(shares)) < 1 for n, share in enumerate(shares))


def test_counts_are_exact_and_the_rest_goes_by_shares() -> None:
    resources = [Resource(rank=1, count=3), Resource(rank=2, share=3), Resource(rank=4)]
    assert Counter(shared_out(resources, 11)) == {0: 3, 1: 6, 2: 2}
    assert shared_out([Resource(rank=1, count=2), Resource(rank=2, count=0)], 2) == [0, 0]
    for wrong in (1, 3):
        with pytest.raises(ExperimentError, match=f"counts add up to 2, but {wrong} participants train"):
            shared_out([Resource(rank=1, count=2)], wrong)


def test_the_papers_distributions() -> None:
    found = draw_participants(
        experiment(partition={"participants": 100}, resources="heavy-tail-light"),
        ITEMS,
    )
    assert Counter((one.resource.rank, one.resource.attention_rank) for one in found) == {
        (8, None): 80,
        (30, None): 5,
        (200, 30): 5,
        (200, None): 10,
    }
    own = {"distribution": "normal", "ranks": [1, 2, 3, 4], "hold_rank": 4, "speeds": [1, 2, 3, 4]}
    found = draw_participants(experiment(partition={"participants": 100}, resources=own), ITEMS)
    assert Counter(one.resource.rank for one in found) == {1: 6, 2: 44, 3: 44, 4: 6}
    assert {(one.resource.hold_rank, one.resource.speed - one.resource.rank) for one in found} == {(4, 0)}


def test_only_those_who_train_count_in_the_shares() -> None:
    resources = [{"rank": 1, "count": 4}, {"rank": 2, "count": 4}]
    found = draw_participants(experiment(partition={"participants": 10, "unseen": 2}, resources=resources), ITEMS)
    assert Counter(one.resource.rank for one in found if one.part.seen) == {1: 4, 2: 4}


def test_the_largest_rank_may_go_with_the_most_examples() -> None:
    partition = {"by": "size", "participants": 10, "alpha": 1.0}
    resources = [{"rank": 1, "share": 3}, {"rank": 2}, {"rank": 8}]
    for seed in range(3):
        fields: dict[str, Any] = {"partition": partition, "resources": resources, "seed": seed}
        found = draw_participants(experiment(resources_by="size", **fields), ITEMS)
        by_size = sorted(found, key=lambda one: len(one.part.train))
        assert [one.resource.rank for one in by_size] == [1] * 6 + [2] * 2 + [8] * 2
        by_chance = draw_participants(experiment(**fields), ITEMS)
        assert [one.part for one in by_chance] == [one.part for one in found]
        assert [one.resource.rank for one in by_chance] != [one.resource.rank for one in found]


def test_ranks_by_module_are_the_papers_types() -> None:
    third = Resource(rank=200, attention_rank=30)
    assert list(module_ranks(MODULES, 200, rank_pattern(third, MODULES)).values()) == [30, 30, 200, 200]
    assert ranks_of(third) == {30, 200}
    mixed = Resource(rank=200, attention_rank=30, rank_pattern={"attn.c_proj": 4, "c_fc": 8}, hold_rank=250)
    assert list(module_ranks(MODULES, 200, rank_pattern(mixed, MODULES)).values()) == [30, 4, 8, 200]
    assert ranks_of(mixed) == {200, 30, 4, 8, 250}
    assert rank_pattern(Resource(rank=3), MODULES) == {}


@pytest.mark.parametrize(
    ("resource", "sentence"),
    [
        (Resource(rank=1, rank_pattern={"q_proj": 2}), "rank_pattern names 'q_proj', which is none"),
        (Resource(rank=1, attention_rank=2), "have no attention layers"),
    ],
)
def test_ranks_of_modules_that_there_are_not_are_refused(resource: Resource, sentence: str) -> None:
    with pytest.raises(ExperimentError, match=sentence):
        rank_pattern(resource, MODULES[2:])
