"""Runs every check of what `run` with the same options needs, with a few timed steps, and declares nothing."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from flexlora_client import credentials
from flexlora_client.agent import assemble
from flexlora_client.agent.checks.connection_checks import CONNECTION_CHECKS
from flexlora_client.agent.checks.findings import Check, Finding, examine
from flexlora_client.agent.checks.machine_checks import MACHINE_CHECKS
from flexlora_client.agent.checks.model_checks import MODEL_CHECKS
from flexlora_client.agent.checks.speed_checks import SPEED_CHECKS
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.agent.local_parts import local_parts
from flexlora_client.agent.tracker import check_track
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.rate import RateLimit
from flexlora_client.coordinator_api.retry import Backoff, RetryPolicy


def diagnose_all(
    home: Path, ca_file: Path | None, options: assemble.RunOptions, on_begin: Callable[[str], None]
) -> list[Finding]:
    """What each check found; `on_begin` is told the name of each that begins.

    Raises:
        ClientError: the home folder holds no usable credentials, without which there is nothing to look at.
    """
    identity = credentials.load(home)
    http = Http(identity.url, identity.api_key, identity.tls(ca_file), rate=RateLimit(options.max_rate))

    def data(subject: Subject) -> str:
        prepared = assemble.prepare(home, options, subject.spec, identity.name)
        subject.local_trainer, loaded, subject.devices = prepared
        return "; ".join(line.strip() for line in loaded.lines())

    def given(subject: Subject) -> str:
        assemble.check_options(options)
        local_parts(options.keep_local, subject.spec)
        if options.track is not None:
            check_track(options.track)
        return "they go with the run and with each other"

    checks = (
        *CONNECTION_CHECKS,
        Check("options", given, needs=("run",)),
        Check("folder", _folder, needs=("run",)),
        Check("data", data, needs=("run",)),
        *MACHINE_CHECKS,
        *MODEL_CHECKS,
        *SPEED_CHECKS,
    )
    with tempfile.TemporaryDirectory() as folder, Api(http, RetryPolicy(Backoff(attempts=1))) as api:
        subject = assemble.subject_of(home, options, Path(folder))
        subject.api = api
        return examine(checks, subject, on_begin)


def _folder(subject: Subject) -> str:
    """Look whether another agent is at work in the run's folder. Raises: BadInput."""
    if not (subject.home / "runs" / subject.run).is_dir():
        return "no agent has taken part in the run from this home folder yet"
    work = WorkFolder(subject.home, subject.run)
    work.lock()
    work.release()
    return "no other agent is at work in it"
