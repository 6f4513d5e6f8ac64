"""Neither role imports the other's packages, and the wire protocol imports neither role nor torch."""

import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
left_out = tuple(sys.argv[2].split(","))
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.startswith(left_out) and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""

SERVER_ONLY = {"fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "psycopg", "flexlora_server"}
CLIENT_ONLY = {"transformers", "peft", "accelerate", "httpx2", "pyarrow", "flexlora_client"}


def imported(package: str, left_out: str = "-") -> set[str]:
    """The top-level names in `sys.modules` after importing every module of a package in a fresh interpreter."""
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_ALL, package, left_out]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("package", "left_out", "foreign"),
    [
        ("flexlora_server", "flexlora_server.ray_pool", CLIENT_ONLY | {"ray"}),  # which needs an extra of its own
        ("flexlora_client", "flexlora_client.training", SERVER_ONLY),
        ("flexlora_shared", "-", SERVER_ONLY | CLIENT_ONLY | {"torch", "numpy", "safetensors"}),
    ],
)
def test_a_role_alone(package: str, left_out: str, foreign: set[str]) -> None:
    found = imported(package, left_out)
    assert package in found
    assert found & foreign == set()
