"""FedAvg on the factors, and its refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flexlora_server.aggregation.factors import Update, slice_factors
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.errors import AggregationError, UnsupportedRun
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, random_round

FEDAVG = strategy("fedavg")


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_A_and_B_separately(dtype: torch.dtype) -> None:
    case = random_round([6, 6, 6])
    result = FEDAVG.aggregate(case.updates, case.previous, dtype)
    A = sum(u.weight * u.A for u in case.uploads)
    B = sum(u.weight * u.scaling * u.B for u in case.uploads)
    name = str(dtype).removeprefix("torch.")
    assert np.array_equal(oracle.to_numpy(result.factors.A), oracle.rounded(np.asarray(A), name))
    assert oracle.relative_error(oracle.to_numpy(result.factors.B), np.asarray(B)) < 1e-7
    sigma = oracle.singular_values(np.asarray(B) @ oracle.to_numpy(result.factors.A))
    assert result.singular_values == pytest.approx(tuple(sigma[:6]), rel=1e-6)
    assert result.total_energy == pytest.approx(float((sigma**2).sum()), rel=1e-6)


def test_equal_scalings_serve_the_plain_average() -> None:
    case = random_round([6, 6, 6])
    updates = [Update(u.A, u.B, 4.0, u.weight, 4.0) for u in case.updates]
    result = FEDAVG.aggregate(updates, case.previous, torch.float32)
    A, B = slice_factors(result.factors, 6, 4.0, torch.float32)
    assert torch.allclose(A, torch.stack([u.weight * u.A for u in updates]).sum(0), atol=1e-6)
    assert torch.allclose(B, torch.stack([u.weight * u.B for u in updates]).sum(0), atol=1e-6)


@pytest.mark.parametrize("name", ["fedavg", "hetlora"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_direction_that_everybody_sends_as_nothing_keeps_its_A(name: str, dtype: torch.dtype) -> None:
    """With both factors at 0 it would have no gradient in any later round."""
    case = random_round([6, 6])
    previous = replace(case.previous, A=case.previous.A.to(dtype).float())
    updates = []
    for update in case.updates:
        A, B = update.A.clone(), update.B.clone()
        A[[1, 4]], B[:, [1, 3, 4]] = 0.0, 0.0
        updates.append(replace(update, A=A, B=B))
    factors = strategy(name).aggregate(updates, previous, dtype).factors
    assert torch.equal(factors.A[[1, 4]], previous.A[[1, 4]])
    assert not bool(factors.B[:, [1, 3, 4]].any())
    assert not torch.equal(factors.A[3], previous.A[3])  # this one trains: only its B is 0
    nothing = [replace(u, A=torch.zeros_like(u.A), B=torch.zeros_like(u.B)) for u in case.updates]
    assert torch.equal(strategy(name).aggregate(nothing, previous, dtype).factors.A, previous.A)


def test_one_rank_is_accepted() -> None:
    FEDAVG.check([8])
    FEDAVG.check([8, 8])


@pytest.mark.parametrize("ranks", [[4, 8], [4, 8, 4], []])
def test_a_run_with_mixed_ranks_is_refused(ranks: list[int]) -> None:
    with pytest.raises(UnsupportedRun, match=r"needs one rank for all.*allow a single rank, or choose flexlora"):
        FEDAVG.check(ranks)


@pytest.mark.parametrize("ranks", [[4, 8], [4, 4]])
def test_updates_of_another_rank_are_refused(ranks: list[int]) -> None:
    previous = random_round([8]).previous
    with pytest.raises(AggregationError, match="fedavg needs every update at rank 8"):
        FEDAVG.aggregate(random_round(ranks).updates, previous, torch.float32)
