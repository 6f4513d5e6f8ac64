"""Which packages each part imports: a role is installed alone, and no process loads what its role has no use for."""

import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
wanted, left_out = (tuple(given.split(",")) for given in sys.argv[1:])
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


def imported(packages: str, left_out: str = "-") -> set[str]:
    """`sys.modules` after importing every module of some packages, but those whose names begin with one left out, afresh."""
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_ALL, packages, left_out]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("packages", "left_out", "foreign"),
    [
        ("flexlora_server", RAY, CLIENT_ONLY | {"ray"}),
        ("flexlora_client", "flexlora_client.training", SERVER_ONLY - {"jinja2"}),
        ("flexlora_client.cli", "-", SERVER_ONLY | COMPUTING | CLIENT_ONLY - {"httpx2", "flexlora_client"}),
        ("flexlora_shared", "-", SERVER_ONLY | CLIENT_ONLY | COMPUTING),
        (within(DATABASE), "-", WEB | COMPUTING),
        (within({"cli"}), "-", {"torch", "safetensors"}),
        (
            "flexlora_server",
            f"{RAY},{within(APPLICATION)}",
            {"fastapi", "starlette", "uvicorn", "flexlora_server.api.services"},
        ),
    ],
    ids=["server", "client", "operator", "shared", "database", "serving", "beside the application"],
)
def test_what_a_part_imports(packages: str, left_out: str, foreign: set[str]) -> None:
    modules = imported(packages, left_out)
    assert set(packages.split(",")) <= modules
    assert modules & foreign == set()
