"""Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705): tasks with a definition in words, one a participant.

The data set's own files (`tasks/*.json`, `splits/default/{train,test}_tasks.txt`), or all tasks in one file: see `sni_files`.
The tasks of the test split are the unseen participants, as in FlexLoRA (arXiv 2402.11505).
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from flexlora_client.training.data.examples import Instructed
from flexlora_shared.messages.base import Message
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.contract import BaseModel, Corpus, Item, Workload
from flexlora_simulation.workloads.own_options import read_options
from flexlora_simulation.workloads.sni_files import Instance, Task, read_folder, shortened


class SniOptions(Message):
    """What an experiment may choose."""

    split: Annotated[str, Field(description="Folder under splits: default, or xlingual")] = "default"
    instances: Annotated[int | None, Field(ge=1, description="The first ones of each task; null: all")] = 100
    definition: Annotated[
        int | None, Field(ge=0, description="Most characters of a definition, whole words; null: all of it")
    ] = None
    positive_examples: Annotated[int, Field(ge=0, description="Worked examples after the definition")] = 0


class Sni(Workload):
    """Answers to instructions; dealt by group, a group being a task, a label its category."""

    metric = "rouge_l"  # the mean over instances: tasks weigh by their size
    higher_is_better = True
    own_metric = None

    def __init__(self, options: WorkloadOptions) -> None:
        if options.data is None or options.model is None:
            raise ExperimentError("workload: sni needs data, a folder with tasks and splits, and model")
        self._folder, self._model = Path(options.data), options.model
        self._options = read_options(SniOptions, options)

    def corpus(self) -> Corpus:
        """Every task of the split; `test` are the seen tasks' own test instances, where the files part them."""
        train, test = list[Item](), list[Item]()
        for task in read_folder(self._folder, self._options.split, self._options.instances):
            train += [self._item(task, instance) for instance in (task.train if task.seen else task.test)]
            test += [self._item(task, instance) for instance in task.test if task.seen]
        return Corpus(train, test)

    def base_model(self) -> BaseModel:
        """The language model named in the options."""
        return BaseModel(self._model)

    def _item(self, task: Task, instance: Instance) -> Item:
        example = Instructed(self._instruction(task), instance.input, instance.outputs[0], instance.outputs[1:])
        return Item(example, label=task.category, group=task.name, unseen=not task.seen)

    def _instruction(self, task: Task) -> str:
        most = self._options.definition
        definition = task.definition if most is None else shortened(task.definition, most)
        worked = task.positive[: self._options.positive_examples]
        shown = "".join(f"\n\nInput: {given}\nOutput: {answer}" for given, answer in worked)
        return f"{definition}{shown}\n" if shown else definition
