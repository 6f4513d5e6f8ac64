"""Loading a custom training loop by name."""

import importlib
from typing import cast

from flexlora_client.training.contract import Trainer
from flexlora_client.training.errors import PluginError


def load_trainer(name: str) -> Trainer:
    """An instance of the class named `package.module:Class`.

    Raises:
        PluginError: the name is malformed, the module does not import, or the class is no trainer.
    """
    module_name, separator, class_name = name.partition(":")
    if not (separator and module_name and class_name):
        raise PluginError(f"{name!r} names no training loop; write package.module:Class.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the participant's own code, which may raise anything
        raise PluginError(
            f"the module of the training loop {name!r} does not import ({type(error).__name__}: {error}); "
            "install it or put its folder on PYTHONPATH."
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not callable(getattr(found, "train", None)):
        raise PluginError(f"{module_name} has no class {class_name} with a method train(job); check the name.")
    try:
        return cast(Trainer, found())
    except TypeError as error:
        raise PluginError(
            f"{name!r} cannot be made without arguments ({error}); give its constructor defaults."
        ) from error
