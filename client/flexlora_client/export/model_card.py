"""The README of an export: what it is, how it was trained, how to load it, how good it is; with the metadata that hubs read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flexlora_client.export.origin import Origin
from flexlora_client.files import sha256_of
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.status import RankCount
from flexlora_shared.versions import version_line

CARD_FILE = "README.md"
AUTO_CLASSES = {
    "CAUSAL_LM": ("AutoModelForCausalLM", "text-generation"),
    "SEQ_2_SEQ_LM": ("AutoModelForSeq2SeqLM", "text-generation"),
    "SEQ_CLS": ("AutoModelForSequenceClassification", "text-classification"),
    "TOKEN_CLS": ("AutoModelForTokenClassification", "token-classification"),
    "IMAGE_CLASSIFICATION": ("AutoModelForImageClassification", "image-classification"),
}
PROBLEM_TYPES = {"multi-label": "multi_label_classification", "regression": "regression"}  # others are the default
# What a run may set of its rule
RULE_FIELDS = {"strategy_options", "robust", "error_bound", "late_updates", "clients_per_round"} | {
    "weighting",
    "max_examples",
    "max_share",
}


@dataclass(frozen=True)
class Form:
    """In which form something was exported.

    kind: "exact" is an adapter as it is served, "portable" one of one rank with the scale in lora_B.
    detail: a sentence on what the form did to the numbers.
    notes: what programs that are to load it must know of.
    """

    kind: Literal["exact", "portable", "merged"]
    detail: str
    notes: tuple[str, ...] = ()


def model_card(origin: Origin, form: Form, digests: Mapping[str, str]) -> str:
    """A model card in Markdown; `digests` are the SHA-256 of the folder's files by name."""
    spec, merged = origin.spec, form.kind == "merged"
    trained = "trained by one participant, before averaging" if origin.own else "averaged over the participants"
    what = "A model with a LoRA adapter merged into it," if merged else "A LoRA adapter"
    notes = "".join(f"\n- {note}" for note in form.notes)
    return f"""---
{_metadata(spec, merged)}
---

# {spec.name}: round {origin.round}, rank {origin.rank}

{what} from federated fine-tuning with FlexLoRA, {trained}.

{_facts(origin)}
- **Form:** {form.detail}{notes}

## Use

```python
{_code(spec, merged)}
```
{"" if merged else _RUN_FILE}
## Held-out metrics

{_table(("metric", "value"), {name: f"{value:.4g}" for name, value in origin.metrics.items()}, "None were reported.")}

## Files

The adapter that the coordinator served, or the participant trained, has SHA-256 `{origin.sha256}`.

{_table(("file", "SHA-256"), {name: f"`{digest}`" for name, digest in digests.items()}, "None.")}

Written by {version_line("flexlora-client")}.
"""


_RUN_FILE = "\n`run.json` is the run's definition; `flexlora-client generate` and `chat` read it.\n"


def digests_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in the folder but the card."""
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != CARD_FILE}


def _metadata(spec: RunSpec, merged: bool) -> str:
    relation = "finetune" if merged else "adapter"
    lines = [
        f"library_name: {'transformers' if merged else 'peft'}",
        f"pipeline_tag: {AUTO_CLASSES[spec.model.task_type][1]}",
        f"tags: [{'' if merged else 'lora, '}federated-learning, flexlora]",
    ]
    if (
        not spec.model.id.startswith((".", "/", "~")) and spec.model.id.count("/") <= 1
    ):  # the name on a hub, no local path
        lines = [f"base_model: {json.dumps(spec.model.id)}", f"base_model_relation: {relation}", *lines]
    return "\n".join(lines)


def _facts(origin: Origin) -> str:
    spec = origin.spec
    extra = f", {len(spec.extra)} tensors trained in full" if spec.extra else ""
    labels = f", labels {', '.join(spec.model.labels)}" if spec.model.labels else ""
    facts = {
        "Base model": spec.model.id,
        "Revision of the base model": spec.model.revision,
        "Run": f"{spec.name}, round {origin.round} of {spec.rounds}",
        "Strategy": f"{spec.strategy}{_options(spec)}",
        "Rank": f"{origin.rank}; {len(spec.modules)} modules{extra}",
        "Participants of the round": ", ".join(map(_counted, origin.by_rank)),
        "Energy kept at this rank": None if origin.energy is None else f"{100 * origin.energy:.2f} %",
        "Trained for": f"{spec.model.task_type}{labels}",
    }
    return "\n".join(f"- **{name}:** {value}" for name, value in facts.items() if value)


def _counted(count: RankCount) -> str:
    held = "" if count.hold_rank is None else f" (holding {count.hold_rank})"
    return f"{count.participants} of rank {count.rank}{held}"


def _options(spec: RunSpec) -> str:
    """What the run sets of its rule beside the defaults, as JSON."""
    told = spec.model_dump(mode="json", include=RULE_FIELDS)
    own = {name: value for name, value in told.items() if getattr(spec, name) != RunSpec.model_fields[name].default}
    return f", {json.dumps(own)}" if own else ""


def _code(spec: RunSpec, merged: bool) -> str:
    auto = AUTO_CLASSES[spec.model.task_type][0]
    if merged:
        return f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("this/folder")'
    arguments = [json.dumps(spec.model.id)]
    if spec.model.revision:
        arguments.append(f"revision={json.dumps(spec.model.revision)}")
    if spec.model.labels:
        names = (f"{index}: {json.dumps(name, ensure_ascii=False)}" for index, name in enumerate(spec.model.labels))
        arguments.append(f"id2label={{{', '.join(names)}}}")
        if spec.model.problem_type in PROBLEM_TYPES:
            arguments.append(f'problem_type="{PROBLEM_TYPES[spec.model.problem_type]}"')
        if (
            spec.extra
        ):  # the base model's own head may be for other classes; without them it is the one that was trained on
            arguments.append("ignore_mismatched_sizes=True")
    return "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {auto}",
            "",
            f"base = {auto}.from_pretrained({', '.join(arguments)})",
            'model = PeftModel.from_pretrained(base, "this/folder")',
        ]
    )


def _table(head: tuple[str, str], rows: Mapping[str, str], without: str) -> str:
    if not rows:
        return without
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([f"| {head[0]} | {head[1]} |", "| --- | --- |", *lines])
