"""FedSVD: agents train B alone, the server factors the averaged product anew (Lee et al. 2025, arXiv 2505.12805).

With every A_i a prefix of the A served, sum of p_i s_i B_i A_i = B A is linear in what is sent, whatever the mix of ranks:
[B_i 0] A is B_i A_i. Its SVD gives B = U Sigma and A = V^T for the next round: an orthonormal A that follows what was learned,
where `ffa` keeps round 0's, and averaging is as exact as there. The paper has one rank; a mix is this project's generalization.
The authors' code may factor anew every few rounds only; here it is done in each.
An update that comes late has the A that it was served, which makes a term of its own.

Where it fails: rows of A are combined, never trained. Nothing outside the span of the r_max rows that round 0 drew is learned,
but for directions of no energy, which are drawn anew. With mixed ranks a direction is multiplied by the weight share of those
who hold it, as in `flexlora`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flexlora_server.aggregation.check_updates import check_updates, is_served_A
from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.svd.stack import Stack, Term
from flexlora_server.aggregation.truncate import Aggregate, truncate
from flexlora_server.errors import AggregationError


def aggregate(
    updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float = 1.0
) -> Aggregate:
    """W = (sum of p_i s_i [B_i 0]) A, factored anew; one such term for each global update that slices were cut from."""
    check_updates(updates, previous)
    for index, update in enumerate(updates):
        if not is_served_A(update.A, update.base_or(previous).A):
            raise AggregationError(f"lora_A of update {index} is not the one served: fedsvd trains lora_B alone")
    served_from = {id(update.base): update.base_or(previous) for update in updates}
    terms = [
        Term(_summed([u for u in updates if id(u.base) == base], factors), factors.A, 1.0)
        for base, factors in served_from.items()
    ]
    return truncate(Stack(terms), previous, dtype, error_bound)


def _summed(updates: Sequence[Update], base: GlobalFactors) -> Tensor:
    """The sum of p_i s_i [B_i 0], (d, r_max) float64."""
    total = torch.zeros_like(base.B, dtype=torch.float64)
    for update in updates:
        total[:, : update.rank] += update.weight * update.scaling * update.B.double()
    return total
