"""Builds an agent from the options of the command line (connection, data, training loop, device) and runs it."""

import importlib.metadata
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from transformers.utils.logging import disable_progress_bar

from flexlora_client import credentials
from flexlora_client.agent.agreement import definition_digest
from flexlora_client.agent.checks.before_declaring import check_before_declaring
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.agent.diary import Diary
from flexlora_client.agent.evaluator import Evaluator
from flexlora_client.agent.local_parts import Part, local_parts
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.measure_slice import SliceMeasuring
from flexlora_client.agent.rank_choice import RankChoice
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.tracker import Tracker
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
from flexlora_client.files import make_folder
from flexlora_client.training.contract import DEFAULT_COMPUTE, Compute
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.loading import LoadedData, load_data
from flexlora_client.training.evaluation.own_metric import load_metric
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.devices import resolve_devices
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
    max_rate: float | None = None  # bytes a second, each way
    track: str | None = None  # what takes the participant's figures, see `tracker`
    hold_rank: int | None = None  # None: as it trains, or as measured
    allowed_extra: tuple[str, ...] = ()  # tensors that the run may train in full, beside a classifier's head


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
            _run_agent(home, options, api, reporter, identity)
    except KeyboardInterrupt:
        reporter.step("interrupted", "what is finished is kept for the next start")
        raise
    except (ClientError, TrainingError, OSError) as error:
        reporter.log(f"error: {sentence_of(error)}")
        reporter.event("error", code=int(exit_code(error)), reason=sentence_of(error))
        raise
    finally:
        reporter.close()


def _run_agent(home: Path, options: RunOptions, api: Api, reporter: Reporter, identity: Identity) -> None:
    spec = api.run(options.run).spec
    work = WorkFolder(home, spec.name)
    work.lock()  # before anything that takes long
    try:
        reporter.keep(Diary(work.folder, spec.name))
        if work.results.agree(spec):
            digest = definition_digest(spec)
            reporter.step("joined", f"joined run {spec.name}, definition sha256:{digest}", definition=digest)
        if options.track is not None:
            reporter.track(Tracker(options.track, spec, lambda said: reporter.step("tracking-failed", said)))
        _prepared(home, options, api, reporter, spec, work, identity).run()
    finally:
        work.release()


def _prepared(
    home: Path, options: RunOptions, api: Api, reporter: Reporter, spec: RunSpec, work: WorkFolder, identity: Identity
) -> Agent | Evaluator:
    """The agent, about to declare; what would fail in a round has been looked for. Raises: ClientError, TrainingError."""
    kept_parts = local_parts(options.keep_local, spec)
    check_options(options)
    local_trainer, data, devices = prepare(home, options, spec, identity.name)
    _tell_data(data, reporter)
    work.basis = compute_basis(identity.client_id, local_trainer.train)
    fingerprint = _check(home, options, api, reporter, spec, local_trainer, devices)
    if options.evaluates_only:
        measuring = SliceMeasuring(api, spec, work, local_trainer, reporter)
        assert options.rank is not None  # by the command line
        return Evaluator(measuring, options.rank, options.rank_pattern, options.max_rounds)
    choice = RankChoice(spec, local_trainer, options.compute, reporter) if options.rank is None else None
    rank, hold_rank = options.rank, options.hold_rank
    if choice is not None:
        chosen = choice.choose()
        rank, hold_rank = chosen.rank, chosen.held
    assert rank is not None
    declaration = _build_declaration(options, rank, hold_rank, local_trainer, devices, fingerprint)
    return Agent(
        api,
        spec,
        work,
        local_trainer,
        declaration,
        reporter,
        options.max_rounds,
        kept_parts,
        rank_choice=choice,
    )


def _check(
    home: Path,
    options: RunOptions,
    api: Api,
    reporter: Reporter,
    spec: RunSpec,
    local_trainer: LocalTrainer,
    devices: Sequence[torch.device],
) -> Fingerprint | None:
    """Look for what would fail in a round; the base model's fingerprint. Raises: ClientError, TrainingError.

    What is looked at holds the model, of which a measurement would load a second copy: it ends here.
    """
    with tempfile.TemporaryDirectory() as folder:
        subject = subject_of(home, options, Path(folder))
        subject.api, subject.spec, subject.local_trainer, subject.devices = api, spec, local_trainer, devices
        check_before_declaring(subject, reporter)
    return subject.fingerprint


def subject_of(home: Path, options: RunOptions, folder: Path) -> Subject:
    """What the checks begin with; `folder` is for what they write."""
    ranks = options.rank, options.rank_pattern
    kept = options.keep_local == "head"
    return Subject(home, options.run, *ranks, folder, options.hold_rank, options.allowed_extra, keeps_extra=kept)


def prepare(
    home: Path, options: RunOptions, spec: RunSpec, participant: str
) -> tuple[LocalTrainer, LoadedData, tuple[torch.device, ...]]:
    """The training loop with its data read, what was met in the data, and the devices to train on.

    Raises:
        ClientError, TrainingError: something that is given cannot be used.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    devices = resolve_devices(options.device)
    if options.model_path is not None and not Path(options.model_path).exists():  # before minutes of reading
        raise BadInput(f"there is no base model at {options.model_path}; --model takes a folder on this machine")
    # what memory should not hold goes to a temporary file in the home folder
    data = load_data(options.data, spec.model, seed=spec.seed, folder=make_folder(home, 0o700))
    return _local_trainer(options, data, ",".join(map(str, devices)), participant), data, devices


def _connect(home: Path, ca_file: Path | None, identity: Identity, reporter: Reporter, max_rate: float | None) -> Api:
    def on_wait(error: ClientError, delay: float) -> None:
        reporter.step("retrying", f"{error}; trying again in {delay:.1f} s", seconds=round(delay, 1))

    def reload_key() -> str:
        current = credentials.load(home)
        same = (current.url, current.client_id) == (identity.url, identity.client_id)
        return current.api_key if same else identity.api_key

    http = Http(identity.url, identity.api_key, identity.tls(ca_file), reload_key, rate=RateLimit(max_rate))
    return Api(http, RetryPolicy(AGENT_BACKOFF, on_wait=on_wait))


def check_options(options: RunOptions) -> None:
    """Refuse what several devices cannot share, what an evaluator has no use for, and what `--rank auto` cannot measure.

    Raises: UsageError, DeviceError.
    """
    if "," in options.device or options.device == "cuda:all":
        devices = resolve_devices(options.device)
        if options.trainer is not None:
            raise UsageError("several devices are for the agent's own training loop; give one beside --trainer")
        places = {device.index or 0 for device in devices}  # "cuda" is cuda:0
        if len(places) < len(devices) or any(device.type != "cuda" for device in devices):
            raise UsageError(f"--device {options.device}: several devices must be different GPUs, as in cuda:0,cuda:1")
    if options.hold_rank is not None and options.evaluates_only:
        raise UsageError(
            "an evaluator measures the adapter at --rank, and holds nothing beside it; leave --hold-rank out"
        )
    if options.rank is not None:
        return
    if options.trainer is not None:
        raise UsageError("--rank auto measures the agent's own training loop; give a rank beside --trainer")
    if options.hold_rank is not None:
        raise UsageError("--rank auto chooses what is held, too; give a rank beside --hold-rank")
    if options.rank_pattern:
        raise UsageError("--rank auto chooses one rank for all modules; give a rank beside --rank-pattern")
    if options.evaluates_only:
        raise UsageError("an evaluator does not train, so nothing is measured for it; give it the rank to evaluate")


def _build_declaration(
    options: RunOptions,
    rank: int,
    hold_rank: int | None,
    local_trainer: LocalTrainer,
    devices: Sequence[torch.device],
    fingerprint: Fingerprint | None,
) -> Declaration:
    try:
        return Declaration(
            rank=rank,
            rank_pattern=dict(options.rank_pattern),
            hold_rank=hold_rank,
            examples=len(local_trainer.train),
            hardware=describe_hardware(devices, local_trainer.compute),
            fingerprint=fingerprint,
        )
    except ValidationError as error:
        raise UsageError(describe_validation_error(error)) from None


def _local_trainer(options: RunOptions, data: LoadedData, device: str, participant: str) -> LocalTrainer:
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
        participant,
        options.compute,
        load_metric(options.metric) if options.metric else None,
        options.evaluation_share,
    )


def _tell_data(data: LoadedData, reporter: Reporter) -> None:
    first, *notes = data.lines()
    reporter.step(
        "data",
        first,
        examples=len(data.train),
        heldout=len(data.heldout),
        rows=data.rows,
        skipped=data.skipped,
        duplicates=data.duplicates,
        leaked=data.leaked,
    )
    for note in notes:
        reporter.step("data-note", note, note=note.strip())


def describe_hardware(devices: Sequence[torch.device], compute: Compute = DEFAULT_COMPUTE) -> Hardware:
    """The devices and how they compute, their memory and the library versions, as the operator sees them."""
    if devices[0].type == "cuda":
        properties = [torch.cuda.get_device_properties(device) for device in devices]
        names = Counter(each.name for each in properties)
        name = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items())
        memory = sum(each.total_memory for each in properties)
    else:
        name, memory = f"{devices[0].type}, {torch.get_num_threads()} threads", _memory()
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
