"""Checks that the libraries of the extra `simulation` are installed."""

from flexlora_client.cli.agent_extra import LIBRARIES as OF_THE_AGENT
from flexlora_client.cli.agent_extra import require_extra

OF_THE_COORDINATOR = ("alembic", "fastapi", "ml_dtypes", "obstore", "psycopg", "pydantic_settings", "sqlalchemy")
LIBRARIES = (*OF_THE_AGENT, *OF_THE_COORDINATOR, "pandas", "yaml")


def require_simulation_extra() -> None:
    """Check that the libraries are installed, without importing them.

    Raises:
        BadInput: a library is missing.
    """
    require_extra("simulation", LIBRARIES)
