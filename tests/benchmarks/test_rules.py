"""The comparison of the rules: who trains what, many learners at once, the choice of rates, kept results, tables."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.lib.rules.rule import Rule, Start, chosen, rules, tail_energy
from benchmarks.lib.rules.teacher.learners import BATCH, Layer, layer, train
from benchmarks.lib.rules.teacher.rounds import run
from benchmarks.rules import main
from flexlora_server.aggregation.factors import GlobalFactors
from flexlora_server.aggregation.strategies.registry import strategies, strategy
from flexlora_simulation.workloads.teacher_problem import KINDS, Kind, forward, problem

TINY = Kind(examples=8, temperature=0.1)


def named(name: str) -> Rule:
    return chosen([name])[0]


def factors(rank: int) -> GlobalFactors:
    generator = torch.Generator().manual_seed(0)
    return GlobalFactors(torch.randn(5, rank, generator=generator), torch.randn(rank, 6, generator=generator))


def test_every_strategy_is_compared_at_ranks_that_it_can_serve() -> None:
    known = {rule.strategy for rule in rules()}
    assert known == set(strategies())
    for rule in rules():
        strategy(rule.strategy).check(rule.ranks_of([2, 2, 16]))
    assert len({rule.name for rule in rules()}) == len(rules())
    with pytest.raises(ValueError, match="choose from bucket"):
        chosen(["flexlora", "unknown"])


@pytest.mark.parametrize("name", ["flexlora", "view", "flora"])
def test_what_is_trained_and_what_is_frozen_under_it(name: str) -> None:
    served, rule, scaling = factors(4), named(name), 2.0
    start = rule.start(served, 1, scaling, torch.Generator().manual_seed(0))
    product = scaling * (start.B @ start.A + sum((B @ A for A, B in start.frozen), torch.zeros(5, 6)))
    seen = 4 if name == "view" else 1
    torch.testing.assert_close(product, served.B[:, :seen] @ served.A[:seen])
    assert (start.A.shape, bool(start.B.any())) == ((1, 6), name != "flora")
    assert rule.used_rank(1, 4) == seen


def test_learners_of_several_ranks_at_once_learn_what_each_learns_alone() -> None:
    generator = torch.Generator().manual_seed(0)

    def start(d: int, k: int, rank: int) -> Start:
        return Start(torch.randn(rank, k, generator=generator), torch.randn(d, rank, generator=generator))

    weights = [torch.randn(d, k, generator=generator) for d, k in ((5, 6), (3, 5))]
    starts = [[start(d, k, rank) for d, k in ((5, 6), (3, 5))] for rank in (1, 3)]
    inputs = torch.randn(2, 2 * BATCH, 6, generator=generator)
    labels = torch.randint(3, (2, 2 * BATCH), generator=generator)
    together = train(layers(weights, starts, 3), inputs, labels, 0.01, ("A", "B"))
    for n, rank in enumerate((1, 3)):
        alone = train(layers(weights, [starts[n]], rank), inputs[n : n + 1], labels[n : n + 1], 0.01, ("A", "B"))
        for (A, B), (own_A, own_B) in zip(together, alone, strict=True):
            torch.testing.assert_close((A[n, :rank], B[n, :, :rank]), (own_A[0], own_B[0]), rtol=1e-4, atol=1e-5)
            assert not A[n, rank:].any()
            assert not B[n, :, rank:].any()


def layers(weights: Sequence[torch.Tensor], starts: Sequence[Sequence[Start]], rank: int) -> list[Layer]:
    return [layer([weight] * len(starts), [own[n] for own in starts], rank) for n, weight in enumerate(weights)]


def test_B_alone_is_trained_where_the_rule_says_so() -> None:
    assert [named(name).trained(2) for name in ("ffa", "rolora", "flexlora")] == [("B",), ("A",), ("A", "B")]
    given = [layer([torch.randn(3, 4)], [Start(torch.ones(2, 4), torch.zeros(3, 2))], 2)]
    ((A, B),) = train(given, torch.randn(1, BATCH, 4), torch.zeros(1, BATCH, dtype=torch.long), 0.01, ("B",))
    assert torch.equal(A, torch.ones(1, 2, 4))
    assert B.any()


def test_a_seed_is_one_problem_and_the_splits_have_nothing_in_common() -> None:
    one, same, other = (problem(3, TINY, 2, split) for split in ("test", "test", "validation"))
    assert torch.equal(one.inputs, same.inputs)
    assert not torch.equal(one.base[0], other.base[0])
    assert len(set(one.answers.tolist())) > 5
    assert 0.05 < float((forward(one.measured, one.base).argmax(-1) == one.answers).float().mean()) < 0.6


def test_seeds_side_by_side_are_what_they_are_alone() -> None:
    problems = [problem(seed, TINY, 8, "test") for seed in range(2)]
    both = run(named("flexlora"), [1, 2] * 4, 0.01, problems, rounds=1)
    alone = run(named("flexlora"), [1, 2] * 4, 0.01, problems[1:], rounds=1)[0]
    assert both[1].whole == pytest.approx(alone.whole, abs=0.3)
    assert both[0].used.keys() == {1, 2}
    assert both[0].mean == pytest.approx((both[0].used[1] + both[0].used[2]) / 2)


def test_the_tail_is_what_lies_beyond_the_rank() -> None:
    even = GlobalFactors(torch.eye(4), torch.eye(4))
    assert tail_energy([even, even], 1) == pytest.approx(0.75)
    assert tail_energy([GlobalFactors(torch.zeros(4, 2), torch.ones(2, 4))], 1) == 0


def test_tables_and_the_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "noisy", replace(KINDS["noisy"], examples=8))
    arguments = ["--cells", "two-tier,noisy", "--rules", "flexlora", "view, leak 0.1", "--rates", "0.01"]
    main([*arguments, "--seeds", "1", "--rounds", "1", "--processes", "1"])
    *tables, last = capsys.readouterr().out.splitlines()
    assert [line.count("|") for line in tables if "|" in line] == [10] * 4 + [3] * 8
    assert {row["rule"] for row in json.loads(last)["rows"]} == {"flexlora", "view, leak 0.1"}


@pytest.mark.parametrize("wrong", [["--cells", "even,richer"], ["--rules", "unknown"], ["--banking77"]])
def test_a_wrong_option_is_refused_in_a_sentence(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(wrong)
    assert "scripts/bench rules: " in capsys.readouterr().err


@pytest.mark.slow
def test_every_rule_runs_in_processes(tmp_path: Path) -> None:
    main(["--quick", "--rounds", "2", "--processes", "2", "--json", "--results", str(tmp_path / "results.jsonl")])
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(found) == 2 * len(rules()) * 3
