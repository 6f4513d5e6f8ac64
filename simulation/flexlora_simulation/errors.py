"""Errors of the simulation: each message is a sentence for whoever runs the experiment."""


class SimulationError(Exception):
    """The experiment cannot be run as it is, or something it needs failed."""


class ExperimentError(SimulationError):
    """The experiment's definition is wrong: the message says which field, and what to give instead."""


class DataError(SimulationError):
    """The data set's files are missing or not of its format."""
