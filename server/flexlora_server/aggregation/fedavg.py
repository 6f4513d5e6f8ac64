"""FedAvg on the factors: A and B averaged separately, at one rank (FedIT, arXiv 2305.05644)."""

from collections.abc import Sequence

import torch

from flexlora_server.aggregation.check import check_updates
from flexlora_server.aggregation.errors import AggregationError, UnsupportedRun
from flexlora_server.aggregation.extra import weighted_average
from flexlora_server.aggregation.factors import GlobalFactors, Update, rounded
from flexlora_server.aggregation.strategy import Aggregate
from flexlora_server.aggregation.svd import factored_svd
from flexlora_server.aggregation.truncate import reported


class FedAvg:
    """B = sum of p_i s_i B_i, A = sum of p_i A_i: with equal scalings the served B is the plain average."""

    name = "fedavg"
    averages_factors = True

    def check(self, ranks: Sequence[int]) -> None:
        if len(set(ranks)) != 1:
            raise UnsupportedRun(
                f"fedavg averages the factors and needs one rank for all, not {sorted(set(ranks))}: "
                "allow a single rank, or choose flexlora"
            )

    def aggregate(self, updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype) -> Aggregate:
        check_updates(updates, previous)
        ranks, r_max = {update.rank for update in updates}, previous.A.shape[0]
        if ranks != {r_max}:
            raise AggregationError(f"fedavg needs every update at rank {r_max}, not {sorted(ranks)}")
        B = weighted_average((update.scaling * update.B.double(), update.weight) for update in updates)
        A = rounded(weighted_average((update.A, update.weight) for update in updates), dtype)
        svd = factored_svd(B, A, r_max)
        return Aggregate(GlobalFactors(B=B, A=A), reported(svd), svd.total_energy)
