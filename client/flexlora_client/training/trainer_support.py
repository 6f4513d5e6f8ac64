"""Reads which kinds of training a training loop supports: its class attribute `supports` (see `training.contract`).

The attribute holds for the `train` of the same class or of a base class. A subclass that overrides `train` without naming
`supports` again gets the default: it may ignore `job.trainable`, and nothing would reveal its wrong update.
"""

from typing import get_args

from flexlora_client.errors import BadInput
from flexlora_shared.messages.tasks import Trainable

TRAINABLE_KINDS: tuple[Trainable, ...] = get_args(Trainable)
DEFAULT_SUPPORT: tuple[Trainable, ...] = ("slice",)


def check_supported(trainer: object, trainable: Trainable) -> None:
    """Check that the training loop supports this kind. Raises: BadInput, also where `supports` is malformed."""
    if trainable not in supported_kinds(trainer):
        raise BadInput(
            f"this run's tasks say trainable {trainable!r}, which the training loop does not name among what it supports; "
            "let its `train` heed job.trainable and name that in an attribute `supports` of the same class, "
            "or leave --trainer out"
        )


def supported_kinds(trainer: object) -> tuple[Trainable, ...]:
    """The kinds that `supports` names in the class that defines `train` or in a subclass of it; else slices only.

    Raises:
        BadInput: `supports` is no tuple of known kinds, or an attribute of the instance.
    """
    own = getattr(trainer, "__dict__", {})
    if "supports" in own:  # of an instance: which class set it is unknown
        raise _unreadable(own["supports"])
    training, naming = _definer(trainer, "train"), _definer(trainer, "supports")
    if training is None or naming is None or not issubclass(naming, training) or "train" in own:
        return DEFAULT_SUPPORT
    named = vars(naming)["supports"]
    if not isinstance(named, tuple) or not all(isinstance(kind, str) and kind in TRAINABLE_KINDS for kind in named):
        raise _unreadable(named)
    return named


def _definer(trainer: object, attribute: str) -> type | None:
    """The class that defines the attribute."""
    return next((kind for kind in type(trainer).__mro__ if attribute in vars(kind)), None)


def _unreadable(named: object) -> BadInput:
    return BadInput(
        f"the training loop's `supports` is {named!r:.100}; it must be an attribute of the class, a tuple of the kinds it can "
        f"train out of {', '.join(map(repr, TRAINABLE_KINDS))}"
    )
