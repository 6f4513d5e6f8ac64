"""Loading a custom training loop by name."""

import importlib
from typing import cast

from flexlora_client.errors import PluginError
from flexlora_client.training.contract import Trainer
from flexlora_shared.plugins import TRAINER_GROUP, PluginFault, load_plugin, plugin_names


def load_trainer(name: str) -> Trainer:
    """An instance of the class named `package.module:Class`, or of one that an installed package offers by a bare name.

    Raises:
        PluginError: the name is malformed or unknown, the module does not import, or the class is no trainer.
    """
    trainer_class = _imported(name) if ":" in name else _offered(name)
    if not isinstance(trainer_class, type) or not callable(getattr(trainer_class, "train", None)):
        raise PluginError(f"{name!r} names no class with a method train(job); check the name.")
    try:
        return cast(Trainer, trainer_class())
    except TypeError as error:
        raise PluginError(
            f"{name!r} cannot be made without arguments ({error}); give its constructor defaults."
        ) from error


def _imported(name: str) -> object:
    module_name, _, class_name = name.partition(":")
    if not (module_name and class_name):
        raise PluginError(f"{name!r} names no training loop; write package.module:Class.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the participant's own code, which may raise anything
        raise PluginError(
            f"the module of the training loop {name!r} does not import ({type(error).__name__}: {error}); "
            "install it or put its folder on PYTHONPATH."
        ) from error
    return getattr(module, class_name, None)


def _offered(name: str) -> object:
    try:
        return load_plugin(TRAINER_GROUP, name, type)
    except LookupError:
        known = ", ".join(plugin_names(TRAINER_GROUP)) or "none"
        raise PluginError(
            f"no installed package offers a training loop {name!r}; offered are: {known}. Or write package.module:Class."
        ) from None
    except PluginFault as fault:
        raise PluginError(f"the training loop {name!r} cannot be used: {fault}.") from fault
