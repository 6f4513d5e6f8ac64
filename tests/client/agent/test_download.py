"""Downloads over a line that cuts, from a coordinator that sends wrong bytes."""

import hashlib
import json
from pathlib import Path

import pytest

from flexlora_client.agent.download import MAX_DAMAGED_ATTEMPTS, download
from flexlora_client.agent.slice_cache import CachedSlice, SliceCache, SliceRequest, check_config
from flexlora_client.errors import Corrupted, Refused, Unreachable
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_shared.problems import Code
from tests.support.connecting import Waits, connect
from tests.support.kit import encode, tensors
from tests.support.misbehaving import Misbehaving, Planned, answer, cut, misbehaving, problem
from tests.support.served_slices import DATA, ETAG, RUN, SHA256, config, rest, slice_request, whole

ADAPTER = "GET /v1/runs/run/rounds/0/adapter"
ADAPTER_CONFIG = "GET /v1/runs/run/rounds/0/adapter-config"


def fetch(server: Misbehaving, folder: Path, request: SliceRequest, attempts: int | None = 5) -> CachedSlice:
    seen: list[tuple[int, int]] = []
    with connect(server.url, Waits(), attempts) as api:
        fetched = download(api, SliceCache(folder), request, lambda done, total: seen.append((done, total)))
    assert (fetched.folder / ADAPTER_FILE).read_bytes() == DATA
    assert seen == sorted(seen)
    assert not seen or seen[-1] == (len(DATA), len(DATA))
    return fetched


def test_a_slice_arrives_as_a_peft_folder(tmp_path: Path) -> None:
    with misbehaving(whole(), config()) as server:
        fetched = fetch(server, tmp_path, slice_request())
        assert server.calls == [ADAPTER, ADAPTER_CONFIG]
    assert fetched == CachedSlice(tmp_path / SHA256, SHA256, len(DATA), len(DATA))
    assert json.loads((fetched.folder / CONFIG_FILE).read_bytes())["r"] == 4
    assert [path.name for path in tmp_path.iterdir()] == [SHA256]


def test_a_slice_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    with misbehaving(whole(), config()) as server:
        fetch(server, tmp_path, slice_request())
        assert fetch(server, tmp_path, slice_request()).fetched == 0
        assert len(server.asked) == 2


def test_a_kept_slice_of_unknown_digest_costs_a_conditional_request(tmp_path: Path) -> None:
    with misbehaving(whole(), config(), answer(304, ETag=ETAG)) as server:
        fetch(server, tmp_path, slice_request(known=False))
        assert fetch(server, tmp_path, slice_request(known=False)).fetched == 0
        assert server.asked[2].headers["if-none-match"] == ETAG


@pytest.mark.parametrize("known", [True, False])
def test_after_a_cut_only_the_rest_is_fetched(tmp_path: Path, known: bool) -> None:
    with misbehaving(cut(DATA, after=100, ETag=ETAG), rest(100), config()) as server:
        fetched = fetch(server, tmp_path, slice_request(known=known))
        assert server.asked[1].headers["range"] == "bytes=100-"
        assert server.asked[1].headers["if-range"] == ETAG
    assert fetched.fetched == len(DATA)


def test_an_agent_started_anew_goes_on_where_the_last_was_killed(tmp_path: Path) -> None:
    partial = tmp_path / f"{SHA256}.partial"
    partial.mkdir()
    (partial / ADAPTER_FILE).write_bytes(DATA[:200])
    with misbehaving(rest(200), config()) as server:
        assert fetch(server, tmp_path, slice_request()).fetched == len(DATA) - 200
        assert server.asked[0].headers["range"] == "bytes=200-"


def test_an_agent_killed_before_the_rename_fetches_only_the_configuration(tmp_path: Path) -> None:
    partial = tmp_path / f"{SHA256}.partial"
    partial.mkdir()
    (partial / ADAPTER_FILE).write_bytes(DATA)
    with misbehaving(config()) as server:
        assert fetch(server, tmp_path, slice_request()).fetched == 0
        assert server.calls == [ADAPTER_CONFIG]


def test_a_coordinator_that_ignores_ranges_starts_over(tmp_path: Path) -> None:
    with misbehaving(cut(DATA, after=100, ETag=ETAG), whole(), config()) as server:
        assert fetch(server, tmp_path, slice_request()).fetched == len(DATA) + 100


def test_a_range_beyond_the_file_starts_over(tmp_path: Path) -> None:
    partial = tmp_path / f"{SHA256}.partial"
    partial.mkdir()
    (partial / ADAPTER_FILE).write_bytes(DATA + b"too much")
    with misbehaving(problem(Code.RANGE_NOT_SATISFIABLE), whole(), config()) as server:
        assert fetch(server, tmp_path, slice_request()).fetched == len(DATA)
        assert "range" not in server.asked[1].headers


def test_many_cuts_with_progress_outlast_the_attempts(tmp_path: Path) -> None:
    cuts: list[Planned] = [cut(DATA, after=50, ETag=ETAG)]
    cuts += [cut(DATA[n:], after=50, status=206, ETag=ETAG) for n in range(50, 500, 50)]
    with misbehaving(*cuts, rest(500), config()) as server:
        assert fetch(server, tmp_path, slice_request(), attempts=2).fetched == len(DATA)


def test_wrong_bytes_are_thrown_away_and_fetched_again(tmp_path: Path) -> None:
    wrong = bytes([DATA[-1] ^ 1])
    with misbehaving(answer(200, DATA[:-1] + wrong, ETag=ETAG), whole(), config()) as server:
        fetch(server, tmp_path, slice_request())
        assert "range" not in server.asked[1].headers


def test_a_kept_slice_that_rotted_is_fetched_again(tmp_path: Path) -> None:
    with misbehaving(whole(), config(), whole(), config()) as server:
        fetched = fetch(server, tmp_path, slice_request())
        (fetched.folder / ADAPTER_FILE).write_bytes(DATA[:-1] + b"?")
        assert fetch(server, tmp_path, slice_request()).fetched == len(DATA)


def refused_download(folder: Path, *plan: Planned, known: bool = True, attempts: int | None = None) -> Exception:
    with misbehaving(*plan) as server, connect(server.url, Waits(), attempts) as api:
        with pytest.raises((Corrupted, Refused, Unreachable)) as caught:
            download(api, SliceCache(folder), slice_request(known=known), lambda done, total: None)
        assert server.plan == []
    assert not any(path.name == SHA256 for path in folder.iterdir())
    return caught.value


def test_even_a_patient_agent_gives_up_on_bytes_that_stay_wrong(tmp_path: Path) -> None:
    other = b"x" * len(DATA)
    error = refused_download(tmp_path, *[answer(200, other, ETag=ETAG)] * MAX_DAMAGED_ATTEMPTS)
    assert f"instead of {SHA256}" in str(error)


def test_another_slice_than_the_task_announced(tmp_path: Path) -> None:
    other = answer(200, DATA, ETag=f'"{"0" * 64}"')
    assert "the task announced" in str(refused_download(tmp_path, *[other] * MAX_DAMAGED_ATTEMPTS))


def test_an_endless_slice_is_cut_off(tmp_path: Path) -> None:
    endless = answer(200, DATA + bytes(100_000), ETag=ETAG)
    assert "longer than" in str(refused_download(tmp_path, *[endless] * MAX_DAMAGED_ATTEMPTS))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff" * 64, "the header claims"),
        (DATA[:8] + b"!" + DATA[9:], "the header is not"),
        (DATA + b"\0", "the tensors take"),
        (encode(tensors(RUN, 2)), "shape"),
    ],
)
def test_a_slice_that_is_no_adapter_of_the_run(tmp_path: Path, data: bytes, reason: str) -> None:
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    bad = answer(200, data, ETag=etag)
    error = refused_download(tmp_path, *[bad] * MAX_DAMAGED_ATTEMPTS, known=False)
    assert "no adapter of this run" in str(error)
    assert reason in str(error)


def test_a_slice_without_a_digest(tmp_path: Path) -> None:
    assert "no digest" in str(refused_download(tmp_path, answer(200, DATA), known=False))


def test_a_round_that_published_nothing(tmp_path: Path) -> None:
    error = refused_download(tmp_path, problem(Code.ADAPTER_NOT_PUBLISHED))
    assert isinstance(error, Refused)
    assert error.code is Code.ADAPTER_NOT_PUBLISHED


@pytest.mark.parametrize(
    "told",
    [
        {"lora_alpha": 4.0},
        {"r": 2},
        {"use_rslora": True},
        {"peft_type": "IA3"},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 1.0}},
    ],
)
def test_a_configuration_that_would_scale_wrongly(tmp_path: Path, told: dict[str, object]) -> None:
    plan = [whole(), *[config(**told)] * MAX_DAMAGED_ATTEMPTS]
    assert "does not agree" in str(refused_download(tmp_path, *plan))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"peft_type": "LORA", "r": null}', b"\xff"])
def test_a_configuration_that_is_none(body: bytes) -> None:
    with pytest.raises(Corrupted, match="adapter_config"):
        check_config(body, slice_request())


def test_nested_patterns_are_compared_module_by_module() -> None:
    request = SliceRequest("/a", "/b", RUN, 4, {"q_proj": 8, "layers.0.q_proj": 4})
    right = {"q_proj": 16.0, "layers.0.q_proj": 8.0}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8.0, "rank_pattern": dict(request.rank_pattern)}
    check_config(json.dumps(config | {"alpha_pattern": right}).encode(), request)
    with pytest.raises(Corrupted, match="does not agree"):
        check_config(json.dumps(config | {"alpha_pattern": {"q_proj": 16.0}}).encode(), request)


def test_only_the_current_slice_is_kept(tmp_path: Path) -> None:
    slices = SliceCache(tmp_path)
    for name in ("a" * 64, "b" * 64, "b" * 64 + ".partial", "c" * 64 + ".partial"):
        (tmp_path / name).mkdir()
    slices.keep_only("b" * 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b" * 64, "b" * 64 + ".partial"]
