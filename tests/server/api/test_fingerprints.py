"""A run that names its base model takes nobody with another one, and nobody whose agent cannot tell."""

from typing import Any

import pytest

from tests.support.databases import MOSTLY_ON_SQLITE
from tests.support.kit import Served

pytestmark = MOSTLY_ON_SQLITE

RUNS = {"weights": "a" * 64, "tokenizer": "b" * 64}


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (RUNS | {"weights": "c" * 64}, "not the run's tiny at revision 5f3a: other weights; load"),
        (RUNS | {"tokenizer": "c" * 64}, ": other tokenizer; load"),
        ({"weights": "c" * 64, "tokenizer": "c" * 64}, ": other weights and other tokenizer; load"),
        (None, "yours does not, update it"),
    ],
)
def test_another_base_model_is_refused(coordinator: Served, found: dict[str, str] | None, sentence: str) -> None:
    model = {"id": "tiny", "revision": "5f3a", "fingerprint": RUNS}
    coordinator.run(model=model)
    participant = coordinator.enroll()
    body: dict[str, Any] = {"rank": 4, "examples": 10} | ({} if found is None else {"fingerprint": found})
    told = participant.problem("model-mismatch", "PUT", "/v1/runs/run/declaration", json=body)
    assert sentence in told["detail"]
    participant.expect(200, "PUT", "/v1/runs/run/declaration", json=body | {"fingerprint": RUNS})


def test_a_run_that_names_no_model_takes_any(coordinator: Served) -> None:
    coordinator.run()
    participant = coordinator.enroll()
    for fingerprint in (RUNS, None):
        body = {"rank": 4, "examples": 10, "fingerprint": fingerprint}
        participant.expect(200, "PUT", "/v1/runs/run/declaration", json=body)
