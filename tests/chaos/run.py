"""The run definition of a plan."""

from typing import Any

from tests.chaos.history import Plan
from tests.chaos.onehot import MODULE, RANKS, SCALING, SIZE


def spec(plan: Plan) -> dict[str, Any]:
    """The run of a plan."""
    return {
        "name": "run",
        "model": {"id": "tiny"},
        "modules": [{"name": MODULE, "out_features": SIZE, "in_features": SIZE}],
        "ranks": list(RANKS),
        "scaling": {"alpha_per_rank": SCALING},
        "strategy": "flexlora-residual" if plan.holds_more else "flexlora",
        "rounds": plan.rounds,
        "clients_per_round": plan.clients_per_round,
        "over_selection": plan.over_selection if plan.clients_per_round else 0,
        "min_clients": min(plan.min_updates, plan.clients_per_round or 9),
        "min_updates": plan.min_updates,
        "gather_timeout": 3.0,
        "round_timeout": 100.0,
        "grace": plan.grace,
        "late_updates": plan.late_updates,
        "weighting": "examples",  # the oracle's sums: neither bounded nor filtered
        "robust": [],
    }
