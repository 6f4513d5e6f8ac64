"""Truncates a stack of factors to a published global update: the step that the decomposing strategies share."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, rounded
from flexlora_server.aggregation.svd.stack import Stack, Term
from flexlora_server.aggregation.svd.truncated_svd import TruncatedSVD, decompose
from flexlora_server.errors import AggregationError

MAX_REPORTED_VALUES = 64  # leading singular values in a round's metrics


@dataclass(frozen=True)
class Aggregate:
    """The aggregate of one module.

    factors: the new global update.
    singular_values: the leading 64 of the aggregated W, before truncation, descending; where a rule changes them, those served.
    total_energy: the squared Frobenius norm of that W, before any rule changes its singular values: what a rule takes away
        is missing from the energy kept at each rank, like what the truncation takes.
    certificate: the truncation's error is at most this many times the smallest possible; 1 where it is exact. It is about the
        directions found and says nothing of what a rule takes from their singular values.
    route: how W was decomposed; `fell_back` names the routes that failed before, and why.
    products: (R, R) float64 of the columns p, q of the stack, the updates in their order first: p_i s_i p_j s_j <b_p, b_q>
    <a_p, a_q>, if the decomposition has made them; else None.
    """

    factors: GlobalFactors
    singular_values: tuple[float, ...]
    total_energy: float
    certificate: float = 1.0
    route: str = ""
    fell_back: tuple[str, ...] = ()
    products: Tensor | None = None


def truncate(
    stack: Stack,
    previous: GlobalFactors,
    dtype: torch.dtype,
    error_bound: float = 1.0,
    changed: Callable[[TruncatedSVD], Tensor] | None = None,
    *,
    begins_with_updates: bool = False,
) -> Aggregate:
    """The stack's W at previous' rank: B = U Sigma, A = V^T; an iteration starts from the previous directions.

    All of Sigma goes on B: the rows of A stay orthonormal, so a direction with sigma = 0 has B = 0 but A != 0
    and still trains (FlexLoRA: Bai et al. 2024, arXiv 2402.11505).

    Rounding moves a row v to a: then <v, a> / |a|^2 times a is nearest to v. Without that factor a direction that hardly
    changes is rounded the same way round after round, and its sigma grows or shrinks each time.

    changed: gives the singular values (r,) to serve in place of the decomposition's S, descending.
    begins_with_updates: the stack's first terms are `weighted_stack` of the round's updates, as they came: then the figures of
        the round are computed from the products that the decomposition has made of them.
    """
    svd = decompose(stack, previous.A.shape[0], error_bound, start=previous.A)
    if changed is not None:
        svd = _with_values(svd, changed(svd))
    A = rounded(svd.Vt, dtype)
    products = svd.products if begins_with_updates else None
    nearest = (svd.Vt * A).sum(dim=1) / A.double().square().sum(dim=1)
    return replace(_with_metrics(GlobalFactors(B=to_float32(svd.US * nearest), A=A), svd), products=products)


def _with_values(svd: TruncatedSVD, S: Tensor) -> TruncatedSVD:
    """The decomposition with other singular values, of its first r directions alone."""
    share = torch.where(svd.S > 0, S / svd.S, 0.0)
    return replace(svd, US=svd.US * share, S=S, singular_values=S[: len(svd.singular_values)])


def without_truncation(factors: GlobalFactors) -> Aggregate:
    """The aggregate that publishes these factors unchanged; their product is decomposed for the metrics only."""
    return _with_metrics(factors, decompose(Stack([Term(factors.B, factors.A, 1.0)]), factors.A.shape[0]))


def _with_metrics(factors: GlobalFactors, svd: TruncatedSVD) -> Aggregate:
    leading = tuple(svd.singular_values[:MAX_REPORTED_VALUES].tolist())
    return Aggregate(factors, leading, svd.total_energy, svd.certificate, svd.route, svd.fell_back)


def to_float32(B: Tensor) -> Tensor:
    """B as float32; raises AggregationError where the global update is too large for it."""
    narrow = B.to(torch.float32)
    if not bool(torch.isfinite(narrow).all()):
        raise AggregationError("the aggregated update does not fit into float32: an upload's values are far too large")
    return narrow
