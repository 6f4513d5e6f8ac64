"""Means, paired differences and costs, and how they are told."""

from dataclasses import replace

import pytest

from flexlora_simulation.evidence.markdown import markdown, seeds_told
from flexlora_simulation.evidence.summary import at_an_end, costs, results
from flexlora_simulation.evidence.table import Evidence
from tests.support.evidences import made_evidence, made_run


def four_methods() -> Evidence:
    runs = [made_run("bucket", 0, 0.1, 0.1, uses={1: 1, 8: 1}), made_run("bucket", 1, 0.1, 0.1, uses={1: 1, 8: 1})]
    runs += [made_run("flexlora", 0, 0.1, 0.2), made_run("flexlora", 1, 0.2, 0.3)]
    runs += [made_run("view", seed, 0.2, 0.4, uses={1: 8, 8: 8}) for seed in (1, 0)]
    return made_evidence(*runs, *(made_run("oracle", seed, 0.2, 0.45, uses={1: 8, 8: 8}) for seed in (0, 1)))


def test_each_method_beside_the_baseline_seed_by_seed() -> None:
    bucket, paper, view, oracle = results(four_methods(), "", "test")
    assert paper.whole.mean == pytest.approx(0.5)
    assert (paper.whole.less, paper.seeds) == (None, 2)
    assert paper.used.mean == pytest.approx((3 * 0.3 + 0.5) / 4)  # three of rank 1, one of rank 8
    assert view.whole.less is not None
    assert (view.whole.less.mean, view.whole.less.low, view.whole.less.high) == pytest.approx((0.3, 0.2, 0.4))
    assert view.by_rank[1].less is not None
    assert view.by_rank[1].less.mean == pytest.approx(0.5)  # it uses the whole
    assert bucket.by_rank[8].mean == pytest.approx(0.2)
    assert (bucket.way, view.way, oracle.way) == pytest.approx((0.0, 0.6 / 0.7, 1.0))


def test_no_difference_where_no_seed_is_common_and_no_way_without_its_ends() -> None:
    paper, view = results(made_evidence(made_run("flexlora", 0, 0.1, 0.2), made_run("view", 1, 0.1, 0.2)), "", "test")
    assert (view.used.less, view.way, paper.way) == (None, None, None)


def test_a_best_rate_at_an_end_of_those_tried_is_told() -> None:
    tried = [
        replace(made_run(name, 1000, 0.1, 0.1), rate=rate, split="tuning")
        for name, rates in (("flexlora", (0.005, 0.01, 0.02)), ("view", (0.01, 0.02)))
        for rate in rates
    ]
    evidence = made_evidence(*tried, made_run("flexlora", 0, 0.1, 0.2), made_run("view", 0, 0.1, 0.2))
    assert at_an_end(evidence, "") == ["view"]
    assert "perhaps better beyond: `view`." in markdown(evidence)
    assert "beyond" not in markdown(four_methods())


def test_what_a_level_cost() -> None:
    level, found = costs(four_methods(), "", "test")
    assert level == pytest.approx(0.2)  # where the bucket ends
    assert [(cost.method, cost.reached, cost.rounds, cost.bytes_down) for cost in found] == [
        ("bucket", 2, 2, 60),
        ("flexlora", 2, 1.5, 45),
        ("view", 2, 1, 30),
        ("oracle", 2, 1, 30),
    ]


def test_where_lower_is_better_the_level_is_reached_from_above() -> None:
    falling = {"values": {"test": {1: (0.9, 0.5), 8: (0.9, 0.4)}}, "uses": {1: 8, 8: 8}}
    better = made_evidence(
        made_run("flexlora", 0, 0.4, 0.2), made_run("view", 0, 0, 0, **falling), higher_is_better=False
    )
    level, found = costs(better, "", "test")
    assert level == pytest.approx(0.7)
    assert [cost.rounds for cost in found] == [1, 2]


def test_costs_that_are_not_known_are_not_told() -> None:
    assert costs(made_evidence(made_run("flexlora", 0, 0.1, 0.2, bytes_up=None)), "", "test")[1] == []


def test_too_few_seeds_are_said_to_decide_nothing() -> None:
    one = results(four_methods(), "", "test")[:1]
    assert seeds_told(one) == "2 seeds, fewer than 5: **no claim**"
    assert seeds_told([replace(one[0], seeds=5)]) == "5 seeds"


def test_the_tables() -> None:
    told = markdown(four_methods())
    assert "| `view` | 0.01 | 80.0 | +30.0 [+20.0, +40.0] | 80.0 | +45.0 [+35.0, +55.0] | 86% |" in told
    assert "| method | rank 1 uses | less `flexlora` | rank 8 uses | less `flexlora` |" in told
    assert "| `flexlora` | 2 of 2 | 1.5 | 0.0 | 0.0 | 2.2 |" in told
    assert "0.800" in markdown(replace(four_methods(), percent=False))
