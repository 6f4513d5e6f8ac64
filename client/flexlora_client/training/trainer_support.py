"""What a training loop can train, by its class's own word: the attribute `supports` (see `training.contract`).

The word is for the `train` it was written beside, not for one that a subclass wrote over it: that one may know nothing of
`job.trainable`, and nobody would notice that its update counts for a wrong one.
"""

from typing import get_args

from flexlora_client.errors import BadInput
from flexlora_shared.messages.tasks import Trainable

TRAINABLE_KINDS: tuple[Trainable, ...] = get_args(Trainable)
DEFAULT_SUPPORT: tuple[Trainable, ...] = ("slice",)


def check_supported(trainer: object, trainable: Trainable) -> None:
    """Refuse a training loop that cannot train this. Raises: BadInput, also where `supports` cannot be read."""
    if trainable not in supported_kinds(trainer):
        raise BadInput(
            f"this run's tasks say trainable {trainable!r}, which the training loop does not name among what it supports; "
            "let its `train` heed job.trainable and name that in an attribute `supports` of the same class, "
            "or leave --trainer out"
        )


def supported_kinds(trainer: object) -> tuple[Trainable, ...]:
    """What the class that defines `train`, or a subclass of it, names in `supports`; slices only where neither does.

    Raises:
        BadInput: `supports` is no tuple of the kinds there are, or an attribute of the instance.
    """
    own = getattr(trainer, "__dict__", {})
    if "supports" in own:  # set by a class that nobody can tell
        raise _unreadable(own["supports"])
    training, naming = _definer(trainer, "train"), _definer(trainer, "supports")
    if training is None or naming is None or not issubclass(naming, training) or "train" in own:
        return DEFAULT_SUPPORT
    named = vars(naming)["supports"]
    if not isinstance(named, tuple) or not all(isinstance(kind, str) and kind in TRAINABLE_KINDS for kind in named):
        raise _unreadable(named)
    return named


def _definer(trainer: object, attribute: str) -> type | None:
    """The class that an attribute comes from."""
    return next((kind for kind in type(trainer).__mro__ if attribute in vars(kind)), None)


def _unreadable(named: object) -> BadInput:
    return BadInput(
        f"the training loop's `supports` is {named!r:.100}; it must be an attribute of the class, a tuple of the kinds it can "
        f"train out of {', '.join(map(repr, TRAINABLE_KINDS))}"
    )
