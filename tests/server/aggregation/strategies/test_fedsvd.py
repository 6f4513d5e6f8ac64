"""FedSVD: linear in what is sent at any mix of ranks, an orthonormal A anew, and no A but the served one."""

from dataclasses import replace

import pytest
import torch

from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.errors import AggregationError
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, product, random_round, to_oracle

FEDSVD = strategy("fedsvd")
MIX = ((2, 8.0, 0.2), (5, 1.3, 0.3), (16, 2.0, 0.5))


def trained(factors: GlobalFactors, dtype: torch.dtype, seed: int) -> list[Update]:
    generator, updates = torch.Generator().manual_seed(seed), []
    for rank, scaling, weight in MIX:
        A, B = slice_factors(factors, rank, scaling, dtype)
        moved = (B.float() + 0.1 * torch.randn(B.shape, generator=generator)).to(dtype)
        updates.append(Update(A, moved, scaling, weight, scaling))
    return updates


@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_oracle_round_by_round(dtype: torch.dtype) -> None:
    factors = random_round([16]).previous
    factors = replace(factors, A=factors.A.to(dtype).float())
    for number in range(3):
        updates = trained(factors, dtype, seed=number)
        W = oracle.averaged([to_oracle(update) for update in updates])
        factors = FEDSVD.aggregate(updates, factors, dtype).factors
        accuracy = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert oracle.relative_error(product(factors), W) < accuracy  # rank 16 holds all of it
        assert torch.equal(factors.A, factors.A.to(dtype).float())
        assert torch.allclose(factors.A @ factors.A.mT, torch.eye(16), atol=1e-6 + 4 * torch.finfo(dtype).eps)


def test_late_updates_have_the_A_that_they_were_served() -> None:
    older = (
        strategy("flexlora").aggregate(random_round([16]).updates, random_round([16]).previous, torch.float32).factors
    )
    now = FEDSVD.aggregate(trained(older, torch.float32, 1), older, torch.float32).factors
    late = [replace(trained(older, torch.float32, 2)[1], base=older)]
    updates = [trained(now, torch.float32, 3)[0], *late, trained(now, torch.float32, 3)[2]]
    W = oracle.averaged([to_oracle(update) for update in updates])
    result = FEDSVD.aggregate(updates, now, torch.float32)
    assert oracle.relative_error(product(result.factors), oracle.truncated(W, 16)) < 1e-6
    with pytest.raises(AggregationError, match="lora_A of update 1 is not the one served"):
        FEDSVD.aggregate([updates[0], replace(late[0], base=None), updates[2]], now, torch.float32)
