"""A federation of one participant trains as plain PEFT does, round by round, through the real coordinator.

The plain loop is written here with PEFT, PyTorch and transformers alone: one AdamW and one schedule over all steps of all
rounds. What is shared is the order of the examples, and the first slice, which is the coordinator's random lora_A.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from flexlora_client.agent.download import download
from flexlora_client.agent.slice_cache import SliceCache, request_for_round
from flexlora_client.training.data.examples import Prompted
from flexlora_client.training.encoding.encoder import Encoder
from flexlora_client.training.loop.plan import plan_steps
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec, Scaling, TrainingSpec
from tests.support.connecting import Waits, connect
from tests.support.kit import Participant, served_on_sqlite
from tests.support.tiny_models import load_base, make_job, make_run, make_tokenizer

QUESTIONS = [Prompted(f"What is number {number}?", f" {word}") for number, word in enumerate(["Paris", "day"] * 6)]
RANK, ROUNDS = 8, 3
SCHEDULES: dict[Any, Any] = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}


def make(llama: Path, **changes: Any) -> RunSpec:
    """3 rounds of 6 steps of 2 batches, 3 of the 18 steps warm-up."""
    training = TrainingSpec(
        learning_rate=0.01,
        epochs=2,
        batch_size=2,
        gradient_accumulation_steps=2,
        max_length=64,
        weight_decay=0.01,
        schedule="cosine",
        warmup=1 / 6,
        optimizer_state="keep",
    )
    spec = make_run(llama, "CAUSAL_LM", ["q_proj", "up_proj"], training, scaling=Scaling(alpha=16.0))
    fields = {"ranks": (RANK,), "rounds": ROUNDS, "strategy": "fedavg", **changes}
    return spec.model_copy(update=fields)


class Rounds:
    """What each round was served, what was uploaded in it, and its training losses."""

    def __init__(self) -> None:
        self.served: list[dict[str, torch.Tensor]] = []
        self.uploaded: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []


def federate(spec: RunSpec, folder: Path, participants: int = 1) -> Rounds:
    """Everybody trains every round on the same data."""
    found, trainer = Rounds(), StandardTrainer(Models())
    folder.mkdir()
    with served_on_sqlite(folder) as site:
        site.operator.expect(201, "POST", "/v1/runs", json=spec.model_dump(mode="json") | {"weighting": "examples"})
        site.operator.expect(200, "POST", f"/v1/runs/{spec.name}/start")
        site.work()
        people = [site.enroll(f"number-{n}") for n in range(participants)]
        for number in range(1, ROUNDS + 1):
            for each in people:
                each.declare(spec.name, RANK, len(QUESTIONS))
            for each in people:
                start = fetch(site.url, each, spec, number - 1, folder)
                if each is people[0]:
                    found.served.append(load_file(start / "adapter_model.safetensors"))
                _take_part(each, spec, number, start, folder, trainer, found)
            assert site.work() == 1
        found.served.append(load_file(fetch(site.url, people[0], spec, ROUNDS, folder) / "adapter_model.safetensors"))
    return found


def fetch(url: str, participant: Participant, spec: RunSpec, number: int, folder: Path) -> Path:
    """A slice as the agent downloads it."""
    with connect(url, Waits(), key=str(participant.key)) as api:
        wanted = request_for_round(spec, number, RANK, {})
        return download(api, SliceCache(folder / "slices"), wanted, lambda done, total: None).folder


def _take_part(
    who: Participant, spec: RunSpec, number: int, start: Path, folder: Path, trainer: StandardTrainer, found: Rounds
) -> None:
    output, told = folder / f"{who.client_id}-{number}", list[str]()
    job = make_job(
        spec,
        start,
        QUESTIONS,
        output,
        round=number,
        participant=who.client_id,
        state=folder / f"{who.client_id}-state",
        notice=told.append,
    )
    outcome = trainer.train(job)
    assert told == []
    alpha = json.loads((start / "adapter_config.json").read_bytes())["lora_alpha"]
    who.upload(who.task(spec.name), outcome.adapter.read_bytes(), alpha=alpha, examples=outcome.examples)
    found.uploaded.append(load_file(outcome.adapter))
    found.losses.append(outcome.metrics["train_loss"])


def plain_losses(spec: RunSpec, llama: Path, start: dict[str, torch.Tensor]) -> list[float]:
    """The mean training loss of each round's steps of a loop that knows no rounds."""
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=16, target_modules=[module.name for module in spec.modules]
    )
    model = get_peft_model(load_base(llama, spec), config)
    assert isinstance(model, PeftModel)
    set_peft_model_state_dict(model, start)
    model.train()
    training = spec.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=training.weight_decay)
    lengths = [example.characters for example in QUESTIONS]
    by_round = [plan_steps(lengths, training, number) for number in range(1, ROUNDS + 1)]
    schedule = SCHEDULES[training.schedule](optimizer, 3, sum(map(len, by_round)))
    encoder = Encoder(make_tokenizer(), 64)
    encoded = [encoder.encode(example) for example in QUESTIONS]
    losses = []
    for steps in by_round:
        total, tokens = 0.0, 0
        for step in steps:
            weight = sum(encoded[index].weight for index in step)
            for index in step:  # one example at a time: no padding
                ids, labels = torch.tensor([encoded[index].ids]), torch.tensor([encoded[index].targets])
                loss = model(input_ids=ids, labels=labels).loss * encoded[index].weight
                (loss / weight).backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            tokens += weight
        losses.append(total / tokens)
    return losses


def products(tensors: dict[str, torch.Tensor], spec: RunSpec) -> list[torch.Tensor]:
    """B A of every module."""
    return [tensors[key_B(m.name)].double() @ tensors[key_A(m.name)].double() for m in spec.modules]


def check_product_served(rounds: Rounds, spec: RunSpec) -> None:
    """What a round uploads is what the next one starts from."""
    for uploaded, served in zip(rounds.uploaded, rounds.served[1:], strict=True):
        for before, after in zip(products(uploaded, spec), products(served, spec), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", pytest.param("linear", marks=pytest.mark.slow)])
def test_one_participant_under_fedavg_is_plain_peft(llama: Path, tmp_path: Path, schedule: Any) -> None:
    spec = make(llama)
    training = spec.training.model_copy(update={"schedule": schedule})
    spec = spec.model_copy(update={"training": training})
    rounds = federate(spec, tmp_path / "site")
    expected = plain_losses(spec, llama, rounds.served[0])
    assert rounds.losses == pytest.approx(expected, abs=1e-4)
    assert expected[0] - expected[2] > 1, "it learns"
    check_product_served(rounds, spec)


@pytest.mark.slow
def test_one_participant_under_flexlora_is_served_its_own_product(llama: Path, tmp_path: Path) -> None:
    spec = make(llama, strategy="flexlora")
    rounds = federate(spec, tmp_path / "site")
    check_product_served(rounds, spec)
    expected = plain_losses(spec, llama, rounds.served[0])
    assert rounds.losses[0] == pytest.approx(expected[0], abs=1e-4), "later rounds start from other factors"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedavg", "flexlora"])
def test_two_participants_with_the_same_data_are_one(llama: Path, tmp_path: Path, strategy: str) -> None:
    one = federate(make(llama, strategy=strategy), tmp_path / "one")
    spec = make(llama, strategy=strategy, min_clients=2, min_updates=2)
    two = federate(spec, tmp_path / "two", participants=2)
    assert two.losses[::2] == two.losses[1::2] == pytest.approx(one.losses, abs=1e-4)
    for alone, together in zip(products(one.served[-1], spec), products(two.served[-1], spec), strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_an_adapter_in_bfloat16_follows_plain_peft_as_closely_as_it_rounds(llama: Path, tmp_path: Path) -> None:
    spec = make(llama, upload_dtype="bfloat16")
    rounds = federate(spec, tmp_path / "site")
    expected = plain_losses(spec, llama, {key: tensor.float() for key, tensor in rounds.served[0].items()})
    assert rounds.losses[0] == pytest.approx(expected[0], abs=1e-4), "nothing was rounded yet"
    assert rounds.losses == pytest.approx(expected, abs=0.05)
    for uploaded, served in zip(rounds.uploaded, rounds.served[1:], strict=True):
        assert {name: tensor.dtype for name, tensor in served.items()} == dict.fromkeys(uploaded, torch.bfloat16)
        assert all(torch.equal(uploaded[name], served[name]) for name in uploaded)
