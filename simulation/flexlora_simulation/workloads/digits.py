"""Handwritten digits of 8 x 8 pixels, 1,797 of them, which scikit-learn holds (Alpaydin and Kaynak 1998), with made domains.

Every fifth image is for testing. With several domains the images are dealt to them in turn, each image to one; an image of a
domain other than `plain` is turned by a quarter, has its grey values inverted, or has noise added to them. Labels are the digits,
groups the domains. The base model is a small ViT that is trained here; see `digits_model`.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from flexlora_client.training.data.examples import Pictured
from flexlora_shared.messages.base import Tuple
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.contract import BaseModel, Corpus, Item, Workload
from flexlora_simulation.workloads.digits_model import pretrained_model
from flexlora_simulation.workloads.images import HeadOptions, classifier, png
from flexlora_simulation.workloads.own_options import read_options

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Domain = Literal["plain", "rotation", "inversion", "noise"]
TEST_EVERY = 5
NOISE = 64  # standard deviation, of 255

_MADE: Mapping[Domain, Callable[[Pixels, np.random.Generator], Any]] = {
    "plain": lambda image, chance: image,
    "rotation": lambda image, chance: np.rot90(image),
    "inversion": lambda image, chance: 255 - image,
    "noise": lambda image, chance: np.clip(image + chance.normal(0, NOISE, image.shape), 0, 255),
}


class DigitsOptions(HeadOptions):
    """What an experiment may choose."""

    domains: Annotated[Tuple[Domain], Field(min_length=1, description="Domains that the images are dealt to")] = (
        "plain",
    )
    pretraining_steps: Annotated[int, Field(ge=0, description="Of the base model, where none is given")] = 600


class Digits(Workload):
    """Classification of digits; dealt by label, or by domain."""

    metric = "accuracy"
    higher_is_better = True
    own_metric: str | None = None

    def __init__(self, options: WorkloadOptions) -> None:
        if options.data is not None:
            raise ExperimentError("workload.data: digits takes its images from scikit-learn; leave data out")
        self._model, self._options = options.model, read_options(DigitsOptions, options)

    def corpus(self) -> Corpus:
        """All images in scikit-learn's order."""
        parts: tuple[list[Item], list[Item]] = ([], [])
        chance = np.random.default_rng(0)
        for number, (image, digit) in enumerate(zip(*self._images, strict=True)):
            test = number % TEST_EVERY == 0
            own = parts[test]
            domain = self._options.domains[len(own) % len(self._options.domains)]
            made = png(np.ascontiguousarray(_MADE[domain](image, chance), dtype=np.uint8))
            own.append(Item(Pictured(made, int(digit)), label=str(digit), group=domain))
        return Corpus(*parts)

    def base_model(self) -> BaseModel:
        """The ViT named in the options, or the one that is trained on the training images of the digits 0 to 4."""
        model = self._model
        if model is None:
            images, digits = self._images
            shown = (np.arange(len(digits)) % TEST_EVERY != 0) & (digits < 5)
            model = pretrained_model(images[shown], digits[shown], self._options.pretraining_steps)
        return classifier(model, tuple(map(str, range(10))), self._options)

    @cached_property
    def _images(self) -> tuple[Pixels, Any]:
        """Grey values (images, 8, 8), and digits (images,)."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DataError("digits needs scikit-learn, which holds its images: pip install scikit-learn") from error
        held = load_digits()
        return np.rint(held.images * (255 / 16)).astype(np.uint8), held.target
