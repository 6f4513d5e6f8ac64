"""The robustness benchmark in small: its table, its JSON, and that filters save what it says they save."""

import json

import pytest
import torch
from torch import Tensor

from benchmarks import robustness
from benchmarks.lib.svd.hostile import ATTACKS, DTYPE, attacked, forged, multiplied, task, trained
from benchmarks.lib.svd.matrices import dense
from benchmarks.robustness import NOBODY, STRATEGIES, against, calm, filters, main
from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors
from flexlora_server.aggregation.strategies.registry import strategy


@pytest.mark.slow
def test_one_seed_prints_a_table_and_ends_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "1"])
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert (found["participants"], found["hostile"], found["seeds"]) == (20, 3, 1)
    assert len(table) == 2 + len(STRATEGIES) * (1 + len(ATTACKS))
    assert {line.count(" | ") for line in table[::2]} == {1 + len(filters(1.0))}
    for rows in found["errors"].values():
        assert list(rows) == [NOBODY, *ATTACKS]
        boosted = rows["boosted x100"]
        assert boosted["none"] > 5
        assert all(boosted[name] < boosted["none"] / 10 for name in filters(1.0) if name not in ("none", "cosine"))


def test_only_the_json_where_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robustness, "medians", lambda seeds, noise: {"measured": [seeds, noise]})
    main(["--seeds", "1", "--json"])
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["errors"] == {"measured": [1, 1.0]}


def test_a_forged_update_is_the_multiple_of_the_honest_change() -> None:
    """At the participant's own rank, so nearly: the change of B dominates."""
    generator = torch.Generator().manual_seed(0)
    given = task(generator)
    start = calm("flexlora-residual", given, 1.0, generator)
    update = trained(given, start.previous, 1.0, generator)[3]
    forgery = forged(update, start.previous, multiplied(-10.0), generator)
    W, X, S = product(update), product(forgery), served(update, start.previous)
    assert float((X - S + 10 * (W - S)).norm() / (10 * (W - S)).norm()) < 0.1


@pytest.mark.parametrize("name", STRATEGIES)
def test_without_filters_a_round_is_what_the_strategy_makes_of_it(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    given = task(generator)
    start = calm(name, given, 1.0, generator)
    honest = trained(given, start.previous, 1.0, generator)
    boosted = attacked(honest, given, start.previous, multiplied(100.0), generator)
    wanted, made = (dense(strategy(name).aggregate(each, start.previous, DTYPE).factors) for each in (honest, boosted))
    learned = sum(update.weight * (product(update) - served(update, start.previous)) for update in honest)
    expected = float((made - wanted).norm()) / float(torch.as_tensor(learned).norm())
    assert against(start, boosted, honest)["none"] == pytest.approx(expected, rel=1e-6)


def product(update: Update) -> Tensor:
    """s B A."""
    return update.scaling * update.B.double() @ update.A.double()


def served(update: Update, previous: GlobalFactors) -> Tensor:
    """The slice it was trained from, multiplied."""
    A, B = slice_factors(previous, update.rank, update.served_scaling, DTYPE)
    return update.served_scaling * B.double() @ A.double()
