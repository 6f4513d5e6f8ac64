"""Simulated federations: the coordinator and the agents of the product, with virtual participants in virtual time."""

from flexlora_simulation.experiment import Experiment, load
from flexlora_simulation.results.results import Results
from flexlora_simulation.simulate import run_definition, simulate

__all__ = ["Experiment", "Results", "load", "run_definition", "simulate"]
