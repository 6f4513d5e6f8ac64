"""raFLoRA: each band of directions is averaged over those who hold it (Wu et al. 2026, arXiv 2602.13486).

With r_1 < r_2 < ... the distinct ranks of a round's updates, r_0 = 0, and C_h the participants of rank r_h or more,

    W = sum over h of  sum over i in C_h of  (p_i / sum of p_j over C_h) s_i B_i[:, r_h-1 : r_h] A_i[r_h-1 : r_h, :]

and W is factored anew, as in `flexlora`. The bands are columns and rows of the factors as they were uploaded, which are those
of the served slice's singular directions before local training; the product of a band is averaged, never B and A apart. With
one rank it is `flexlora`. RB-LoRA (Findings of EACL 2026) weighs each direction by the same shares; its published code averages
B and A apart before the SVD. What only few hold no longer shrinks by their share in every round.

Where it fails: the weights no longer belong to the products. What a participant has put into its first columns in training
counts less beside others than what it has put into its last, and a band of few is as noisy as they are few: with few noisy
examples it lost to `flexlora` by 1 to 3 points in our simulations and spoiled the slice of the low ranks. Directions above
the highest rank present are lost, as in `flexlora`. And it depends on the factors, not on their product: bands that cancel
in the product of an upload do not cancel here.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from flexlora_server.aggregation.check_updates import check_updates
from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.svd.stack import Stack, Term
from flexlora_server.aggregation.truncate import Aggregate, truncate


def aggregate(
    updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float = 1.0
) -> Aggregate:
    """W as in the module, truncated to the largest rank served."""
    check_updates(updates, previous)
    return truncate(Stack(list(_bands(updates))), previous, dtype, error_bound)


def _bands(updates: Sequence[Update]) -> Iterator[Term]:
    present = [update for update in updates if update.weight > 0]
    for low, high in pairwise([0, *sorted({update.rank for update in present})]):
        holders = [update for update in present if update.rank >= high]
        share = math.fsum(update.weight for update in holders)
        for u in holders:
            yield Term(u.B[:, low:high], u.A[low:high], u.weight / share * u.scaling)
