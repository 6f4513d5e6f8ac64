"""Converts rows into examples, for a run's task; `docs/data.md` shows which columns make which kind of example.

The first form whose columns a row has is taken; other columns are not read. A column without a value (null, or empty in CSV)
counts as missing.
"""

from collections.abc import Mapping

from flexlora_client.training.data.examples import Example, Instructed, Plain, Prompted
from flexlora_client.training.data.forms.choices import choice_form
from flexlora_client.training.data.forms.conversations import messages_chat, sharegpt_chat
from flexlora_client.training.data.forms.labelled import image_forms, tag_forms, text_forms
from flexlora_client.training.data.forms.labels import Labels
from flexlora_client.training.data.forms.values import Fields, Form, text_of, texts_of
from flexlora_client.training.data.rows import RowError
from flexlora_shared.messages.runs import ModelSpec

Names = Mapping[str, str]
REFERENCES = "references"  # the column of further right answers
EXPECTED = {
    "CAUSAL_LM": "a language model learns from prompt and completion, instruction and output, messages, text, "
    "conversations, or prompt, choices and answer",
    "SEQ_2_SEQ_LM": "a sequence-to-sequence model learns from prompt and completion, instruction and output, "
    "source and target, input and output, text and summary, document and summary, or article and highlights",
    "SEQ_CLS": "a classifier learns from text and label (or category)",
    "TOKEN_CLS": "a token classifier learns from tokens (or words) and tags (or ner_tags, labels)",
    "IMAGE_CLASSIFICATION": "an image classifier learns from image (or file_name) and label (or category)",
}
SCORED = "a classifier learns from text and label, labels (a list), or a column for each of the run's labels"


def example_of(fields: Fields, model: ModelSpec) -> Example:
    """The example a row holds, for the run's task. Raises: RowError."""
    return RowReader(model).example_of(fields)


class RowReader:
    """Makes examples of one run's task.

    Arguments:
        renamed: by our name of a column, the one in the participant's files; only forms with all of these are tried
        labels: by a label in the participant's files, the run's

    Raises:
        RowError: no form of the task has the columns, or the run no such labels.
    """

    def __init__(self, model: ModelSpec, renamed: Names | None = None, labels: Names | None = None) -> None:
        self._renamed = dict(renamed or {})
        forms = _forms(model, Labels(model.labels, labels or {}))
        known = {name for form in forms for name in (*form.columns, *form.optional)}
        self._forms = [form for form in forms if self._renamed.keys() <= {*form.columns, *form.optional}]
        if not self._forms:
            asked = ", ".join(self._renamed)
            raise RowError(
                f"no form of row has the columns {asked} together; those of this run are {', '.join(sorted(known))}."
            )
        self.columns = frozenset({*known, *self._renamed.values()})  # the names, in files, of all that is read
        self.expected = SCORED if model.problem_type != "single-label" else EXPECTED[model.task_type]

    def example_of(self, fields: Fields) -> Example:
        """The example a row holds. Raises: RowError."""
        named = {**fields, **{ours: fields[theirs] for ours, theirs in self._renamed.items() if theirs in fields}}
        present = {name: value for name, value in named.items() if value is not None}
        for form in self._forms:
            if all(name in present for name in form.columns):
                return form.make(present)
        raise RowError(self._why_none(named, present))

    def _why_none(self, named: Fields, present: Fields) -> str:
        for form in self._forms:
            missing = [name for name in form.columns if name not in present]
            if all(name in named for name in missing):
                return f"{missing[0]} is empty; fill it in or delete the row."
        names = ", ".join(sorted(name for name in present)) or "none"
        for ours, theirs in self._renamed.items():
            if ours not in named:
                return f"it has no {theirs}, which --column {ours}={theirs} names; its fields are {names}."
        return f"its fields are {names}; {self.expected}."


def _forms(model: ModelSpec, labels: Labels) -> list[Form]:
    match model.task_type:
        case "SEQ_CLS":
            return text_forms(labels, model.problem_type)
        case "TOKEN_CLS":
            return tag_forms(labels)
        case "IMAGE_CLASSIFICATION":
            return image_forms(labels)
        case "SEQ_2_SEQ_LM":
            return [_prompted("prompt", "completion"), INSTRUCTION, *(_prompted(*names) for names in TRANSLATIONS)]
    choices = [choice_form(prompt, answer) for prompt in ("prompt", "question") for answer in ("answer", "answerKey")]
    return [_prompted("prompt", "completion"), INSTRUCTION, MESSAGES, PLAIN, SHAREGPT, *choices]


def _prompted(prompt: str, completion: str) -> Form:
    def make(row: Fields) -> Prompted:
        return Prompted(text_of(row, prompt), text_of(row, completion), texts_of(row, REFERENCES))

    return Form((prompt, completion), make, (REFERENCES,))


def _instructed(row: Fields) -> Instructed:
    context = text_of(row, "input", may_be_empty=True)
    output, references = text_of(row, "output"), texts_of(row, REFERENCES)
    return Instructed(text_of(row, "instruction"), context if context.strip() else "", output, references)


INSTRUCTION = Form(("instruction", "output"), _instructed, ("input", REFERENCES))
MESSAGES = Form(("messages",), messages_chat, ("tools",))
PLAIN = Form(("text",), lambda row: Plain(text_of(row, "text")))
SHAREGPT = Form(("conversations",), sharegpt_chat, ("system", "tools"))
TRANSLATIONS = (
    ("source", "target"),
    ("input", "output"),
    ("text", "summary"),
    ("document", "summary"),
    ("article", "highlights"),
)
