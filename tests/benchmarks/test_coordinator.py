"""The coordinator's benchmark: what it sends is what it says, what fails is counted, and a tiny run of all of it."""

import base64
import hashlib
import json
from pathlib import Path

import pytest

from benchmarks import coordinator
from benchmarks.lib.load import transfers
from benchmarks.lib.load.load_comparison import Load, default_repeats
from benchmarks.lib.load.naive import STATUS, naive
from benchmarks.lib.load.payloads import PART, RANK, modules, payload
from benchmarks.lib.load.resource_sampler import ResourceUsage, SampledServer, milliseconds, sample_resources
from benchmarks.lib.load.transfers import Passed
from flexlora_shared.header import read_header
from flexlora_shared.layout import adapter_shapes
from flexlora_shared.messages.runs import ModuleSpec

MIB = 2**20


def test_every_client_sends_an_adapter_of_its_own_with_the_digests_it_claims(tmp_path: Path) -> None:
    updates = [payload(9).of(client) for client in range(3)]
    assert len({update.sha256 for update in updates}) == 3
    for update in updates:
        body = b"".join(update.pieces)
        assert (len(body), hashlib.sha256(body).hexdigest()) == (update.size, update.sha256)
        assert [part.offset for part in update.parts] == [0, PART]
        for part in update.parts:
            digest = hashlib.sha256(body[part.offset : part.offset + PART]).digest()
            assert part.digest == f"sha-256=:{base64.b64encode(digest).decode()}:"
    specs = [ModuleSpec.model_validate(module) for module in modules(9)]
    path = tmp_path / "update"
    path.write_bytes(body)
    with path.open("rb") as file:  # raises where it is no such adapter
        read_header(file, update.size, adapter_shapes(specs, (), {spec.name: RANK for spec in specs}))


def test_the_raw_rate_counts_what_it_wrote(tmp_path: Path) -> None:
    passed = transfers.raw(tmp_path, 1, 3)
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()} == {
        payload(1).of(client).sha256 for client in range(3)
    }
    assert passed.size == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize("query", ["durable=false", "durable=true"])
def test_the_naive_server_keeps_what_it_is_sent(query: str, tmp_path: Path) -> None:
    with naive(tmp_path) as server, sample_resources(SampledServer(server.pid, server.url, STATUS)) as seen:
        sent = transfers.upload_plainly(server.url, 1, 3, query)
        read = transfers.download(server.url, "/files/1", [""] * 2)
        missing = transfers.download(server.url, "/missing", [""] * 2)
    for client in range(3):
        assert hashlib.sha256((tmp_path / str(client)).read_bytes()).hexdigest() == payload(1).of(client).sha256
    assert (sent.size, read.size) == (3 * payload(1).of(0).size, 2 * payload(1).of(0).size)
    assert (sent.errors, read.errors, seen.errors) == ((), (), [])
    assert (missing.size, missing.errors) == (0, ("GET /missing: 404",) * 2)
    assert seen.calls
    assert seen.peak >= seen.idle > 0


def test_a_small_call_that_fails_is_an_error(tmp_path: Path) -> None:
    with naive(tmp_path) as server, sample_resources(SampledServer(server.pid, server.url, "/missing")) as seen:
        transfers.upload_plainly(server.url, 1, 1, "durable=false")
    assert {error.partition(" {")[0] for error in seen.errors} == {
        "GET /missing: 404"
    }  # as often as there was time for


def test_medians_peaks_and_percentiles_by_hand() -> None:
    load = Load(
        passed=[Passed(8 * MIB, seconds, 0.5, errors) for seconds, errors in ((1.0, ()), (2.0, ("cut",)), (4.0, ()))],
        ratios=[0.5, 0.9, 0.7],
        seen=[ResourceUsage(100.0, 60.0, peak, 80.0, 1.0, [0.001 * peak]) for peak in (110.0, 130.0, 120.0)],
    )
    figures = load.figures(clients=2)
    assert (figures["mib_per_s"], figures["ratio_raw"], figures["server_cpu"]) == (4.0, 0.7, 0.5)
    assert (figures["idle_mib"], figures["peak_mib"], figures["mib_per_transfer"]) == (100.0, 130.0, 15.0)
    assert (figures["status_p50_ms"], figures["status_p99_ms"]) == pytest.approx((120, 130))
    assert (figures["errors"], figures["error"]) == (1, "cut")


def test_a_percentile_of_a_hundred_calls_leaves_the_slowest_out() -> None:
    assert milliseconds([0.001 * call for call in range(1, 101)]) == pytest.approx((50.5, 99))


def test_quick_has_other_defaults_and_leaves_what_is_given() -> None:
    quick, full = coordinator.options(["--quick", "--clients", "2,3"]), coordinator.options([])
    assert (quick.clients, quick.mib, quick.agents) == ((2, 3), 8, 0)
    assert (full.clients, full.mib, full.agents) == ((1, 20, 200), 64, 10_000)
    assert [default_repeats(clients) for clients in full.clients] == [5, 3, 1]


@pytest.mark.slow
def test_a_tiny_run_measures_everything_without_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--clients", "1,3", "--mib", "9", "--repeats", "2", "--seconds", "0.2", "--agents", "0", "--no-flwr"]
    coordinator.main([*asked, "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    transfers_ = [line for line in lines if line["kind"] == "transfers"]
    loads = [(1, "ours", "upload"), (1, "ours", "download"), (1, "naive", "upload"), (1, "naive", "download")]
    assert [(line["clients"], line["server"], line["direction"]) for line in transfers_][:4] == loads
    assert {line["clients"] for line in transfers_} == {1, 3}
    changes = [(line["database"], line["change"]) for line in lines if line["kind"] == "state changes"]
    assert changes[:2] == [("SQLite", "declare"), ("SQLite", "announce, cancel")]
    assert all(line["errors"] == 0 and line.get("locked", 0) == 0 for line in lines), lines
    assert all(line["changes"] > 0 for line in lines if line["kind"] == "state changes")
