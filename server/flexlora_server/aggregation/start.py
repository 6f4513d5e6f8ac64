"""Round 0 of a run that starts from another run's global update."""

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, rounded
from flexlora_server.aggregation.svd.stack import Stack, Term
from flexlora_server.aggregation.truncate import truncate, without_truncation
from flexlora_server.errors import AggregationError


def start_factors(
    source: GlobalFactors, initial: GlobalFactors, *, one_rank: bool, norm_bound: float, dtype: torch.dtype
) -> GlobalFactors:
    """The best approximation of source's W = B A at initial's rank, of A in values of the served `dtype`.

    It is factored anew, so that every slice is the best of its rank whatever made the source; directions beyond the rank of W
    have B = 0 and train, as in any round. Where one rank is served to all and it is the source's, the factors stay as they are: a
    rule that averages them goes on with what participants trained.

    Raises:
        AggregationError: W is larger than the norm bound, which every upload would miss, or does not fit into `dtype`.
    """
    if one_rank and source.A.shape == initial.A.shape:
        made = without_truncation(GlobalFactors(source.B, rounded(source.A, dtype)))
    else:
        made = truncate(Stack([Term(source.B, source.A, 1.0)]), initial, dtype)
    _check_norm(made.total_energy**0.5, norm_bound)
    return made.factors


def start_extra(tensor: Tensor, norm_bound: float) -> Tensor:
    """A tensor beside LoRA as it is; raises AggregationError where it is larger than the norm bound."""
    _check_norm(float(tensor.double().norm()), norm_bound)
    return tensor


def _check_norm(norm: float, bound: float) -> None:
    if norm > bound:
        raise AggregationError(
            f"the adapter that the run starts from has norm {norm:.3g}, more than norm_bound {bound:g}: "
            "no upload could keep within it; create the run anew with a larger norm_bound"
        )
