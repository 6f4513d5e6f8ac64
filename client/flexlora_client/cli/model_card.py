"""The README of an exported adapter: what it is, how it was trained, how to load it, how good it is."""

import json
from collections.abc import Mapping

from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.versions import version_line

AUTO_CLASSES = {
    "CAUSAL_LM": ("AutoModelForCausalLM", "text-generation"),
    "SEQ_2_SEQ_LM": ("AutoModelForSeq2SeqLM", "text-generation"),
    "SEQ_CLS": ("AutoModelForSequenceClassification", "text-classification"),
    "TOKEN_CLS": ("AutoModelForTokenClassification", "token-classification"),
    "IMAGE_CLASSIFICATION": ("AutoModelForImageClassification", "image-classification"),
}
PROBLEM_TYPES = {"multi-label": "multi_label_classification", "regression": "regression"}  # others are the default


def model_card(spec: RunSpec, round_: int, rank: int, metrics: Mapping[str, float], *, own: bool) -> str:
    """A model card in Markdown with the metadata that model hubs read."""
    auto, task = AUTO_CLASSES[spec.model.task_type]
    origin = "trained by one participant, before averaging" if own else "averaged over the participants"
    revision = f"\n- **Revision of the base model:** {spec.model.revision}" if spec.model.revision else ""
    return f"""---
{_metadata(spec, task)}
---

# {spec.name}: round {round_}, rank {rank}

A LoRA adapter from federated fine-tuning with FlexLoRA, {origin}.

- **Base model:** {spec.model.id}{revision}
- **Run:** {spec.name}, round {round_} of {spec.rounds}, strategy {spec.strategy}
- **Rank:** {rank}; {len(spec.modules)} modules{f", {len(spec.extra)} tensors trained in full" if spec.extra else ""}
- **Trained for:** {spec.model.task_type}{_labels(spec)}

## Use

```python
{_code(spec, auto)}
```

`run.json` is the run's definition; `flexlora-client generate` and `chat` read it.

## Held-out metrics

{_table(metrics)}

Written by {version_line("flexlora-client")}.
"""


def _metadata(spec: RunSpec, task: str) -> str:
    lines = ["library_name: peft", f"pipeline_tag: {task}", "tags: [lora, federated-learning, flexlora]"]
    if (
        not spec.model.id.startswith((".", "/", "~")) and spec.model.id.count("/") <= 1
    ):  # the name on a hub, no local path
        lines.insert(0, f"base_model: {json.dumps(spec.model.id)}")
    return "\n".join(lines)


def _labels(spec: RunSpec) -> str:
    return f", labels {', '.join(spec.model.labels)}" if spec.model.labels else ""


def _code(spec: RunSpec, auto: str) -> str:
    arguments = [json.dumps(spec.model.id)]
    if spec.model.revision:
        arguments.append(f"revision={json.dumps(spec.model.revision)}")
    if spec.model.labels:
        names = (f"{index}: {json.dumps(name, ensure_ascii=False)}" for index, name in enumerate(spec.model.labels))
        arguments.append(f"id2label={{{', '.join(names)}}}")
        if spec.model.problem_type in PROBLEM_TYPES:
            arguments.append(f'problem_type="{PROBLEM_TYPES[spec.model.problem_type]}"')
        arguments.append("ignore_mismatched_sizes=True")  # the base model's own head may be for other classes
    return "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {auto}",
            "",
            f"base = {auto}.from_pretrained({', '.join(arguments)})",
            'model = PeftModel.from_pretrained(base, "this/folder")',
        ]
    )


def _table(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return "None were reported."
    rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    return "\n".join(["| metric | value |", "| --- | --- |", *rows])
