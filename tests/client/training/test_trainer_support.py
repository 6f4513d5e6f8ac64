"""What a training loop can train: by whose word, and what is none."""

from collections.abc import Callable
from typing import Any

import pytest

from flexlora_client.errors import BadInput
from flexlora_client.training.contract import Job, Outcome
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.trainer_support import check_supported, supported_kinds
from flexlora_shared.messages.tasks import Trainable
from tests.support.trainers import Nudge

ALL: tuple[Trainable, ...] = ("slice", "B", "A", "fresh")
TRAIN = Nudge.train


class Quieter(StandardTrainer):
    """The same training, told less about."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet = True


class Unaware(StandardTrainer):
    """Its own training, which knows nothing of what is trainable."""

    def train(self, job: Job) -> Outcome:
        return Nudge().train(job)


class Aware(Unaware):
    """Says what its base's training heeds."""

    supports: tuple[Trainable, ...] = ("slice", "B")


class Beside(Unaware, StandardTrainer):
    """Gets the word and the training from different bases."""


class Says:
    """A word without a training."""

    supports = ALL


class Mixed(Says, Nudge):
    """A word that was written beside nothing, before a training that knows nothing of it."""


class Replaced(StandardTrainer):
    """Its training is put over the class's."""

    def __init__(self) -> None:
        super().__init__()
        self.train = Nudge().train  # type: ignore[method-assign]


class Elsewhere:
    """Has its training from another object: no class of its own says anything."""

    def __getattr__(self, name: str) -> Any:
        return getattr(StandardTrainer(), name)


@pytest.mark.parametrize(
    ("kind", "trains"),
    [
        (StandardTrainer, ALL),
        (Quieter, ALL),
        (Nudge, ("slice",)),
        (Unaware, ("slice",)),
        (Aware, ("slice", "B")),
        (Beside, ("slice",)),
        (Mixed, ("slice",)),
        (Replaced, ("slice",)),
        (Elsewhere, ("slice",)),
    ],
)
def test_a_class_speaks_for_its_own_training(kind: Callable[[], object], trains: tuple[Trainable, ...]) -> None:
    assert supported_kinds(kind()) == trains
    for trainable in trains:
        check_supported(kind(), trainable)
    for trainable in set(ALL) - set(trains):
        with pytest.raises(BadInput, match=f"say trainable '{trainable}', which the training loop does not name"):
            check_supported(kind(), trainable)


@pytest.mark.parametrize(
    "named",
    [None, "slice", "fresh", ["slice", "B"], ("slice", "biases"), ("slice", 7), {"slice"}, property(lambda _: ALL)],
)
def test_what_is_no_tuple_of_kinds_is_a_sentence(named: object) -> None:
    trainer = type("Own", (), {"train": TRAIN, "supports": named})()
    with pytest.raises(BadInput, match=r"`supports` is .*; it must be an attribute of the class, a tuple of the kinds"):
        check_supported(trainer, "slice")


def test_an_instance_has_no_word() -> None:
    """A base class may set it that knows nothing of the training of this one."""
    trainer = Nudge()
    trainer.supports = ALL  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="must be an attribute of the class"):
        check_supported(trainer, "fresh")
