"""Made evidence: two methods on two seeds, and their runs."""

from flexlora_simulation.evidence.table import Evidence, Run

POPULATION = {1: 3, 8: 1}


def made_run(method: str, seed: int, small: float, large: float, **changes: object) -> Run:
    """A run of two rounds in which everything doubles; `small`, `large`: at ranks 1 and 8, after the first."""
    values = {"test": {1: (small, 2 * small), 8: (large, 2 * large)}}
    fields = {
        "values": values,
        "uses": {1: 1, 8: 8},
        "bytes_up": (10, 20),
        "bytes_down": (30, 60),
        "cpu_seconds": (1.5, 3.0),
    }
    return Run("", method, 0.01, seed, "measured", (1, 2), **(fields | changes))  # type: ignore[arg-type]


def made_evidence(*runs: Run, **changes: object) -> Evidence:
    """Of accuracies."""
    fields = {
        "name": "made",
        "title": "Made",
        "about": "Made by hand.",
        "metric": "accuracy",
        "higher_is_better": True,
        "percent": True,
        "baseline": "flexlora",
        "population": {"": POPULATION},
        "definition": {"rates": [0.01]},
        "software": {"python": "3"},
        "runs": runs,
    }
    return Evidence(**(fields | changes))  # type: ignore[arg-type]
