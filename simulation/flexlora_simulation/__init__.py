"""Simulated federations: the coordinator and the agents of the product, with virtual participants in virtual time."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexlora_simulation.experiment import Experiment, load
    from flexlora_simulation.results.results import Results
    from flexlora_simulation.simulation import simulate
else:
    _MODULES = {
        "Experiment": "experiment",
        "load": "experiment",
        "Results": "results.results",
        "simulate": "simulation",
    }

    def __getattr__(name: str) -> object:
        """Import what is asked for only then: the help of `flexlora-sim` needs none of the libraries."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = ["Experiment", "Results", "load", "simulate"]
