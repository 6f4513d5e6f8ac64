"""Every architecture from `describe` to plain PEFT: the same held-out loss to six digits, or a refusal in a sentence.

Coordinator and participants run in one process, without the network: the coordinator's own functions cut slices, check and
aggregate uploads, the agent's own loop trains and evaluates.
"""

import hashlib
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from flexlora_client.errors import Exit
from flexlora_client.training.data.examples import Example, Labelled, Pictured, Prompted, Scored, Tagged
from flexlora_client.training.encoding.encoder import IGNORE_INDEX
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.task_classes import AUTO_CLASSES, PROBLEM_TYPES
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
from tests.support.tiny_models import LABELS, image_file, make_job

IN_EVERY_RUN = {"qwen2", "bert"}  # of the default tests: two seconds together
DOCUMENT = (Path(__file__).parents[2] / "docs/models.md").read_text()
RANKS = (2, 8)
IDS = torch.tensor([[5, 9, 200, 17, 33, 120], [41, 2, 77, 250, 6, 99]])
HELD_OUT = 2  # examples, of different length


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
        found = evaluate(spec, exported, examples_of(case)[:HELD_OUT], device="cpu", answers=0)
        plain = AUTO_CLASSES[case.task].from_pretrained(base, **plain_options(case))
        before = heldout_loss(plain, case, base)
        opened = PeftModel.from_pretrained(plain, exported)
        if case.task == "CAUSAL_LM":
            assert_causal(opened)
        after = heldout_loss(opened, case, base)
        assert found["loss"] == pytest.approx(after, rel=1e-6)
        assert abs(after - before) > 1e-4, "what was learnt shows"
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
    """A participant's training, by the agent's own loop."""
    return StandardTrainer().train(make_job(spec, served, examples_of(case), output, round=number)).adapter


def examples_of(case: Architecture) -> list[Example]:
    """Rows of different length of the case's task; the first two are held out."""
    count, classes = range(6), len(LABELS)
    if case.task == "IMAGE_CLASSIFICATION":
        return [Pictured(image_file((200 * (n % 3 == 0), 40 * n, 90), side=10 + n), n % classes) for n in count]
    if case.task == "TOKEN_CLS":
        return [Tagged(("The", LABELS[n % classes], *["sings"] * n), (0, n % classes, *[1] * n)) for n in count]
    if case.problem == "multi-label":
        return [Scored(f"{LABELS[n % classes]} {n * 7}", (float(n % 2), 1.0, float(n < 3))) for n in count]
    if case.problem == "regression":
        return [Scored(f"{LABELS[n % classes]} {n * 7}", (n / 4, -0.5, 1.0)) for n in count]
    if case.task == "SEQ_CLS":
        return [Labelled(f"{LABELS[n % classes]} {n}", n % classes, "a" * n if case.pairs else None) for n in count]
    return [Prompted(f"Number {n * n}?", f" {word}") for n, word in enumerate(["Paris", "day"] * 3)]


def heldout_loss(model: Any, case: Architecture, base: Path) -> float:
    """The mean loss over the held-out predictions by transformers' own loss functions, example by example."""
    model.eval()
    if case.task == "SEQ_CLS":
        model.config.problem_type = PROBLEM_TYPES[case.problem]
    load = AutoImageProcessor if case.task == "IMAGE_CLASSIFICATION" else AutoTokenizer
    reader = load.from_pretrained(base)
    total, predictions = 0.0, 0
    for example in examples_of(case)[:HELD_OUT]:
        inputs, count = plain_inputs(reader, example, case)
        with torch.no_grad():
            total += float(model(**inputs).loss) * count
        predictions += count
    return total / predictions


def plain_inputs(reader: Any, example: Example, case: Architecture) -> tuple[dict[str, Any], int]:
    """What a user of transformers gives the model for an example, labels included, and how many predictions it makes."""
    match example:
        case Pictured(image, label):
            return {**reader(Image.open(BytesIO(image)), return_tensors="pt"), "labels": torch.tensor([label])}, 1
        case Labelled(text, label, pair):
            return {**reader(text, pair, return_tensors="pt"), "labels": torch.tensor([label])}, 1
        case Scored(text, values):
            return {**reader(text, return_tensors="pt"), "labels": torch.tensor([values])}, 1
        case Tagged(words, tags):
            made = reader([f" {word}" for word in words], is_split_into_words=True, return_tensors="pt")
            first = [made.word_ids().index(number) for number in range(len(words))]
            labels = torch.full_like(made.input_ids, IGNORE_INDEX)
            labels[0, first] = torch.tensor(tags)
            return {**made, "labels": labels}, len(words)
        case Prompted(prompt, completion):
            end = reader.eos_token
            if case.task == "SEQ_2_SEQ_LM":
                labels = reader(text_target=completion + end, return_tensors="pt").input_ids
                return {**reader(prompt, return_tensors="pt"), "labels": labels}, labels.shape[1]
            made, given = reader(prompt + completion + end, return_tensors="pt"), len(reader(prompt).input_ids)
            labels = made.input_ids.clone()
            labels[0, :given] = IGNORE_INDEX
            return {**made, "labels": labels}, labels.shape[1] - given
    raise AssertionError(example)
