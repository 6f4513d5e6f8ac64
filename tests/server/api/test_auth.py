"""Authentication: which key opens which route, and a key file that is complete or absent."""

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flexlora_server.api import auth, services
from flexlora_server.api.auth import operator_key
from flexlora_server.api.services import LOOKUP_THREADS, POLL_LOOKUP_THREADS
from flexlora_server.database.schema import ApiKey
from flexlora_server.errors import StartupError
from flexlora_server.long_polling.key_cache import CachedKey, KeyCache
from flexlora_server.long_polling.waiting_room import WaitingRoom
from flexlora_server.settings import Settings
from tests.support.databases import ON_SQLITE
from tests.support.kit import OPERATOR_KEY, Api, Served


def basic(secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"x:{secret}".encode()).decode()}


def test_a_browsers_password_changes_nothing(coordinator: Served) -> None:
    """A browser sends it along with a form of anybody's page; only the status page takes it."""
    coordinator.run()
    stranger = Api(coordinator.http)
    stranger.problem("unauthenticated", "POST", "/v1/runs/run/cancel", headers=basic(OPERATOR_KEY))
    stranger.problem("unauthenticated", "GET", "/v1/runs", headers=basic(OPERATOR_KEY))
    assert stranger.call("GET", "/", headers=basic(OPERATOR_KEY)).status_code == 200


@pytest.mark.parametrize("secret", ["flc_\0_x", "flc_0123456789abcdef", "flc__x", "flt_0123456789abcdef_x", "é"])
def test_a_key_of_no_form_is_unknown(coordinator: Served, secret: str) -> None:
    stranger = Api(coordinator.http)
    assert stranger.call("GET", "/", headers=basic(secret)).status_code == 401
    stranger.problem("token-invalid", "POST", "/v1/clients", json={"token": secret.replace("\0", "0"), "name": "a"})


def test_a_new_key_ends_the_old_one_when_it_is_used(coordinator: Served) -> None:
    participant = coordinator.enroll()
    lost = participant.expect(201, "POST", "/v1/clients/me/keys")["api_key"]  # an answer that never arrived
    given = participant.expect(201, "POST", "/v1/clients/me/keys")["api_key"]
    participant.expect(200, "GET", "/v1/runs")  # the old key still opens
    Api(coordinator.http, given).expect(200, "GET", "/v1/runs")
    for ended in (participant.key, lost):
        Api(coordinator.http, ended).problem("unauthenticated", "GET", "/v1/runs")


def test_a_key_that_ended_while_it_was_asked_about_is_not_known() -> None:
    key_cache = KeyCache()
    state = key_cache.state
    assert key_cache.keep_only(frozenset()) == set()  # a key has ended since
    key_cache.add("secret", CachedKey("key", "client"), state)
    assert key_cache.find("secret") is None


def test_only_good_keys_stay_known() -> None:
    key_cache = KeyCache()
    for name in ("first", "second"):
        key_cache.add(f"secret of {name}", CachedKey(f"key of {name}", name), key_cache.state)
    assert key_cache.ids() == {"key of first", "key of second"}
    assert key_cache.keep_only({"key of first"}) == {"second"}
    assert key_cache.find("secret of first") == "first"
    assert key_cache.find("secret of second") is None
    assert key_cache.ids() == {"key of first"}


def test_a_known_key_opens_nothing_once_it_is_revoked(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even before the waiting room has polled: the database is asked before anything is given out."""
    participant, _, _ = coordinator.working()
    monkeypatch.setattr(WaitingRoom, "_publish", lambda self, result: None)
    coordinator.operator.expect(204, "DELETE", f"/v1/clients/{participant.client_id}")
    for wait in (0, 30):
        participant.problem("unauthenticated", "GET", "/v1/runs/run/task", params={"wait": wait})


@pytest.mark.parametrize(
    ("path", "threads"), [("/v1/runs", LOOKUP_THREADS), ("/v1/runs/run/task", POLL_LOOKUP_THREADS)]
)
def test_who_queues_behind_a_database_that_hangs_is_told_so(
    path: str, threads: int, coordinator: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator.run()
    participant, lookups, released = coordinator.enroll(), threading.Semaphore(0), threading.Event()
    participant.declare("run", 8)
    look_up = auth._find_key

    def hanging(*args: Any) -> ApiKey:
        lookups.release()
        released.wait()
        return look_up(*args)

    with ThreadPoolExecutor(threads) as others, monkeypatch.context() as patch:
        patch.setattr(auth, "_find_key", hanging)
        before = [others.submit(participant.call, "GET", path) for _ in range(threads)]
        try:
            for _ in before:
                assert lookups.acquire(timeout=60)
            with monkeypatch.context() as hasty:
                hasty.setattr(services, "MAX_THREAD_WAIT_S", 0.01)
                refused = participant.call("GET", path)
        finally:
            released.set()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["code"] == "unavailable"
        assert {done.result().status_code for done in before} <= {200, 204}
    assert participant.call("GET", path).status_code in {200, 204}


@ON_SQLITE  # it has one writer
def test_new_keys_that_wait_for_their_turn_to_write_hold_up_no_other(
    coordinator: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their first use ends the client's other keys."""
    known, writing = coordinator.enroll(), threading.Semaphore(0)
    known.expect(200, "GET", "/v1/runs")
    new = [coordinator.enroll(f"new-{number}") for number in range(LOOKUP_THREADS)]
    first_use = auth._mark_first_use

    def mark_first_use(*args: Any) -> None:
        writing.release()
        first_use(*args)

    monkeypatch.setattr(auth, "_mark_first_use", mark_first_use)
    with ThreadPoolExecutor(LOOKUP_THREADS) as others:
        with coordinator.store.transaction():
            waiting = [others.submit(participant.call, "GET", "/v1/runs") for participant in new]
            for _ in waiting:
                assert writing.acquire(timeout=60)
            known.expect(200, "GET", "/v1/runs")
            assert not any(done.done() for done in waiting)
        assert [done.result().status_code for done in waiting] == [200] * LOOKUP_THREADS


def test_the_operators_key_is_generated_once(tmp_path: Path) -> None:
    settings = Settings.model_validate({"data_dir": tmp_path})
    key, path = operator_key(settings)
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600
    assert operator_key(settings) == (key, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["operator.key"]
    path.write_text("")
    with pytest.raises(StartupError, match="holds no key; delete it"):
        operator_key(settings)


def test_a_rotated_key_ends_when_the_new_one_is_used(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    old = participant.key
    lost, fresh = (participant.expect(201, "POST", "/v1/clients/me/keys")["api_key"] for _ in range(2))
    participant.expect(200, "GET", "/v1/runs")
    participant.key = fresh
    participant.upload(task, data)
    for ended in (old, lost):
        participant.key = ended
        participant.problem("unauthenticated", "GET", "/v1/runs")


def test_the_operator_sees_when_a_key_was_issued(coordinator: Served) -> None:
    participant, _ = coordinator.enroll("one"), coordinator.enroll("two")
    coordinator.clock.advance(3600)
    participant.expect(201, "POST", "/v1/clients/me/keys")
    one, two = coordinator.operator.expect(200, "GET", "/v1/clients")["clients"]
    if one["name"] != "one":
        one, two = two, one
    assert two["key_issued_at"] == two["enrolled_at"]
    assert one["key_issued_at"] > one["enrolled_at"] == two["enrolled_at"]


def test_revoking_ends_every_key(coordinator: Served) -> None:
    participant = coordinator.enroll()
    unused = participant.expect(201, "POST", "/v1/clients/me/keys")["api_key"]
    coordinator.operator.expect(204, "DELETE", f"/v1/clients/{participant.client_id}")
    for ended in (participant.key, unused):
        participant.key = ended
        participant.problem("unauthenticated", "POST", "/v1/clients/me/keys")
