"""Builds an agent from the options of the command line (connection, data, training loop, device) and runs it."""

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from transformers.utils.logging import disable_progress_bar

from flexlora_client import credentials
from flexlora_client.agent.evaluator import Evaluator
from flexlora_client.agent.local_parts import Part, local_parts
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.measure_slice import SliceMeasuring
from flexlora_client.agent.rank_choice import RankChoice
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.work_folder import WorkFolder, compute_basis
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import AGENT_BACKOFF, RetryPolicy
from flexlora_client.credentials import Identity
from flexlora_client.errors import BadInput, ClientError, UsageError, describe_validation_error
from flexlora_client.files import make_folder
from flexlora_client.training.contract import DEFAULT_COMPUTE, Compute
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.loading import LoadedData, load_data
from flexlora_client.training.evaluation.own_metric import load_metric
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.devices import resolve_device
from flexlora_client.training.models.fingerprint import check_fingerprint
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.plugin import load_trainer
from flexlora_shared.messages.clients import Declaration, Hardware
from flexlora_shared.messages.runs import Fingerprint, RunSpec


@dataclass(frozen=True)
class RunOptions:
    """The options of `flexlora-client run`."""

    run: str
    rank: int | None  # None: the largest that fits here
    rank_pattern: Mapping[str, int]
    data: DataOptions
    answers: int
    model_path: str | None
    trainer: str | None
    device: str
    threads: int | None
    compute: Compute
    max_rounds: int | None
    metric: str | None = None
    evaluation_share: float = 0.25
    keep_local: Part | None = None
    evaluates_only: bool = False


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
        with _connect(home, ca_file, identity, reporter) as api:
            _run_agent(home, options, api, reporter, identity.client_id)
    except KeyboardInterrupt:
        reporter.step("interrupted", "what is finished is kept for the next start")
        raise


def _run_agent(home: Path, options: RunOptions, api: Api, reporter: Reporter, client_id: str) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    spec = api.run(options.run).spec
    kept_parts = local_parts(options.keep_local, spec)
    data = _load_data(home, options, spec, reporter)
    local_trainer = _local_trainer(options, data, str(device), client_id)
    own = check_fingerprint(spec.model, options.model_path)  # before the round counts on this participant
    work = WorkFolder(home, spec.name, compute_basis(client_id, local_trainer.train))
    work.lock()
    try:
        if options.evaluates_only:
            measuring = SliceMeasuring(api, spec, work, local_trainer, reporter)
            assert options.rank is not None  # by the command line
            Evaluator(measuring, options.rank, options.rank_pattern, options.max_rounds).run()
            return
        choice = _rank_choice(options, spec, local_trainer, reporter)
        rank = choice.choose() if choice is not None else options.rank
        assert rank is not None  # by _rank_choice
        declaration = _build_declaration(options, rank, local_trainer, device, own)
        Agent(
            api,
            spec,
            work,
            local_trainer,
            declaration,
            reporter,
            options.max_rounds,
            kept_parts,
            rank_choice=choice,
        ).run()
    finally:
        work.release()


def _connect(home: Path, ca_file: Path | None, identity: Identity, reporter: Reporter) -> Api:
    def on_wait(error: ClientError, delay: float) -> None:
        reporter.step("retrying", f"{error}; trying again in {delay:.1f} s", seconds=round(delay, 1))

    def reload_key() -> str:
        current = credentials.load(home)
        same = (current.url, current.client_id) == (identity.url, identity.client_id)
        return current.api_key if same else identity.api_key

    http = Http(identity.url, identity.api_key, ca_file, reload_key)
    return Api(http, RetryPolicy(AGENT_BACKOFF, on_wait=on_wait))


def _rank_choice(
    options: RunOptions, spec: RunSpec, local_trainer: LocalTrainer, reporter: Reporter
) -> RankChoice | None:
    """What chooses the rank; None where the participant gave it."""
    if options.rank is not None:
        return None
    if options.trainer is not None:
        raise UsageError("--rank auto measures the agent's own training loop; give a rank beside --trainer")
    if options.rank_pattern:
        raise UsageError("--rank auto chooses one rank for all modules; give a rank beside --rank-pattern")
    return RankChoice(spec, local_trainer, options.compute, reporter)


def _build_declaration(
    options: RunOptions,
    rank: int,
    local_trainer: LocalTrainer,
    device: torch.device,
    fingerprint: Fingerprint | None,
) -> Declaration:
    try:
        return Declaration(
            rank=rank,
            rank_pattern=dict(options.rank_pattern),
            examples=len(local_trainer.train),
            hardware=describe_hardware(device, local_trainer.compute),
            fingerprint=fingerprint,
        )
    except ValidationError as error:
        raise UsageError(describe_validation_error(error)) from None


def _local_trainer(options: RunOptions, data: LoadedData, device: str, client_id: str) -> LocalTrainer:
    models = Models()
    trainer = load_trainer(options.trainer) if options.trainer else StandardTrainer(models)
    return LocalTrainer(
        trainer,
        models,
        () if options.evaluates_only else data.train,
        data.train if options.evaluates_only else data.heldout,
        options.answers,
        device,
        options.model_path,
        client_id,
        options.compute,
        load_metric(options.metric) if options.metric else None,
        options.evaluation_share,
    )


def _load_data(home: Path, options: RunOptions, spec: RunSpec, reporter: Reporter) -> LoadedData:
    """Read the data; what memory should not hold goes to a temporary file in the home folder."""
    if options.model_path is not None and not Path(options.model_path).exists():  # before minutes of reading
        raise BadInput(f"there is no base model at {options.model_path}; --model takes a folder on this machine")
    data = load_data(options.data, spec.model, seed=spec.seed, folder=make_folder(home, 0o700))
    counts = {"examples": len(data.train), "heldout": len(data.heldout), "rows": data.rows, "skipped": data.skipped}
    first, *notes = data.lines()
    reporter.step("data", first, **counts, duplicates=data.duplicates, leaked=data.leaked)
    for note in notes:
        reporter.step("data-note", note, note=note.strip())
    return data


def describe_hardware(device: torch.device, compute: Compute = DEFAULT_COMPUTE) -> Hardware:
    """The device and how it computes, its memory and the library versions, as the operator sees them."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    else:
        name, memory = f"{device.type}, {torch.get_num_threads()} threads", _memory()
    software = ", ".join(f"{part} {importlib.metadata.version(part)}" for part in ("torch", "transformers", "peft"))
    settings = [
        f"{field} {value}" for field, value in asdict(compute).items() if value != getattr(DEFAULT_COMPUTE, field)
    ]
    name = ", ".join([name, *settings])
    return Hardware(device=name[:100], memory_bytes=memory, software=software[:200])


def _memory() -> int:
    """Bytes of main memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
