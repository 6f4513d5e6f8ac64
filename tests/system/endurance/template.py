"""Where every run begins: a folder with everybody enrolled, so that identities, data and seeds are the same; and the run."""

from pathlib import Path
from typing import Any

import httpx2

from demo.cluster import cluster
from flexlora_client import credentials
from flexlora_client.credentials import Identity
from tests.support.kit import Api, spec
from tests.system.conftest import write_questions

RUN = "endurance"
AGENTS = {"tiny": 4, "small": 8, "middle": 16, "large": 64}  # ranks
MODULE = {"out_features": 384, "in_features": 384}


def enroll_everybody(folder: Path) -> Path:
    """A stopped coordinator's folder with its participants enrolled: what every place begins as a copy of."""
    with cluster(folder, FLEXLORA_WORKERS="0") as made, httpx2.Client(base_url=made.url, timeout=60) as http:
        for name in AGENTS:
            token = Api(http, made.operator_key).expect(201, "POST", "/v1/enrolment-tokens", json={})["token"]
            given = Api(http).expect(201, "POST", "/v1/clients", json={"token": token, "name": name})
            credentials.save(folder / name, Identity(url=made.url, **given))
            write_questions(folder / name / "data.jsonl", name)
    return folder


def definition(count: int) -> dict[str, Any]:
    """A run of so many rounds that everybody takes part in: a deadline that nobody misses."""
    modules = [{"name": f"layers.{number}.q_proj", **MODULE} for number in range(8)]
    everybody = {"ranks": sorted(AGENTS.values()), "min_clients": len(AGENTS), "min_updates": len(AGENTS)}
    return spec(RUN, modules=modules, rounds=count, round_timeout=86_400.0, **everybody)
