"""Which kinds of examples a run's task learns from."""

from collections.abc import Sequence

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import (
    Chat,
    Choice,
    Example,
    Instructed,
    Labelled,
    Pictured,
    Plain,
    Prompted,
    Scored,
    Tagged,
)
from flexlora_client.training.data.store import of_kinds
from flexlora_shared.messages.runs import ModelSpec

ANSWERED = (Prompted, Instructed, Chat, Choice)


def check_task(examples: Sequence[Example], model: ModelSpec) -> None:
    """Refuse examples of another task than the run's, and no examples at all. Raises: DataError."""
    if not examples:
        raise DataError("there are no examples; give a data file with at least one.")
    kinds, expected = _kinds(model)
    if len(of_kinds(examples, kinds)) < len(examples):
        raise DataError(f"the examples are of another task than the run's; it learns from {expected}.")


def _kinds(model: ModelSpec) -> tuple[tuple[type, ...], str]:
    """The kinds of examples, and what a row of them holds, in words."""
    if model.task_type == "SEQ_CLS" and model.problem_type == "single-label":
        return (Labelled,), "text and label"
    if model.task_type == "SEQ_CLS":
        return (Scored,), "text and labels"
    if model.task_type == "TOKEN_CLS":
        return (Tagged,), "words and their tags"
    if model.task_type == "IMAGE_CLASSIFICATION":
        return (Pictured,), "images and labels"
    if model.task_type == "SEQ_2_SEQ_LM":
        return ANSWERED, "prompt and completion, or messages"
    return (*ANSWERED, Plain), "prompt and completion, messages or text"
