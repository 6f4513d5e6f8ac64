"""Uploads whose product looks harmless: what filters see of them, whatever factors it is written in."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors
from flexlora_server.aggregation.filters.cosine import Cosine
from flexlora_server.aggregation.filters.geometric_median import GeometricMedian
from flexlora_server.aggregation.filters.multi_krum import MultiKrum
from flexlora_server.aggregation.filters.norm_clip import RunningBound
from flexlora_server.aggregation.filters.reweight import apply_filters
from flexlora_server.aggregation.filters.rule import Rule
from flexlora_server.aggregation.filters.split import split
from flexlora_server.aggregation.geometry import changes
from flexlora_server.aggregation.geometry.update_geometry import Geometry, factor_geometry, module_geometry
from flexlora_server.aggregation.strategies.registry import strategy
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import product
from tests.server.aggregation.geometry.test_geometry import global_factors

N = 10


def honest(rank: int = 4, size: float = 0.1) -> tuple[list[Update], GlobalFactors]:
    """Ten participants that moved a little from what they were served."""
    generator = torch.Generator().manual_seed(0)
    previous = global_factors(generator, 30, 40, rank, torch.float32)
    updates = []
    for _ in range(N):
        A, B = slice_factors(previous, rank, 1.0, torch.float32)
        A = A + size * torch.randn(A.shape, generator=generator)
        updates.append(Update(A, B + size * torch.randn(B.shape, generator=generator), 1.0, 1 / N, 1.0))
    return updates, previous


def rebalanced(update: Update, c: float) -> Update:
    """The same product, B c and A / c."""
    return replace(update, A=update.A / c, B=update.B * c)


@pytest.mark.parametrize("c", [1e-8, 1e3, 1e15, 1e25])
def test_a_product_has_one_geometry_whatever_its_factors(c: float) -> None:
    updates, previous = honest()
    before = replace(previous, B=0.9 * previous.B)
    plain = module_geometry(updates, previous, before, torch.float32, False)
    disguised = [rebalanced(updates[0], c), *updates[1:]]
    other = module_geometry(disguised, previous, before, torch.float32, False)
    assert torch.allclose(plain.inner, other.inner, rtol=1e-5)
    assert plain.with_previous is not None
    assert other.with_previous is not None
    assert torch.allclose(plain.with_previous, other.with_previous, rtol=1e-5)


def test_a_change_against_the_last_one_cannot_hide_from_the_cosine_filter() -> None:
    updates, previous = honest()
    before = replace(previous, B=0.5 * previous.B)
    against = replace(updates[0], A=previous.A, B=previous.B - 5 * (previous.B - before.B))
    for c in (1.0, 1e8, 1e20):
        geometry = module_geometry([rebalanced(against, c), *updates[1:]], previous, before, torch.float32, False)
        shares = apply_filters([1 / N] * N, geometry, [Cosine(-0.5)], ())
        assert shares.upload[0] == 0


def test_one_decoy_does_not_disarm_the_geometric_median() -> None:
    """An unchanged update in factors of 1e25 beside one that is flipped and tenfold."""
    updates, previous = honest()
    flipped = replace(updates[0], A=previous.A, B=-10 * updates[0].B)
    decoy = rebalanced(Update(previous.A, previous.B, 1.0, 1 / N, 1.0), 1e25)
    geometry = module_geometry([flipped, decoy, *updates[2:]], previous, None, torch.float32, False)
    shares = apply_filters([1 / N] * N, geometry, [GeometricMedian()], ())
    assert shares.upload[0] < 0.02


RULES: list[Rule] = [RunningBound(1.0, 0), MultiKrum(0.2), GeometricMedian()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_factors_that_cancel_in_a_product_are_seen_by_those_who_average_factors(rule: Rule) -> None:
    """B times 1000 and A over 1000 is nothing in the product, and everything beside the others' A."""
    updates, previous = honest()
    attacked = [rebalanced(updates[0], 1000.0), *updates[1:]]
    geometry = factor_geometry(attacked, previous, None, torch.float32)
    shares = apply_filters([1 / N] * N, geometry, [rule], ())
    fedavg, best = strategy("fedavg"), strategy("fedavg").aggregate(updates, previous, torch.float32)
    filtered = fedavg.aggregate(split(attacked, shares, previous, torch.float32, False), previous, torch.float32)
    open_ = fedavg.aggregate(attacked, previous, torch.float32)
    error, unfiltered = (
        oracle.relative_error(product(one.factors), product(best.factors)) for one in (filtered, open_)
    )
    assert error < 0.2
    assert unfiltered > 50


def test_the_geometry_of_factors_is_that_of_padded_vectors() -> None:
    generator = torch.Generator().manual_seed(3)
    previous = global_factors(generator, 7, 9, 5, torch.bfloat16)
    before = global_factors(generator, 7, 9, 5, torch.bfloat16)
    updates, rows = [], []
    for rank, scaling, served in ((2, 0.5, 2.0), (5, 3.0, 3.0), (3, 1.0, 2.0)):
        A0, B0 = slice_factors(previous, rank, served, torch.bfloat16)
        A, B = torch.randn(rank, 9, generator=generator), torch.randn(7, rank, generator=generator)
        updates.append(Update(A, B, scaling, 1 / 3, served))
        dB, dA = np.zeros((7, 5)), np.zeros((5, 9))
        dB[:, :rank] = scaling * oracle.to_numpy(B) - served * oracle.to_numpy(B0)
        dA[:rank] = oracle.to_numpy(A) - oracle.to_numpy(A0)
        rows.append(np.concatenate([dB.ravel(), dA.ravel()]))
    last = np.concatenate(
        [oracle.to_numpy(previous.B - before.B).ravel(), oracle.to_numpy(previous.A - before.A).ravel()]
    )
    found = factor_geometry(updates, previous, before, torch.bfloat16)
    assert np.allclose(found.inner.numpy(), np.array(rows) @ np.array(rows).T)
    assert found.with_previous is not None
    assert np.allclose(found.with_previous.numpy(), np.array(rows) @ last)
    assert found.previous_norm == pytest.approx(float(np.linalg.norm(last)))


def test_pieces_of_a_gram_matrix_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With thousands of participants it is made for some of them at a time."""
    updates, previous = honest()
    before = replace(previous, B=0.9 * previous.B)
    whole = module_geometry(updates, previous, before, torch.float32, False)
    for elements in (1, 50, 300):
        monkeypatch.setattr(changes, "CHUNK_ELEMENTS", elements)
        pieces = module_geometry(updates, previous, before, torch.float32, False)
        assert torch.allclose(whole.inner, pieces.inner, rtol=1e-10)
        assert torch.allclose(_with(whole), _with(pieces), rtol=1e-10)


def _with(geometry: Geometry) -> torch.Tensor:
    assert geometry.with_previous is not None
    return geometry.with_previous
