"""What can go wrong in local training; each message is a sentence that says what to do.

TrainingError
├── DataError      the participant's data cannot be used
├── ModelError     the base model or its tokenizer cannot be used for this run
├── AdapterError   the slice served does not fit the run or the base model
├── DeviceError    the device asked for is not there, or its memory is too small
├── PluginError    a custom training loop cannot be loaded
└── DivergedError  training produced numbers that are not finite
"""


class TrainingError(Exception):
    """Base of all."""


class DataError(TrainingError):
    """The participant's data cannot be used."""


class ModelError(TrainingError):
    """The base model or its tokenizer cannot be used for this run."""


class AdapterError(TrainingError):
    """The slice served does not fit the run or the base model."""


class DeviceError(TrainingError):
    """The device asked for is not there, or its memory is too small."""


class PluginError(TrainingError):
    """A custom training loop cannot be loaded."""


class DivergedError(TrainingError):
    """Training produced numbers that are not finite."""
