"""Eight data sets of commonsense questions, answered by the likelihood of the options.

BoolQ, PIQA, SIQA, HellaSwag, WinoGrande, ARC-Easy, ARC-Challenge and OpenBookQA, each in a folder of its name with the files that
its authors published, or with the columns that the Hugging Face hub gives them: see `commonsense_sets`.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from flexlora_shared.messages.base import Message, Tuple
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.commonsense_sets import SETS
from flexlora_simulation.workloads.contract import BaseModel, Corpus, Item, Workload
from flexlora_simulation.workloads.own_options import read_options


class CommonsenseOptions(Message):
    """What an experiment may choose."""

    sets: Annotated[Tuple[str], Field(min_length=1, description=f"Of {', '.join(SETS)}")] = tuple(SETS)
    examples: Annotated[int | None, Field(ge=1, description="The first training examples of each set; null: all")] = (
        None
    )


class Commonsense(Workload):
    """Multiple choice; dealt by group, a group being a data set, or by label, the number of the right option."""

    metric = "choice_accuracy"  # the harness's acc; choice_accuracy_norm, its acc_norm, stands beside it
    higher_is_better = True
    own_metric = None

    def __init__(self, options: WorkloadOptions) -> None:
        if options.data is None or options.model is None:
            raise ExperimentError("workload: commonsense needs data, a folder with one for each data set, and model")
        self._folder, self._model = Path(options.data), options.model
        self._options = read_options(CommonsenseOptions, options)
        for name in self._options.sets:
            if name not in SETS:
                raise ExperimentError(f"workload.options.sets: there is no {name!r}; there are {', '.join(SETS)}")

    def corpus(self) -> Corpus:
        """The sets in the order named. `test`: the part of each that its figures are given for and whose answers are public."""
        train, test = list[Item](), list[Item]()
        for name in self._options.sets:
            parts = SETS[name].read(self._folder / name)
            for items, examples in zip((train, test), (parts[0][: self._options.examples], parts[1]), strict=True):
                items += [Item(example, label=str(example.answer), group=name) for example in examples]
        return Corpus(train, test)

    def base_model(self) -> BaseModel:
        """The language model named in the options."""
        return BaseModel(self._model)
