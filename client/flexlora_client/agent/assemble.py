"""Builds an agent from the options of the command line (connection, data, training loop, device) and runs it."""

import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from transformers.utils.logging import disable_progress_bar

from flexlora_client import credentials
from flexlora_client.agent.checks.before_declaring import check_before_declaring
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.agent.diary import Diary
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.tensorboard import TensorBoard
from flexlora_client.agent.work_folder import WorkFolder, compute_basis
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.rate import RateLimit
from flexlora_client.coordinator_api.retry import AGENT_BACKOFF, RetryPolicy
from flexlora_client.credentials import Identity
from flexlora_client.errors import (
    BadInput,
    ClientError,
    TrainingError,
    UsageError,
    describe_validation_error,
    exit_code,
    sentence_of,
)
from flexlora_client.training.data.split import Split, load, split
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.devices import resolve_device
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.plugin import load_trainer
from flexlora_shared.messages.clients import Declaration, Hardware
from flexlora_shared.messages.runs import RunSpec


@dataclass(frozen=True)
class RunOptions:
    """The options of `flexlora-client run`."""

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
    max_rate: float | None = None  # bytes a second, each way
    tensorboard: Path | None = None


def take_part(home: Path, ca_file: Path | None, options: RunOptions, *, as_json: bool) -> None:
    """Run an agent until its run is over; `home` is the folder of the participant's credentials and of its work.

    Raises:
        ClientError, TrainingError: the agent ended early; the message says why.
    """
    if not sys.stderr.isatty():
        disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading weights
    reporter = Reporter(options.run, as_json=as_json)
    try:
        identity = credentials.load(home)
        with _connect(home, ca_file, identity, reporter, options.max_rate) as api:
            _run_agent(home, options, api, reporter, identity.client_id)
    except KeyboardInterrupt:
        reporter.step("interrupted", "interrupted; what is finished is kept for the next start")
        raise
    except (ClientError, TrainingError, OSError) as error:
        reporter.log(f"error: {sentence_of(error)}")
        reporter.event("error", code=int(exit_code(error)), reason=sentence_of(error))
        raise
    finally:
        reporter.close()


def _run_agent(home: Path, options: RunOptions, api: Api, reporter: Reporter, client_id: str) -> None:
    spec = api.run(options.run).spec
    work = WorkFolder(home, spec.name)
    work.lock()  # before anything that takes long
    try:
        reporter.keep(Diary(work.folder, spec.name))
        if options.tensorboard is not None:
            reporter.tell(TensorBoard(options.tensorboard, spec.name))
        _prepared(home, options, api, reporter, spec, work, client_id).run()
    finally:
        work.release()


def _prepared(
    home: Path, options: RunOptions, api: Api, reporter: Reporter, spec: RunSpec, work: WorkFolder, client_id: str
) -> Agent:
    """The agent, about to declare; what would fail in a round has been looked for. Raises: ClientError, TrainingError."""
    local_trainer, device = prepare(options, spec, client_id)
    work.basis = compute_basis(client_id, local_trainer.train)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(home, options.run, options.rank, options.rank_pattern, Path(folder))
        subject.api, subject.spec, subject.local_trainer, subject.device = api, spec, local_trainer, device
        check_before_declaring(subject, reporter)
    declaration = _build_declaration(options, len(local_trainer.train), device)
    return Agent(api, spec, work, local_trainer, declaration, reporter, options.max_rounds)


def prepare(options: RunOptions, spec: RunSpec, client_id: str) -> tuple[LocalTrainer, torch.device]:
    """The training loop with its data read, and the device it trains on. Raises: ClientError, TrainingError."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    return _local_trainer(options, spec, str(device), client_id), device


def _connect(home: Path, ca_file: Path | None, identity: Identity, reporter: Reporter, max_rate: float | None) -> Api:
    def on_wait(error: ClientError, delay: float) -> None:
        reporter.step("retrying", f"{error}; trying again in {delay:.1f} s", seconds=round(delay, 1))

    def reload_key() -> str:
        current = credentials.load(home)
        same = (current.url, current.client_id) == (identity.url, identity.client_id)
        return current.api_key if same else identity.api_key

    http = Http(identity.url, identity.api_key, identity.tls(ca_file), reload_key, rate=RateLimit(max_rate))
    return Api(http, RetryPolicy(AGENT_BACKOFF, on_wait=on_wait))


def _build_declaration(options: RunOptions, examples: int, device: torch.device) -> Declaration:
    try:
        return Declaration(
            rank=options.rank,
            rank_pattern=dict(options.rank_pattern),
            examples=examples,
            hardware=describe_hardware(device),
        )
    except ValidationError as error:
        raise UsageError(describe_validation_error(error)) from None


def _local_trainer(options: RunOptions, spec: RunSpec, device: str, client_id: str) -> LocalTrainer:
    if options.model_path is not None and not Path(options.model_path).exists():
        raise BadInput(f"there is no base model at {options.model_path}; --model takes a folder on this machine")
    models = Models()
    trainer = load_trainer(options.trainer) if options.trainer else StandardTrainer(models)
    data = _load_data(options, spec)
    return LocalTrainer(
        trainer, models, data.train, data.heldout, options.answers, device, options.model_path, client_id
    )


def _load_data(options: RunOptions, spec: RunSpec) -> Split:
    examples = load(options.data, spec.model)
    if options.heldout is not None:
        return Split(examples, load(options.heldout, spec.model))
    return split(examples, options.heldout_fraction, spec.seed)


def describe_hardware(device: torch.device) -> Hardware:
    """The device, its memory and the library versions, as the operator sees them."""
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
