"""DomainNet (Peng et al. 2019, arXiv 1812.01754): pictures of 345 classes in six domains, from photographs to quick drawings.

The data set's own files: `DOMAIN/CLASS/*.jpg` and the lists `DOMAIN_train.txt` and `DOMAIN_test.txt`, whose lines are a path
below the folder and the number of its class.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from flexlora_client.training.data.examples import Pictured
from flexlora_shared.messages.base import Tuple
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.contract import BaseModel, Corpus, Item, Workload
from flexlora_simulation.workloads.images import HeadOptions, classifier
from flexlora_simulation.workloads.own_options import read_options


class DomainNetOptions(HeadOptions):
    """What an experiment may choose."""

    domains: Annotated[Tuple[str], Field(description="Domains that are read; none: all that have lists")] = ()
    classes: Annotated[int | None, Field(ge=2, description="Only the classes of the lowest numbers; null: all 345")] = (
        None
    )


class DomainNet(Workload):
    """Classification of pictures; dealt by domain, or by class."""

    metric = "accuracy"
    higher_is_better = True
    own_metric: str | None = None

    def __init__(self, options: WorkloadOptions) -> None:
        if options.data is None or options.model is None:
            raise ExperimentError(
                "workload: domainnet needs data, a folder with clipart/, clipart_train.txt and so on, and model, a ViT"
            )
        self._folder, self._model = Path(options.data), options.model
        self._options = read_options(DomainNetOptions, options)

    def corpus(self) -> Corpus:
        """All pictures in the lists' order, domain by domain; they are held in memory."""
        return Corpus(*(list(self._items(part)) for part in ("train", "test")))

    def base_model(self) -> BaseModel:
        """The ViT named in the options, with a head of the classes."""
        names = {number: name for domain in self._domains() for _, name, number in self._listed(domain, "train")}
        if sorted(names) != list(range(len(names))):
            raise DataError(
                f"{self._folder}: the lists leave out a class below {max(names, default=0)}; give all lists"
            )
        return classifier(self._model, tuple(names[number] for number in sorted(names)), self._options)

    def _domains(self) -> tuple[str, ...]:
        found = sorted(path.name.removesuffix("_train.txt") for path in self._folder.glob("*_train.txt"))
        if not found:
            raise DataError(f"{self._folder} holds no DOMAIN_train.txt; give DomainNet's folder")
        missing = set(self._options.domains).difference(found)
        if missing:
            raise DataError(f"{self._folder} has no domain {sorted(missing)[0]}; there are {', '.join(found)}")
        return tuple(name for name in found if name in self._options.domains or not self._options.domains)

    def _items(self, part: str) -> Iterator[Item]:
        for domain in self._domains():
            for path, name, number in self._listed(domain, part):
                try:
                    image = (self._folder / path).read_bytes()
                except OSError as error:
                    raise DataError(f"{self._folder}: {domain}_{part}.txt lists {path}: {error.strerror}") from error
                yield Item(Pictured(image, number), label=name, group=domain)

    def _listed(self, domain: str, part: str) -> Iterator[tuple[str, str, int]]:
        """Path, class and its number of each picture in a list."""
        listing = self._folder / f"{domain}_{part}.txt"
        try:
            for line in listing.read_text(encoding="utf-8").splitlines():
                path, _, number = line.rpartition(" ")
                if self._options.classes is None or int(number) < self._options.classes:
                    yield path, Path(path).parent.name, int(number)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{listing} is no list of DomainNet (lines: path and number of the class): {error}"
            ) from error
