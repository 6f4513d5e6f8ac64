"""Checks of the way to the coordinator, of the key and of the run."""

import time
from urllib.parse import urlsplit

from pydantic import ValidationError

from flexlora_client.agent.checks.findings import Check, Doubt
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.errors import Refused, RunEnded, UsageError, describe_validation_error
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunDetail
from flexlora_shared.problems import Code, Problem
from flexlora_shared.ranks import unmatched_keys

CERTIFICATE_DAYS = 14  # a certificate that is valid for less deserves a word
CLOCK_S = 30.0  # seconds that clocks may differ; the header that tells has whole seconds
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _address(subject: Subject) -> str:
    subject.probe = subject.api.http.probe()
    return f"{subject.api.http.url} answers, FlexLoRA {subject.probe.version or 'of an unknown version'}"


def _tls(subject: Subject) -> str | Doubt:
    ends = subject.probe.certificate_ends
    if ends is None:
        if urlsplit(subject.api.http.url).hostname in LOOPBACK:
            return "none is needed on this machine"
        return Doubt("the key travels where others can read it; ask the operator for an https address")
    days = int((ends - time.time()) // 86_400)
    until = f"the certificate is valid until {time.strftime('%Y-%m-%d', time.gmtime(ends))}"
    if days < CERTIFICATE_DAYS:
        return Doubt(f"{until}, {days} days from now; tell the operator, agents end when it expires")
    return until


def clock(subject: Subject) -> str | Doubt:
    """Compare this machine's clock with the coordinator's: deadlines are told as times."""
    ahead = subject.api.http.clock_ahead
    if abs(ahead) > CLOCK_S:
        way = "behind" if ahead > 0 else "ahead of"
        return Doubt(
            f"this machine's clock is {abs(ahead):.0f} s {way} the coordinator's, so deadlines are misread; "
            "let the machine set its clock (NTP)"
        )
    return "at most a few seconds from the coordinator's"


def _key(subject: Subject) -> str:
    try:
        subject.answer = subject.api.run(subject.run)
    except Refused as error:
        if error.code is Code.UNAUTHENTICATED:
            raise
        subject.answer = error
    return "the coordinator knows it"


def _run(subject: Subject) -> str | Doubt:
    if isinstance(subject.answer, Refused):
        raise subject.answer
    subject.spec = subject.answer.spec
    return run_state(subject.answer)


def run_state(detail: RunDetail) -> str | Doubt:
    """Whether the run takes part-takers. Raises: RunEnded."""
    status = detail.status
    if status.state in ("COMPLETED", "CANCELLED", "FAILED"):
        raise RunEnded(f"run {status.name} is {status.state}; there is nothing to take part in, choose another run")
    if status.state in ("DRAFT", "PAUSED"):
        return Doubt(f"run {status.name} is {status.state}; its operator has to start it, the agent would wait")
    done = f"{status.rounds_published} of {status.rounds} rounds are published"
    return f"{done}; {status.waiting_for}" if status.waiting_for else done


def rank_allowed(subject: Subject) -> str:
    """Look whether the run allows the rank. Raises: UsageError, Refused."""
    spec, rank, hold_rank = subject.spec, subject.rank, subject.hold_rank
    try:
        Declaration(rank=rank, rank_pattern=dict(subject.rank_pattern), hold_rank=hold_rank, examples=1)
    except ValidationError as error:
        raise UsageError(describe_validation_error(error)) from None
    allowed = " ".join(map(str, sorted(spec.ranks)))
    unknown = unmatched_keys((module.name for module in spec.modules), subject.rank_pattern)
    if rank not in spec.ranks:
        detail = f"Run {spec.name} allows the ranks {allowed}, not {rank}; choose one of them with --rank."
        raise Refused(Problem.of(Code.RANK_NOT_ALLOWED, detail))
    if unknown:
        detail = f"--rank-pattern {unknown[0]} names no module of run {spec.name}; check how it is written."
        raise Refused(Problem.of(Code.INVALID_REQUEST, detail))
    if hold_rank is None:
        return f"{rank}, of {allowed}"
    if hold_rank not in spec.ranks or hold_rank < rank:
        detail = f"--hold-rank {hold_rank} must be one of the run's ranks {allowed}, and at least --rank {rank}."
        raise Refused(Problem.of(Code.RANK_NOT_ALLOWED, detail))
    return f"{rank}, holding {hold_rank}, of {allowed}"


CONNECTION_CHECKS = (
    Check("address", _address),
    Check("tls", _tls, needs=("address",)),
    Check("clock", clock, needs=("address",)),
    Check("key", _key, needs=("address",)),
    Check("run", _run, needs=("key",)),
    Check("rank", rank_allowed, needs=("run",)),
)
