"""The OpenAPI document explains every field of every message."""

from pathlib import Path

from flexlora_server.app import create_app
from flexlora_server.database.transactions import Store
from flexlora_server.settings import Settings
from tests.support.kit import OPERATOR_KEY

FRAMEWORK = {"HTTPValidationError", "ValidationError"}  # FastAPI's own


def test_every_field_has_a_description(tmp_path: Path) -> None:
    settings = Settings.model_validate({"data_dir": tmp_path, "operator_key": OPERATOR_KEY})
    store = Store(settings.url)
    store.migrate()
    schemas = create_app(settings, store).openapi()["components"]["schemas"]
    store.close()
    fields = {
        f"{name}.{field}": definition.get("description")
        for name, schema in schemas.items()
        if name not in FRAMEWORK
        for field, definition in schema.get("properties", {}).items()
    }
    assert {"RunSpec.rounds", "Task.deadline", "RoundSummary.state", "NormClip.bound"} <= set(fields)
    assert [field for field, description in fields.items() if not description] == []
