"""What several files say alike: the version, the tools' versions, the scripts that must pass."""

import importlib.metadata
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def version() -> str:
    """The one that pyproject.toml states."""
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return found


def commands(path: Path) -> list[list[str]]:
    """The lines of a shell script that call one of the project's scripts, as words."""
    lines = map(str.strip, path.read_text().splitlines())
    return [shlex.split(line) for line in lines if line.startswith("scripts/")]


def steps() -> list[list[str]]:
    """The same of every workflow, with each value of a matrix that names a script."""
    found = []
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            lines = [line for step in job["steps"] for line in step.get("run", "").splitlines()]
            lines += job.get("strategy", {}).get("matrix", {}).get("script", [])
            found += [shlex.split(line) for line in lines]
    return found


def contains(words: list[str], part: list[str]) -> bool:
    """Whether `part` stands in `words`, in one piece."""
    return any(words[at : at + len(part)] == part for at in range(len(words)))


def test_the_installed_version_is_the_projects(version: str) -> None:
    assert importlib.metadata.version("flexlora") == version, "run scripts/setup"


def test_the_changelog_and_the_citation_are_of_this_version(version: str) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d.*?)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert released[0] == (version, citation["date-released"].isoformat())
    assert citation["version"] == version


def test_every_version_of_the_changelog_is_a_link() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.*?)\]", changelog, re.MULTILINE)
    assert re.findall(r"^\[(.*?)\]: https://", changelog, re.MULTILINE) == headings
    assert headings[0] == "Unreleased"


def test_one_version_of_ruff() -> None:
    hooks: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    [rev] = [hook["rev"] for hook in hooks if hook["repo"].endswith("/ruff-pre-commit")]
    assert f"ruff=={rev.removeprefix('v')}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_workflows_call_all_that_must_hold_before_a_change_lands() -> None:
    required = commands(ROOT / ".ci/run")
    assert ["scripts/test"] in required
    assert [words for words in required if not any(contains(step, words) for step in steps())] == []


def test_the_scripts_that_workflows_call_can_be_run() -> None:
    named = {word for step in steps() for word in step if word.startswith("scripts/")}
    assert {"scripts/test", "scripts/test-compose"} <= named
    assert [name for name in sorted(named) if not os.access(ROOT / name, os.X_OK)] == []


def test_tests_run_on_every_python_that_the_project_claims() -> None:
    checks = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    claimed = [line.rpartition(" ")[2] for line in classifiers if re.search(r":: 3\.\d+$", line)]
    assert checks["jobs"]["test"]["strategy"]["matrix"]["python"] == claimed
