"""Checks in their order, and what each found. One that needs another which failed is skipped."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from flexlora_client.errors import ClientError, Exit, TrainingError, exit_code, sentence_of

S = TypeVar("S")
State = Literal["passed", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Doubt:
    """Found, and likely to make trouble: a sentence that says what to do."""

    detail: str


@dataclass(frozen=True)
class Check(Generic[S]):
    """One check of a subject S, which later checks may read what it found from.

    `look` returns a sentence of what is well, or a doubt. Where a run could not go well, it raises ClientError, TrainingError or
    OSError with a sentence that says what to do.
    """

    name: str
    look: Callable[[S], str | Doubt]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """How a check ended."""

    check: str
    state: State
    detail: str
    exit_code: Exit = Exit.OK


def examine(
    checks: Iterable[Check[S]], subject: S, on_begin: Callable[[str], None] = lambda name: None
) -> list[Finding]:
    """Run the checks; what each found. `on_begin` is told the name of each that begins."""
    findings: dict[str, Finding] = {}
    for check in checks:
        missing = [
            name for name in check.needs if name not in findings or findings[name].state in ("failed", "skipped")
        ]
        if missing:
            findings[check.name] = Finding(check.name, "skipped", f"it needs: {missing[0]}")
            continue
        on_begin(check.name)
        findings[check.name] = _finding(check, subject)
    return list(findings.values())


def require(checks: Iterable[Check[S]], subject: S) -> list[Finding]:
    """Run the checks; the doubts. Raises: what the first check that fails raises."""
    looked = [(check.name, check.look(subject)) for check in checks]
    return [Finding(name, "warning", found.detail) for name, found in looked if isinstance(found, Doubt)]


def first_failure(findings: Sequence[Finding]) -> Exit:
    """The exit code of the first check that failed; OK where none did."""
    return next((finding.exit_code for finding in findings if finding.state == "failed"), Exit.OK)


def _finding(check: Check[S], subject: S) -> Finding:
    try:
        found = check.look(subject)
    except (ClientError, TrainingError, OSError) as error:
        return Finding(check.name, "failed", sentence_of(error), exit_code(error))
    if isinstance(found, Doubt):
        return Finding(check.name, "warning", found.detail)
    return Finding(check.name, "passed", found)
