"""Energy kept and effective rank, against the oracle and by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flexlora_server.aggregation.diagnostics import effective_rank, energy_kept
from flexlora_server.aggregation.factors import GlobalFactors
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.aggregation.truncate import Aggregate
from flexlora_server.errors import AggregationError
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import product, random_round


def test_energy_kept_matches_the_oracle() -> None:
    case = random_round([2, 5, 8])  # together of rank 15: truncation at 8 loses something
    result = strategy("flexlora").aggregate(case.updates, case.previous, torch.float32)
    ranks = [2, 5, 8]
    expected = oracle.energy_kept(oracle.averaged(case.uploads), ranks)
    kept = energy_kept(result, ranks)
    assert [rank for rank, _ in kept] == ranks
    assert [share for _, share in kept] == pytest.approx(expected, rel=1e-6)
    assert kept[-1][1] < 1


def test_energy_kept_of_factors_that_are_not_orthonormal() -> None:
    case = random_round([6, 6])
    result = strategy("fedavg").aggregate(case.updates, case.previous, torch.float32)
    energy = [float(np.linalg.norm(product(result.factors, rank))) ** 2 for rank in (2, 6)]
    assert [share for _, share in energy_kept(result, [2, 6])] == pytest.approx([energy[0] / energy[1], 1.0])


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_energy_kept_of_squares_that_float32_does_not_hold(size: float) -> None:
    case = random_round([2, 5, 8])
    result = strategy("flexlora").aggregate(case.updates, case.previous, torch.float32)
    small = replace(result, factors=replace(result.factors, B=result.factors.B * size))
    small = replace(small, total_energy=result.total_energy * size**2)
    expected = [share for _, share in energy_kept(result, [2, 5, 8])]
    assert [share for _, share in energy_kept(small, [2, 5, 8])] == pytest.approx(expected, rel=1e-5)


def test_nothing_is_lost_of_nothing() -> None:
    zero = Aggregate(GlobalFactors(torch.zeros(4, 2), torch.eye(2, 5)), (0.0, 0.0), 0.0)
    assert energy_kept(zero, [1, 2]) == ((1, 1.0), (2, 1.0))


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_that_is_not_served_is_refused(rank: int) -> None:
    result = Aggregate(GlobalFactors(torch.ones(4, 2), torch.eye(2, 5)), (1.0,), 1.0)
    with pytest.raises(AggregationError, match="holds ranks 1 to 2"):
        energy_kept(result, [rank])


def test_effective_rank() -> None:
    assert effective_rank([3.0, 0.0, 0.0]) == pytest.approx(1.0)
    assert effective_rank([2.0] * 5) == pytest.approx(5.0)
    assert effective_rank([0.5, 0.25, 0.25]) == pytest.approx(2**1.5)
    assert effective_rank([0.0]) == 0.0
    assert effective_rank([]) == 0.0
