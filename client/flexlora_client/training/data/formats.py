"""Converts rows into examples: which fields make which kind of example.

For causal language models, the first of these that a row has (other fields are not read):
    prompt, completion                  learn the completion
    instruction, output [, input]       the prompt is the instruction, a line break, the input if any with a line break
    messages: [{role, content}, ...]    learn the assistant's turns
    text                                learn all of it
For sequence classification:
    text, label (or category)           the label by name, or by its index among the run's labels
"""

from collections.abc import Mapping, Sequence

from flexlora_client.training.data.examples import Chat, Example, Labelled, Plain, Prompted, Turn
from flexlora_shared.messages.runs import ModelSpec

Fields = Mapping[str, object]


class RowError(ValueError):
    """A row that is no example; a sentence without its place."""


def example_of(fields: Fields, model: ModelSpec) -> Example:
    """The example a row holds, for the run's task. Raises: RowError."""
    present = {name: value for name, value in fields.items() if value is not None}
    if model.task_type == "SEQ_CLS":
        return _labelled(present, model.labels)
    if {"prompt", "completion"} <= present.keys():
        return Prompted(_text(present, "prompt"), _text(present, "completion"))
    if {"instruction", "output"} <= present.keys():
        return _instruction(present)
    if "messages" in present:
        return _chat(present["messages"])
    if "text" in present:
        return Plain(_text(present, "text"))
    names = ", ".join(sorted(present)) or "none"
    expected = "prompt and completion, instruction and output, messages, or text"
    raise RowError(f"its fields are {names}; a language model learns from {expected}.")


def _text(fields: Fields, name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise RowError(f"{name} is a {type(value).__name__}; it must be a text.")
    if not value.strip():
        raise RowError(f"{name} is empty; fill it in or delete the row.")
    return value


def _instruction(fields: Fields) -> Prompted:
    context = fields.get("input", "")
    if not isinstance(context, str):
        raise RowError(f"input is a {type(context).__name__}; it must be a text.")
    prompt = _text(fields, "instruction") + "\n" + (context + "\n" if context.strip() else "")
    return Prompted(prompt, _text(fields, "output"))


def _chat(messages: object) -> Chat:
    if not isinstance(messages, list) or not messages:
        raise RowError("messages must be a list of {role, content} objects with at least one in it.")
    turns = tuple(_turn(number, message) for number, message in enumerate(messages, 1))
    if all(turn.role != "assistant" for turn in turns):
        raise RowError("messages hold no turn of the role assistant, so there is nothing to learn; add one.")
    if turns[0].role == "assistant":
        raise RowError("messages begin with the assistant's turn; begin with a user's or system's, which it answers.")
    return Chat(turns)


def _turn(number: int, message: object) -> Turn:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if not (isinstance(role, str) and role and isinstance(content, str)):
        raise RowError(f"message {number} must have a role and a content, both texts.")
    if role == "assistant" and not content.strip():
        raise RowError(f"message {number} is the assistant's and is empty; fill it in or delete the row.")
    return Turn(role, content)


def _labelled(fields: Fields, labels: Sequence[str]) -> Labelled:
    name = next((name for name in ("label", "category") if name in fields), None)
    if name is None or "text" not in fields:
        names = ", ".join(sorted(fields)) or "none"
        raise RowError(f"its fields are {names}; a classifier learns from text and label (or category).")
    return Labelled(_text(fields, "text"), _label(fields[name], labels))


def _label(value: object, labels: Sequence[str]) -> int:
    named = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(named, str) and named in labels:  # a label that looks like a number is a name in every kind of file
        return labels.index(named)
    index = value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        index = int(value)  # CSV cannot tell numbers from texts
    if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(labels):
        return index
    some = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
    raise RowError(
        f"label {str(value)[:80]!r} is none of the run's {len(labels)} labels; use a name ({some}) or an index from 0."
    )
