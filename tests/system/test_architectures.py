"""Every architecture from `describe` to plain PEFT: the same held-out loss to six digits, or a refusal in a sentence.

Coordinator and participants run in one process, without the network: the coordinator's own functions cut slices, check and
aggregate uploads. Tasks that the agent's batches do not know are trained by a loop of this file.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from flexlora_client.errors import Exit
from flexlora_client.training.data.examples import Example, Labelled, Prompted
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.models.placing import trained_tensors
from flexlora_client.training.models.slice_files import read_slice, write_slice
from flexlora_client.training.models.task_classes import AUTO_CLASSES
from flexlora_server.adapter_files.global_adapter_numpy import NumpyGlobalAdapter
from flexlora_server.adapter_files.inspect_upload import check_upload
from flexlora_server.adapter_files.peft_config import adapter_config
from flexlora_server.adapter_files.round_uploads import InputUpdate, with_weights
from flexlora_server.adapter_files.slicing import write_slice as cut_slice
from flexlora_server.lifecycle.validation import check_spec
from flexlora_server.worker.aggregate_round import RoundWork, write_aggregate, write_initial
from flexlora_shared.messages.runs import RunSpec, TrainingSpec
from flexlora_shared.messages.uploads import UploadCreate
from tests.support.architectures import ARCHITECTURES, Architecture
from tests.support.command import call
from tests.support.tiny_models import LABELS, make_job

IN_EVERY_RUN = {"qwen2", "bert"}  # of the default tests: two seconds together
DOCUMENT = (Path(__file__).parents[2] / "docs/models.md").read_text()
RANKS = (2, 8)
IDS = torch.tensor([[5, 9, 200, 17, 33, 120], [41, 2, 77, 250, 6, 99]])
QUESTIONS = [Prompted(f"Number {number}?", f" {word}") for number, word in enumerate(["Paris", "day"] * 2)]
ANIMALS = [Labelled(f"{LABELS[number % 3]} {number}", number % 3) for number in range(6)]


def cases() -> list[Any]:
    return [
        pytest.param(one, id=one.name, marks=[] if one.name in IN_EVERY_RUN else pytest.mark.slow)
        for one in ARCHITECTURES
    ]


@pytest.mark.parametrize("case", cases())
@pytest.mark.filterwarnings("ignore")
def test_an_architecture_from_describe_to_plain_peft(case: Architecture, tmp_path: Path) -> None:
    base = case.make(tmp_path / "model")
    described = call("describe", base, *options(case, tmp_path), "--json")
    if case.refused:
        assert described.code == Exit.BAD_INPUT
        assert case.refused in described.err
        assert f"| {case.name} | {case.task} | refused: " in DOCUMENT
        return
    assert described.code == Exit.OK, described.err
    assert row(case, described.out, described.err) in DOCUMENT
    training = TrainingSpec(learning_rate=0.02, epochs=1, batch_size=4, max_length=32)
    spec = RunSpec.model_validate_json(described.out).model_copy(update={"training": training, "ranks": RANKS})
    check_spec(spec)
    published = first_round(spec, tmp_path)
    for number in (1, 2):
        published = next_round(spec, case, number, published, tmp_path)
    for rank in RANKS:
        exported = cut(spec, rank, published, tmp_path / f"exported-{rank}")
        loaded = Models().with_slice(read_slice(exported, spec), spec, "cpu")
        plain = AUTO_CLASSES[case.task].from_pretrained(base, **plain_options(case))
        before = heldout_loss(plain, case)
        if case.task == "CAUSAL_LM":
            assert_causal(loaded.model)
        opened = PeftModel.from_pretrained(plain, exported)
        assert heldout_loss(opened, case) == pytest.approx(heldout_loss(loaded.model, case), rel=1e-6)
        assert abs(heldout_loss(opened, case) - before) > 1e-4, "what was learnt shows"
        assert opened.config.id2label == dict(enumerate(case.labels)) or not case.labels


def row(case: Architecture, definition: str, left_out: str) -> str:
    """The architecture's row in the document: the endings of what is trained, and of what is left out."""
    spec = RunSpec.model_validate_json(definition)
    adapted = dict.fromkeys(module.name.rpartition(".")[2] for module in spec.modules)
    whole = [tensor.name for tensor in spec.extra]
    notes = re.findall(r"^left out .*?\((.*?)\)", left_out, re.MULTILINE)
    absent = sorted({".".join(name.split(".")[-2:]) for note in notes for name in note.split(", ")})
    cells = (", ".join(part) for part in (adapted, whole, absent))
    return f"| {case.name} | {case.task} | {' | '.join(cell or '-' for cell in cells)} |"


def assert_causal(model: Any) -> None:
    """A later token changes nothing of what the model says of earlier ones."""
    ids = torch.stack([IDS[0], torch.cat([IDS[0, :-1], IDS[1, -1:]])])
    with torch.no_grad():
        first, second = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def options(case: Architecture, folder: Path) -> list[str | Path]:
    """The options of `describe`."""
    told: list[str | Path] = ["--task-type", case.task, "--rank", "2", "--rank", "8", "--problem-type", case.problem]
    if case.labels:
        (folder / "labels.txt").write_text("\n".join(case.labels))
        told += ["--labels-from", folder / "labels.txt"]
    return told


def plain_options(case: Architecture) -> dict[str, Any]:
    labels = {"id2label": dict(enumerate(case.labels)), "label2id": {name: n for n, name in enumerate(case.labels)}}
    return {**labels, "ignore_mismatched_sizes": True} if case.labels else {}


def cut(spec: RunSpec, rank: int, published: Path, folder: Path) -> Path:
    """The slice of a rank, as the coordinator serves it: what `export` saves."""
    folder.mkdir(parents=True)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        cut_slice(published, spec, rank, {}, file)
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config(spec, rank, {})))
    return folder


def first_round(spec: RunSpec, folder: Path) -> Path:
    with (folder / "round-0").open("wb") as file:
        write_initial(spec, file)
    return folder / "round-0"


def next_round(spec: RunSpec, case: Architecture, number: int, previous: Path, folder: Path) -> Path:
    """Two participants of different rank train; their updates are checked and aggregated."""
    inputs = []
    for rank in RANKS:
        served = cut(spec, rank, previous, folder / f"served-{number}-{rank}")
        path = train(spec, case, number, served, folder / f"trained-{number}-{rank}")
        config = json.loads((served / "adapter_config.json").read_bytes())
        announced = UploadCreate(
            rank=rank,
            alpha=config["lora_alpha"],
            alpha_pattern=config["alpha_pattern"],
            examples=4,
            size=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        check_upload(path, spec, announced, NumpyGlobalAdapter(previous))
        inputs.append(InputUpdate(path, announced))
    with (folder / f"round-{number}").open("wb") as file:
        write_aggregate(RoundWork(spec, with_weights(inputs), previous), file, lambda: None)
    return folder / f"round-{number}"


def train(spec: RunSpec, case: Architecture, number: int, served: Path, output: Path) -> Path:
    """A participant's training: the agent's own where it knows the task."""
    if case.task in {"CAUSAL_LM", "SEQ_CLS"} and case.problem == "single-label":
        examples: list[Example] = [*QUESTIONS] if case.task == "CAUSAL_LM" else [*ANIMALS]
        return StandardTrainer().train(make_job(spec, served, examples, output, round=number)).adapter
    loaded = Models().with_slice(read_slice(served, spec), spec, "cpu")
    loaded.model.train()
    optimizer = torch.optim.AdamW([p for p in loaded.model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(2):
        loss = loaded.model(**inputs_of(case, seed=number)).loss
        assert math.isfinite(float(loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return write_slice(trained_tensors(loaded.model), served, spec, output)


def inputs_of(case: Architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    """What the model is called with, labels included: transformers' own loss of the task."""
    generator = torch.Generator().manual_seed(seed)
    classes = len(LABELS)
    if case.task == "IMAGE_CLASSIFICATION":
        pixels = torch.randn(2, 3, 16, 16, generator=generator)
        return {"pixel_values": pixels, "labels": torch.tensor([seed % classes, (seed + 1) % classes])}
    given = {"input_ids": (IDS + seed) % 300, "attention_mask": torch.ones_like(IDS)}
    if case.task == "TOKEN_CLS":
        return {**given, "labels": (IDS + seed) % classes}
    if case.task == "SEQ_CLS":
        single = torch.tensor([seed % classes, (seed + 1) % classes])
        several = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.5]])
        if case.problem == "multi-label":
            several = several.round()
        return {**given, "labels": single if case.problem == "single-label" else several}
    return {**given, "labels": given["input_ids"].clone()}


def heldout_loss(model: Any, case: Architecture) -> float:
    """The loss of fixed inputs by the model's own class."""
    model.eval()
    model.config.problem_type = {
        "single-label": "single_label_classification",
        "multi-label": "multi_label_classification",
        "regression": "regression",
    }[case.problem]
    with torch.no_grad():
        return float(model(**inputs_of(case)).loss)
