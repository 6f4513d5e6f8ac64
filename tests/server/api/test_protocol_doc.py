"""The documents say what the code does: calls, problems and settings are compared with their tables."""

import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic_core import PydanticUndefined

from flexlora_server.aggregation.strategies.registry import strategies, strategy
from flexlora_server.app import create_app
from flexlora_server.database.transactions import Store
from flexlora_server.errors import UnsupportedRun
from flexlora_server.settings import Settings
from flexlora_shared.messages.tasks import Trainable
from flexlora_shared.problems import PROBLEMS, Code
from tests.support.kit import OPERATOR_KEY

DOCS = Path(__file__).parents[3] / "docs"


def table(document: str, heading: str) -> list[list[str]]:
    """The rows of the table with this header row, cell by cell."""
    lines = (DOCS / document).read_text().splitlines()
    start = lines.index(heading) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


@pytest.fixture
def application(tmp_path: Path) -> Iterator[FastAPI]:
    settings = Settings.model_validate({"data_dir": tmp_path, "operator_key": OPERATOR_KEY})
    store = Store(settings.url)
    store.migrate()
    yield create_app(settings, store)
    store.close()


def routes(application: FastAPI) -> dict[tuple[str, str], APIRoute]:
    routes: dict[tuple[str, str], APIRoute] = {}

    def collect(owner: Any) -> None:
        for route in owner.routes:
            if isinstance(route, APIRoute):
                routes.update({(method, route.path): route for method in route.methods or ()})
            elif hasattr(route, "original_router"):
                collect(route.original_router)

    collect(application)
    return routes


def documented() -> dict[tuple[str, str], list[str]]:
    rows = table("protocol.md", "| method | address | key | answer |")
    return {(row[0], row[1].strip("`").partition("?")[0]): row for row in rows}


def test_every_route_is_documented_and_no_other(application: FastAPI) -> None:
    assert set(documented()) == set(routes(application))


def test_the_documented_status_is_the_routes(application: FastAPI) -> None:
    for call, route in routes(application).items():
        match = re.match(r"\d{3}", documented()[call][3])
        assert int(match.group() if match else 200) == (route.status_code or 200), call


def test_the_documented_messages_are_the_routes(application: FastAPI) -> None:
    """`Request` -> `Answer` of a row are the models of the route's body and response in OpenAPI."""
    paths = application.openapi()["paths"]
    for (method, path), row in documented().items():
        match = re.search(r"`(\w+)` -> `(\w+)`", row[3])
        if match is None:
            continue
        operation = paths[path][method.lower()]
        body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        answers = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
        answer = answers[0]["content"]["application/json"]["schema"]["$ref"]
        assert (body.rpartition("/")[2], answer.rpartition("/")[2]) == match.groups(), (method, path)


def test_the_problem_table_is_the_codes() -> None:
    rows = table("protocol.md", "| code | status | title |")
    assert {row[0].strip("`"): (int(row[1]), row[2]) for row in rows} == {
        str(code): (problem.status, problem.title) for code, problem in PROBLEMS.items()
    }
    assert set(PROBLEMS) == set(Code)


def test_the_strategy_table_is_the_built_in_strategies() -> None:
    rows = table("operating.md", "| strategy | what it does | ranks | alphas | source |")
    documented_ranks = {row[0].strip("`"): row[2] for row in rows}
    rules = map(strategy, strategies())
    assert documented_ranks.keys() == {rule.name for rule in rules if rule.module.startswith("flexlora_server.")}
    for name, ranks in documented_ranks.items():
        with pytest.raises(UnsupportedRun) if ranks == "one" else nullcontext():
            strategy(name).check([2, 4])


def test_the_table_of_what_is_trainable_is_the_messages() -> None:
    rows = table("protocol.md", "| `trainable` | what is trained | what is uploaded |")
    assert tuple(row[0].strip("`") for row in rows) == get_args(Trainable)


def test_the_settings_table_is_the_settings() -> None:
    """A row a setting: its environment variable, its default (unset for none) and its description."""
    rows = table("operating.md", "| variable | default | meaning |")
    assert {row[0].strip("`"): (row[1].strip("`"), row[2].replace("`", "")) for row in rows} == {
        f"FLEXLORA_{name.upper()}": (_shown(field.default), (field.description or "").replace("`", ""))
        for name, field in Settings.model_fields.items()
    }


def _shown(default: Any) -> str:
    assert default is not PydanticUndefined, "every setting has a default"
    return "unset" if default is None else str(default)


def test_openapi_documents_only_known_problems(application: FastAPI) -> None:
    """Every answer of 400 and above is a problem with examples whose codes have that status."""
    for path, operations in application.openapi()["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and "application/problem+json" in answer.get("content", {}):
                    examples = answer["content"]["application/problem+json"]["examples"]
                    assert {PROBLEMS[Code(code)].status for code in examples} == {int(status)}, (method, path)
