"""Puts an agent together from what the command line says: connection, data, training loop, hardware; and runs it."""

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from transformers.utils.logging import disable_progress_bar

from flexlora_client import credentials
from flexlora_client.agent.local_trainer import Learner
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.work_folder import Work, basis_of
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import PATIENT, Retry
from flexlora_client.credentials import Identity
from flexlora_client.errors import BadInput, ClientError, UsageError, describe_validation_error
from flexlora_client.training.data import Split, load, split
from flexlora_client.training.devices import resolve
from flexlora_client.training.models import Models
from flexlora_client.training.plugin import load_trainer
from flexlora_client.training.standard import StandardTrainer
from flexlora_shared.messages.clients import Declaration, Hardware
from flexlora_shared.messages.runs import RunSpec


@dataclass(frozen=True)
class Plan:
    """How a participant takes part, as given on the command line."""

    run: str
    rank: int
    rank_pattern: Mapping[str, int]
    data: Path
    heldout: Path | None
    heldout_fraction: float
    answers: int
    model_path: str | None
    trainer: str | None
    device: str
    threads: int | None
    max_rounds: int | None


def take_part(home: Path, ca_file: Path | None, plan: Plan, *, as_json: bool) -> None:
    """Run an agent until its run is over; `home` is the folder of the participant's credentials and of its work.

    Raises:
        ClientError, TrainingError: what ends it, as a sentence.
    """
    if not sys.stderr.isatty():
        disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading weights
    reporter = Reporter(plan.run, as_json=as_json)
    try:
        identity = credentials.load(home)
        with _patient(home, ca_file, identity, reporter) as api:
            _agent(home, plan, api, reporter, identity.client_id)
    except KeyboardInterrupt:
        reporter.step("interrupted", "interrupted; what is finished is kept for the next start")
        raise


def _agent(home: Path, plan: Plan, api: Api, reporter: Reporter, client_id: str) -> None:
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    device = resolve(plan.device)
    spec = api.run(plan.run).spec
    learner = _learner(plan, spec, str(device), client_id)
    declaration = _declaration(plan, len(learner.train), device)
    work = Work(home, spec.name, basis_of(client_id, learner.train))
    work.lock()
    try:
        Agent(api, spec, work, learner, declaration, reporter, plan.max_rounds).run()
    finally:
        work.release()


def _patient(home: Path, ca_file: Path | None, identity: Identity, reporter: Reporter) -> Api:
    def on_wait(error: ClientError, delay: float) -> None:
        reporter.step("retrying", f"{error}; trying again in {delay:.1f} s", seconds=round(delay, 1))

    def renewed() -> str:
        now = credentials.load(home)
        same = (now.url, now.client_id) == (identity.url, identity.client_id)
        return now.api_key if same else identity.api_key

    http = Http(identity.url, identity.api_key, ca_file, renewed)
    return Api(http, Retry(PATIENT, on_wait=on_wait))


def _declaration(plan: Plan, examples: int, device: torch.device) -> Declaration:
    try:
        return Declaration(
            rank=plan.rank, rank_pattern=dict(plan.rank_pattern), examples=examples, hardware=hardware(device)
        )
    except ValidationError as error:
        raise UsageError(describe_validation_error(error)) from None


def _learner(plan: Plan, spec: RunSpec, device: str, client_id: str) -> Learner:
    if plan.model_path is not None and not Path(plan.model_path).exists():
        raise BadInput(f"there is no base model at {plan.model_path}; --model takes a folder on this machine")
    models = Models()
    trainer = load_trainer(plan.trainer) if plan.trainer else StandardTrainer(models)
    data = _data(plan, spec)
    return Learner(trainer, models, data.train, data.heldout, plan.answers, device, plan.model_path, client_id)


def _data(plan: Plan, spec: RunSpec) -> Split:
    examples = load(plan.data, spec.model)
    if plan.heldout is not None:
        return Split(examples, load(plan.heldout, spec.model))
    return split(examples, plan.heldout_fraction, spec.seed)


def hardware(device: torch.device) -> Hardware:
    """What the operator gets to see of this machine."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    else:
        name, memory = f"{device.type}, {torch.get_num_threads()} threads", _memory()
    software = ", ".join(f"{part} {importlib.metadata.version(part)}" for part in ("torch", "transformers", "peft"))
    return Hardware(device=name[:100], memory_bytes=memory, software=software[:200])


def _memory() -> int:
    """Bytes of main memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
