"""Earlier releases, by what they said (`recorded/`): their agents meet this coordinator, this agent meets their coordinators."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility.record import body, working
from tests.compatibility.scenario import live
from tests.support.kit import served_on_sqlite
from tests.support.misbehaving import Asked, Planned, answer, misbehaving

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.jsonl"))
GIVEN_OUT = {"token", "api_key", "client_id", "id", "upload_id"}  # what each coordinator gives out anew
MAPS = {"rank_pattern", "alpha_pattern", "metrics", "train_metrics", "context"}  # their keys are names, not fields
ONE = ["task", "downloaded", "training", "trained", "accepted"]

pytestmark = pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)


def exchanges(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(told: Any) -> bytes:
    """The bytes of a recorded body."""
    if told is None:
        return b""
    return base64.b64decode(told["base64"]) if "base64" in told else json.dumps(told).encode()


def lacking(old: Any, new: Any, place: str = "$") -> list[str]:
    """Where `new` lacks what a reader of `old` reads: a field, or its kind of value."""
    if isinstance(old, dict) and isinstance(new, dict):
        missing = [f"{place}.{key}" for key in old if key not in new]
        return missing + [it for key in old if key in new for it in lacking(old[key], new[key], f"{place}.{key}")]
    if isinstance(old, list) and isinstance(new, list):
        return [it for a, b in zip(old, new, strict=False) for it in lacking(a, b, f"{place}[]")]
    number = isinstance(old, int | float) and isinstance(new, int | float)
    empty = old is None or new is None  # a moment later a round may have begun, or ended
    return [] if number or empty or type(old) is type(new) else [place]


def learn(names: dict[str, str], old: Any, new: Any) -> None:
    """Remember what this coordinator gave out in the place of what the recorded one did."""
    for key in old if isinstance(old, dict) and isinstance(new, dict) else ():
        if key in GIVEN_OUT:
            names[old[key]] = new[key]
        else:
            learn(names, old[key], new.get(key))


def test_the_agents_of_a_release_are_served(path: Path, tmp_path: Path) -> None:
    """Every request is answered with the same status, and the answer has every field that its reader knows."""
    names: dict[str, str] = {}
    with served_on_sqlite(tmp_path) as site, working(site):
        for exchange in exchanges(path):
            text = json.dumps(exchange)
            for before, now in names.items():
                text = text.replace(before, now)
            method, target = (exchange := json.loads(text))["call"].split(" ")
            (headers, sent), (status, answered, told) = exchange["sent"], exchange["answered"]
            found = site.http.request(method, target, headers=headers, content=content(sent))
            assert found.status_code == status, f"{exchange['call']}: {found.text}"
            assert answered.keys() - found.headers.keys() == set(), exchange["call"]
            assert lacking(told, body(found.content)) == [], exchange["call"]
            learn(names, told, body(found.content))
    assert len(names) >= 5, "a token, a client, its keys, uploads"


def planned(exchange: Mapping[str, Any], newer: bool) -> Planned:
    """The recorded answer; `newer`, with a field that nobody knows in every object of it."""
    status, headers, told = exchange["answered"]
    is_json = told is not None and "base64" not in told
    data = json.dumps(extended(told)).encode() if newer and is_json else content(told)
    return answer(status, data, **{name.replace("-", "_"): value for name, value in headers.items()})


def extended(told: Any) -> Any:
    if isinstance(told, list):
        return [extended(item) for item in told]
    if not isinstance(told, dict):
        return told
    kept = {key: value if key in MAPS else extended(value) for key, value in told.items()}
    return {**kept, "of_tomorrow": {"is": ["not", "known"]}}


def request_of(call: str, sent: Any) -> tuple[str, Any]:
    """A request as far as a coordinator judges it: its address, and the fields of a message."""
    return call.partition("?wait=")[0], fields(sent) if isinstance(sent, dict) and "base64" not in sent else None


def fields(told: Any) -> Any:
    return {key: fields(value) for key, value in told.items()} if isinstance(told, dict) else None


def asked_of(asked: Asked) -> tuple[str, Any]:
    return request_of(f"{asked.method} {asked.path}", body(asked.body))


@pytest.mark.parametrize("newer", [False, True], ids=["as it was", "with fields nobody knows"])
def test_this_agent_understands_the_coordinators_of_a_release(path: Path, tmp_path: Path, newer: bool) -> None:
    """And sends no request with a field that such a coordinator does not know: it would refuse it."""
    recorded = exchanges(path)
    with misbehaving(*(planned(exchange, newer) for exchange in recorded)) as server:
        kinds = live(server.url, tmp_path)
        assert server.plan == []
    assert kinds == ["declared", *ONE * 2, "completed"]
    assert [asked_of(asked) for asked in server.asked] == [
        request_of(exchange["call"], exchange["sent"][1]) for exchange in recorded
    ]
