"""The checks at the start of `run`: what would fail in a round, found before anybody counts on this participant."""

from flexlora_client.agent.checks.connection_checks import clock, rank_allowed
from flexlora_client.agent.checks.findings import Check, require
from flexlora_client.agent.checks.machine_checks import MACHINE_CHECKS
from flexlora_client.agent.checks.model_checks import MODEL_CHECKS
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.agent.reporter import Reporter

CHECKS = (Check("rank", rank_allowed), Check("clock", clock), *MACHINE_CHECKS, *MODEL_CHECKS)


def check_before_declaring(subject: Subject, reporter: Reporter) -> None:
    """Run the checks, which load the base model that training goes on with; report the doubts.

    Raises:
        ClientError, TrainingError, OSError: what would fail; the message says what to do.
    """
    for doubt in require(CHECKS, subject):
        reporter.step("warning", f"{doubt.check}: {doubt.detail}", check=doubt.check)
