"""An exported folder is an ordinary PEFT adapter: plain PEFT computes with it what the agent computes with its slice."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from flexlora_client.agent.download import download
from flexlora_client.agent.slice_cache import SliceCache, request_for_round
from flexlora_client.training.data.examples import Example, Labelled, Prompted
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.models.slice_files import read_slice
from flexlora_shared.messages.runs import Dtype, RunSpec, Scaling, TaskType
from tests.support.command import call
from tests.support.connecting import Waits, connect
from tests.support.kit import OPERATOR_KEY, Participant, Served, served_on_sqlite
from tests.support.tiny_models import LABELS, load_base, load_peft, make_job, make_run

RUN = "test"
LARGEST = 8
IDS = torch.tensor([[5, 9, 200, 17, 33, 120], [41, 2, 77, 250, 6, 99]])
QUESTIONS = [Prompted(f"What is number {number}?", f" {word}") for number, word in enumerate(["Paris", "day"] * 6)]
ANIMALS = [Labelled(f"{LABELS[number % 3]} number {number}", number % 3) for number in range(12)]


@dataclass(frozen=True)
class Case:
    """A run, and the ranks that are looked at."""

    task: TaskType
    rank: int
    pattern: Mapping[str, int] = field(default_factory=dict)
    rslora: bool = False
    dtype: Dtype = "float32"

    @property
    def examples(self) -> Sequence[Example]:
        return QUESTIONS if self.task == "CAUSAL_LM" else ANIMALS


CASES = {
    "causal": Case("CAUSAL_LM", 4),
    "causal-rslora-pattern": Case("CAUSAL_LM", 4, {"q_proj": 8, "layers.1.mlp.down_proj": 2}, rslora=True),
    "causal-bfloat16": Case("CAUSAL_LM", 2, {"gate_proj": 8}, rslora=True, dtype="bfloat16"),
    "classifier": Case("SEQ_CLS", 8),
    "classifier-rslora-pattern": Case("SEQ_CLS", 4, {"query": 8, "layer.1.output.dense": 2}, rslora=True),
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Served]:
    """A running coordinator on SQLite."""
    with served_on_sqlite(tmp_path) as running:
        yield running


def fetched(site: Served, key: str, spec: RunSpec, number: int, case: Case, folder: Path) -> Path:
    """A slice as the agent downloads it."""
    wanted = request_for_round(spec, number, case.rank, case.pattern)
    with connect(site.url, Waits(), key=key) as api:
        return download(api, SliceCache(folder), wanted, lambda done, total: None).folder


def train(site: Served, spec: RunSpec, participants: Sequence[tuple[Participant, Case]], folder: Path) -> None:
    """A round of everybody's real training, aggregated."""
    for participant, case in participants:
        participant.declare(RUN, case.rank, pattern=case.pattern)
    for participant, case in participants:
        task = participant.task(RUN)
        start = fetched(site, str(participant.key), spec, task["round"] - 1, case, folder / participant.client_id)
        output = folder / f"{participant.client_id}-trained"
        outcome = StandardTrainer().train(make_job(spec, start, case.examples, output))
        config = json.loads((start / "adapter_config.json").read_text())
        participant.upload(
            task,
            outcome.adapter.read_bytes(),
            alpha=config["lora_alpha"],
            alpha_pattern=config["alpha_pattern"],
            use_rslora=spec.scaling.use_rslora,
        )
    assert site.work() == 1


def logits(model: PeftModel | PreTrainedModel) -> Tensor:
    """What the model computes of fixed tokens, all attended to."""
    model.eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


@pytest.mark.parametrize(
    "case",
    [
        # the cases with patterns go through all that the plain ones do
        pytest.param(case, id=name, marks=[] if case.pattern else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def test_plain_peft_computes_what_the_agent_does(
    case: Case, llama: Path, bert: Path, site: Served, tmp_path: Path
) -> None:
    base = llama if case.task == "CAUSAL_LM" else bert
    scaling = Scaling(alpha=8.0, use_rslora=case.rslora)
    spec = make_run(base, case.task, scaling=scaling, upload_dtype=case.dtype, min_clients=2)
    site.operator.expect(201, "POST", "/v1/runs", json=spec.model_dump(mode="json") | {"weighting": "examples"})
    site.operator.expect(200, "POST", f"/v1/runs/{RUN}/start")
    site.work()
    largest = Case(case.task, LARGEST, rslora=case.rslora, dtype=case.dtype)
    train(site, spec, [(site.enroll("one"), case), (site.enroll("other"), largest)], tmp_path)

    agents = fetched(site, OPERATOR_KEY, spec, 1, case, tmp_path / "agents")
    expected = logits(Models().with_slice(read_slice(agents, spec), spec, "cpu").model)

    exported = tmp_path / "exported"
    pattern = [argument for key, rank in case.pattern.items() for argument in ("--rank-pattern", f"{key}={rank}")]
    env = {"FLEXLORA_URL": site.url, "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY, "FLEXLORA_HOME": str(tmp_path / "home")}
    done = call("export", RUN, "--rank", str(case.rank), *pattern, "--exact", "-o", exported, env=env)
    assert done.code == 0, done.err

    card = (exported / "README.md").read_text()
    assert all(f'{index}: "{label}"' in card for index, label in enumerate(spec.model.labels))

    opened = load_peft(base, spec, exported)
    torch.testing.assert_close(logits(opened), expected, rtol=1e-5, atol=1e-5)
    merged = opened.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    assert (logits(load_base(base, spec)) - expected).abs().max() > 0.1, "what was learnt shows in the logits"
