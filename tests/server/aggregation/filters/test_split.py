"""Shares as updates: what a strategy is handed, and how far one boosted update moves the result."""

import math

import numpy as np
import pytest
import torch

from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors
from flexlora_server.aggregation.filters.geometric_median import GeometricMedian
from flexlora_server.aggregation.filters.multi_krum import MultiKrum
from flexlora_server.aggregation.filters.norm_clip import FixedBound, RunningBound
from flexlora_server.aggregation.filters.reweight import Shares, apply_filters
from flexlora_server.aggregation.filters.rule import Rule
from flexlora_server.aggregation.filters.split import split
from flexlora_server.aggregation.geometry.update_geometry import Geometry, module_geometry
from flexlora_server.aggregation.strategies import registry as registered
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, product, random_round, to_oracle

RANKS = (2, 4, 4, 8, 8, 8, 2)


def published(dtype: torch.dtype) -> GlobalFactors:
    case = random_round([8, 8])
    return registered.strategy("flexlora").aggregate(case.updates, case.previous, dtype).factors


def trained(previous: GlobalFactors, dtype: torch.dtype, boost: float = 1.0) -> list[Update]:
    """Participants of mixed ranks that moved B alike; the first one's change of B is boosted."""
    generator = torch.Generator().manual_seed(9)
    learned = torch.randn(previous.B.shape, generator=generator)
    updates = []
    for index, rank in enumerate(RANKS):
        A, B = slice_factors(previous, rank, 2.0, dtype)
        step = learned[:, :rank] + 0.3 * torch.randn(B.shape, generator=generator)
        B = (B.float() + 0.02 * (boost if index == 0 else 1.0) * step).to(dtype)
        updates.append(Update(A, B, 2.0, 1 / len(RANKS), 2.0))
    return updates


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clipped_participant_is_its_upload_and_what_it_was_served(dtype: torch.dtype) -> None:
    previous = published(dtype)
    updates = trained(previous, dtype, boost=50.0)
    shares = apply_filters([u.weight for u in updates], _geometry(updates, previous, dtype), [RunningBound(1.5, 0)], ())
    parts = split(updates, shares, previous, dtype, fresh=False)
    assert len(parts) == len(RANKS) + sum(weight > 0 for weight in shares.served)
    assert parts[0].B is updates[0].B
    served_A, served_B = slice_factors(previous, RANKS[0], 2.0, dtype)
    assert torch.equal(parts[1].A, served_A)
    assert torch.equal(parts[1].B, served_B)
    assert (parts[1].scaling, parts[1].served_scaling, parts[1].weight) == (2.0, 2.0, shares.served[0])
    assert math.fsum(part.weight for part in parts) == pytest.approx(1.0, abs=1e-12)
    assert [part.rank for part in parts if part.B.dtype != dtype] == []


def test_together_they_are_the_shortened_change() -> None:
    """c W + (1 - c) S = S + c D, against dense matrices."""
    previous = published(torch.float32)
    updates = trained(previous, torch.float32, boost=50.0)
    geometry = _geometry(updates, previous, torch.float32)
    shares = apply_filters([u.weight for u in updates], geometry, [FixedBound(0.01)], ())
    parts = split(updates, shares, previous, torch.float32, fresh=False)
    got = oracle.averaged(to_oracle(part) for part in parts)
    want = np.zeros((24, 40))
    for update, norm in zip(updates, geometry.norms, strict=True):
        A, B = slice_factors(previous, update.rank, 2.0, torch.float32)
        S = 2.0 * oracle.to_numpy(B) @ oracle.to_numpy(A)
        D = 2.0 * oracle.to_numpy(update.B) @ oracle.to_numpy(update.A) - S
        want += update.weight * (S + min(1.0, 0.01 / norm) * D)
    assert oracle.relative_error(got, want) < 1e-12


def test_who_counts_nothing_is_left_out() -> None:
    previous = published(torch.float32)
    updates = trained(previous, torch.float32)[:2]
    parts = split(updates, Shares((0.0, 1.0), (0.0, 0.0), ((), ())), previous, torch.float32, fresh=False)
    assert [(part.rank, part.weight) for part in parts] == [(4, 1.0)]


def test_a_fresh_adapter_that_changed_nothing_has_no_product() -> None:
    previous = published(torch.float32)
    updates = trained(previous, torch.float32)[:1]
    [part] = split(updates, Shares((0.0,), (1.0,), ((),)), previous, torch.float32, fresh=True)
    assert torch.equal(part.A, previous.A[:2])
    assert not part.B.any()
    assert part.B.shape == updates[0].B.shape


def test_everybody_dropped_leaves_the_residual_update_as_it_was() -> None:
    previous = published(torch.bfloat16)
    updates = trained(previous, torch.bfloat16)
    nobody = Shares((0.0,) * len(RANKS), tuple(u.weight for u in updates), ((),) * len(RANKS))
    parts = split(updates, nobody, previous, torch.bfloat16, fresh=False)
    after = registered.strategy("flexlora-residual").aggregate(parts, previous, torch.bfloat16).factors
    assert torch.equal(after.B, previous.B)


@pytest.mark.parametrize(("name", "times"), [("flexlora", 10), ("flexlora-residual", 30)])
@pytest.mark.parametrize("rule", [FixedBound(0.5), RunningBound(1.5, 0), MultiKrum(0.15), GeometricMedian()])
def test_one_update_boosted_a_hundredfold_no_longer_decides(rule: Rule, name: str, times: int) -> None:
    """The error against a round of the honest ones only falls so many times.

    Less by the paper's rule: there other weights of the ranks alone change how much of the old tail is left.
    """
    previous = published(torch.float32)
    updates = trained(previous, torch.float32, boost=100.0)
    weights = [u.weight for u in updates]
    others = [Update(u.A, u.B, u.scaling, 1 / (len(RANKS) - 1), u.served_scaling) for u in updates[1:]]
    honest = product(registered.strategy(name).aggregate(others, previous, torch.float32).factors)

    def error(filters: list[Rule]) -> float:
        shares = apply_filters(weights, _geometry(updates, previous, torch.float32), filters, ())
        parts = split(updates, shares, previous, torch.float32, fresh=False)
        result = product(registered.strategy(name).aggregate(parts, previous, torch.float32).factors)
        return oracle.relative_error(result, honest)

    assert error([rule]) < error([]) / times


def _geometry(updates: list[Update], previous: GlobalFactors, dtype: torch.dtype) -> Geometry:
    return module_geometry(updates, previous, None, dtype, fresh=False)
