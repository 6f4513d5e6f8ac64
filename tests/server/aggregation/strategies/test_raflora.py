"""raFLoRA against its formula, direction by direction; what it keeps and what it loses."""

import numpy as np
import pytest
import torch
from hypothesis import given

from flexlora_server.aggregation.factors import Update
from flexlora_server.aggregation.strategies.registry import strategy
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import Round, idle_update, product, random_round, rounds

RAFLORA = strategy("raflora")


def test_by_hand() -> None:
    # ranks 1 and 2: the first direction is averaged over both, the second is the second participant's alone
    one = Update(torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0], [0.0]]), 1.0, 0.75, 1.0)
    two = Update(torch.eye(2), torch.tensor([[8.0, 0.0], [0.0, 1.0]]), 2.0, 0.25, 2.0)
    previous = random_round([2], d=2, k=2).previous
    result = RAFLORA.aggregate([one, two], previous, torch.float32)
    assert np.allclose(product(result.factors), [[0.75 * 4 + 0.25 * 16, 0.0], [0.0, 2.0]], atol=1e-6)


@given(case=rounds())
def test_matches_the_oracle(case: Round) -> None:
    result = RAFLORA.aggregate(case.updates, case.previous, torch.float32)
    W = oracle.banded(case.uploads)
    assert result.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=1e-8, abs=1e-300)
    if oracle.has_gap(W, len(case.previous.A)):
        assert oracle.relative_error(product(result.factors), oracle.truncated(W, len(case.previous.A))) < 1e-5


def test_one_rank_is_the_papers_rule() -> None:
    case = random_round([6, 6, 6])
    ours = RAFLORA.aggregate(case.updates, case.previous, torch.float32)
    papers = strategy("flexlora").aggregate(case.updates, case.previous, torch.float32)
    assert torch.equal(ours.factors.B, papers.factors.B)
    assert torch.equal(ours.factors.A, papers.factors.A)


def test_what_few_hold_does_not_shrink_and_what_nobody_holds_is_lost() -> None:
    case = random_round([4, 8, 16])
    start = strategy("flexlora").aggregate(case.updates, case.previous, torch.float32).factors
    idle = [idle_update(start, rank, 2.0, weight, torch.float32) for rank, weight in ((4, 0.7), (8, 0.2), (16, 0.1))]
    after = RAFLORA.aggregate(idle, start, torch.float32).factors
    assert oracle.relative_error(product(after), product(start)) < 1e-6
    lower = [idle_update(start, rank, 2.0, 0.5, torch.float32) for rank in (4, 8)]
    after = RAFLORA.aggregate(lower, start, torch.float32).factors
    assert oracle.relative_error(product(after), product(start, 8)) < 1e-6


def test_bands_that_cancel_in_the_product_do_not_cancel_here() -> None:
    """Why uploads of this rule keep each factor within the norm bound, and filters look at the factors."""
    row = torch.ones(1, 3)
    hidden = Update(torch.cat([row, row]), torch.tensor([[5.0, -5.0]]).expand(3, 2), 1.0, 0.5, 1.0)
    other = Update(torch.zeros(1, 3), torch.zeros(3, 1), 1.0, 0.5, 1.0)
    previous = random_round([2], d=3, k=3).previous
    assert not bool((hidden.B @ hidden.A).any())
    assert float(np.linalg.norm(product(RAFLORA.aggregate([hidden, other], previous, torch.float32).factors))) > 1
    assert RAFLORA.averages_factors
