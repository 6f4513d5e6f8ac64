"""Which packages each part imports: a role is installed alone, and no process loads what its role has no use for."""

import subprocess
import sys

import grimp
import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
for given in zip(sys.argv[1::2], sys.argv[2::2]):
    wanted, left_out = (tuple(one.split(",")) for one in given)
    for name in wanted:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(getattr(package, "__path__", ()), package.__name__ + "."):
            if not module.name.startswith(left_out) and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    print(*sorted(sys.modules))
"""

WEB = {"fastapi", "starlette", "uvicorn", "jinja2"}
SERVER_ONLY = WEB | {"sqlalchemy", "alembic", "psycopg", "flexlora_server"}
CLIENT_ONLY = {"transformers", "peft", "accelerate", "httpx2", "pyarrow", "flexlora_client"}
COMPUTING = {"torch", "numpy", "safetensors"}

RAY = "flexlora_server.worker.executors.ray_cluster"  # needs an extra of its own
APPLICATION = {"api", "app", "cli", "console"}
DATABASE = ("database", "errors")


def within(names: set[str] | tuple[str, ...]) -> str:
    return ",".join(f"flexlora_server.{name}" for name in sorted(names))


Part = tuple[str, str, set[str]]  # packages, the beginnings of the names left out, what must not be imported
PARTS: dict[
    str, list[Part]
] = {  # each process imports one part after the other: what a part may not, none before it may
    "server": [
        ("flexlora_shared", "-", SERVER_ONLY | CLIENT_ONLY | COMPUTING),
        (within(DATABASE), "-", WEB | COMPUTING),
        (
            "flexlora_server",
            f"{RAY},{within(APPLICATION)}",
            {"fastapi", "starlette", "uvicorn", "flexlora_server.api.services"},
        ),
        ("flexlora_server", RAY, CLIENT_ONLY | {"ray"}),
    ],
    "client": [
        ("flexlora_client.cli", "-", SERVER_ONLY | COMPUTING | CLIENT_ONLY - {"httpx2", "flexlora_client"}),
    ],
    "agent": [("flexlora_client", "flexlora_client.training", SERVER_ONLY - {"jinja2"})],
    "serving": [(within({"cli"}), "-", {"torch", "safetensors"})],
}


SLOW = {"agent"}  # imports all that trains; what it names itself is looked at below


@pytest.mark.parametrize(
    "parts",
    [pytest.param(parts, id=name, marks=[pytest.mark.slow] if name in SLOW else []) for name, parts in PARTS.items()],
)
def test_what_a_part_imports(parts: list[Part]) -> None:
    asked = [word for packages, left_out, _ in parts for word in (packages, left_out)]
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_ALL, *asked]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for (packages, _, foreign), line in zip(parts, lines, strict=True):
        found = set(line.split())
        assert set(packages.split(",")) <= found
        assert found & foreign == set(), packages


def test_no_module_of_the_client_names_a_library_of_the_server() -> None:
    named = grimp.build_graph("flexlora_client", include_external_packages=True, cache_dir=None).modules
    assert named & {"torch", "typer"} == {"torch", "typer"}
    assert named & SERVER_ONLY - {"jinja2"} == set()
