"""`doctor`, and the same checks at the start of `run`: what would fail in a round is found before anybody counts on it."""

import json
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from flexlora_client.agent.checks.model_checks import AGENTS_TRAIN, MAY_HOLD_MORE
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.errors import Exit
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_shared.messages.runs import ExtraTensor, RunSpec, TrainingSpec
from tests.support.command import Result, call
from tests.support.kit import Served
from tests.support.tiny_models import make_llama, make_run

ALL = (
    *("address", "tls", "clock", "key", "run", "rank", "options", "folder", "data"),
    *("disk", "memory", "trainer", "fingerprint", "definition", "model", "tokenizer", "template", "encoding"),
    *("rank-auto", "speed"),
)
Findings = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def spec(llama: Path) -> RunSpec:
    return make_run(llama, training=TrainingSpec(batch_size=2, max_length=32))


@pytest.fixture
def home(site: Served, tmp_path: Path) -> dict[str, str]:
    """The environment of an enrolled participant."""
    env = {"FLEXLORA_HOME": str(tmp_path / "home")}
    token = site.operator.expect(201, "POST", "/v1/enrolment-tokens", json={})["token"]
    assert call("enroll", site.url, "--token", token, "--name", "site a", env=env).code == Exit.OK
    return env


def define(site: Served, spec: RunSpec, *, start: bool = True, **changes: Any) -> None:
    """A run named `test`."""
    site.operator.expect(201, "POST", "/v1/runs", json=spec.model_dump(mode="json") | changes)
    if start:
        site.operator.expect(200, "POST", "/v1/runs/test/start")
        site.work()


def rows(path: Path, completions: Sequence[str]) -> Path:
    """A data file of questions with these answers."""
    path.write_text("".join(json.dumps({"prompt": f"{n}?", "completion": c}) + "\n" for n, c in enumerate(completions)))
    return path


def asked(command: str, env: dict[str, str], data: Path, *more: str | Path, rank: int | str = 4) -> Result:
    given = ("test", "--rank", str(rank), "--data", data, "--heldout-fraction", "0", "--threads", "1")
    return call(command, *given, *more, env=env)


def diagnosed(env: dict[str, str], data: Path, *more: str | Path, rank: int | str = 4) -> tuple[int, Findings]:
    """The exit code, and what each check found."""
    result = asked("doctor", env, data, "--json", *more, rank=rank)
    assert result.json["exit_code"] == result.code
    found = {check["check"]: check for check in result.json["checks"]}
    assert tuple(found) == ALL
    return result.code, found


def check_failed(found: Findings, name: str, detail: str) -> None:
    """The check failed for this reason, and it alone."""
    assert [one for one, check in found.items() if check["state"] == "failed"] == [name]
    assert detail in found[name]["detail"]


def participants(site: Served) -> int:
    declared: int = site.operator.expect(200, "GET", "/v1/runs/test")["status"]["participants"]
    return declared


def test_all_is_well_and_nothing_is_declared(site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path) -> None:
    define(site, spec)
    data = rows(tmp_path / "data.jsonl", ["yes"] * 12)
    code, found = diagnosed(home, data)
    assert {name: check["state"] for name, check in found.items()} == dict.fromkeys(ALL, "passed"), found
    assert code == Exit.OK
    assert "12 examples" in found["data"]["detail"]
    assert "examples a second" in found["speed"]["detail"]
    shown = asked("doctor", home, data)
    assert shown.code == Exit.OK
    lines = shown.out.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [[name, "passed"] for name in ALL]
    assert participants(site) == 0
    assert sorted(path.name for path in Path(home["FLEXLORA_HOME"]).iterdir()) == ["credentials.json"]


def test_a_wrong_model_is_found_before_anybody_counts_on_it(
    site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path
) -> None:
    smaller = spec.model_copy(update={"modules": (spec.modules[0].model_copy(update={"out_features": 31}),)})
    define(site, smaller)
    data = rows(tmp_path / "data.jsonl", ["yes"])
    code, found = diagnosed(home, data)
    check_failed(found, "definition", spec.modules[0].name)
    assert code == Exit.BAD_INPUT
    skipped = ("model", "tokenizer", "template", "encoding", "rank-auto", "speed")
    assert {found[name]["state"] for name in skipped} == {"skipped"}
    result = asked("run", home, data, "--json")
    assert result.code == Exit.BAD_INPUT
    assert found["definition"]["detail"] in result.err
    assert participants(site) == 0


def test_shapes_of_gigabytes_take_no_memory(site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path) -> None:
    """A slice of rank 8 of this layer would have a gigabyte."""
    giant = spec.modules[0].model_copy(update={"out_features": 2**24, "in_features": 2**24})
    define(site, spec.model_copy(update={"modules": (giant,)}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, found = diagnosed(home, rows(tmp_path / "data.jsonl", ["yes"]), rank=8)
    assert "or of another size" in found["definition"]["detail"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024  # KiB


def test_embeddings_are_trained_in_full_only_where_the_participant_agrees(
    site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path
) -> None:
    """Their rows that change are the words of its data."""
    embeddings = ExtraTensor(name="model.embed_tokens.weight", shape=(300, 32))
    define(site, spec.model_copy(update={"extra": (embeddings,)}))
    data = rows(tmp_path / "data.jsonl", ["yes"])
    code, found = diagnosed(home, data)
    check_failed(found, "definition", "trains model.embed_tokens.weight in full, not only a classifier's head")
    assert code == Exit.NOT_AGREED
    assert found["definition"]["detail"] in asked("run", home, data).err
    assert participants(site) == 0
    for agreed in (("--allow-extra", embeddings.name), ("--keep-local", "head")):
        code, found = diagnosed(home, data, *agreed)
        assert (code, found["definition"]["state"]) == (Exit.OK, "passed"), found


def test_what_is_doubtful_is_told_and_run_goes_on(
    site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path
) -> None:
    define(site, spec, start=False, round_timeout=1e-6)
    data = rows(tmp_path / "data.jsonl", ["yes " * 40, "no " * 40])
    code, found = diagnosed(home, data)
    assert code == Exit.OK
    doubts = {name: check["detail"] for name, check in found.items() if check["state"] == "warning"}
    assert list(doubts) == ["run", "encoding", "speed"]
    assert "is DRAFT; its operator has to start it" in doubts["run"]
    assert "100.0% of 2 examples are cut at 32 tokens" in doubts["encoding"]
    assert "rounds end after 0.0 minutes" in doubts["speed"]


@pytest.mark.parametrize(
    ("change", "check", "detail"),
    [
        ({"rank": 3}, "rank", "allows the ranks 2 4 8, not 3"),
        ({"more": ["--rank-pattern", "q_proj=0"]}, "rank", "rank_pattern"),
        ({"more": ["--device", "abacus"]}, "data", "no device"),
        ({"row": '{"prompt": 1}'}, "data", "line 1"),
        ({"template": True}, "template", "has none"),
        ({"rank": "auto", "more": ["--rank-pattern", "q_proj=8"]}, "options", "beside --rank-pattern"),
        ({"more": ["--device", "cpu,cpu"]}, "options", "several devices must be different GPUs"),
        pytest.param(
            {"more": ["--device", "cpu,cpu", "--trainer", "tests.support.trainers:Nudge"]},
            "options",
            "give one beside --trainer",
            marks=pytest.mark.slow,
        ),
        ({"more": ["--keep-local", "head"]}, "options", "trains no tensors beside LoRA"),
        (
            {"strategy": {"strategy": "flora"}, "more": ["--trainer", "tests.support.trainers:Nudge"]},
            "trainer",
            "trainable 'fresh'",
        ),
    ],
)
def test_what_fails_fails_run_too_before_it_declares(
    site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path, change: dict[str, Any], check: str, detail: str
) -> None:
    training = spec.training.model_copy(update={"prompt_format": "chat-template"})
    define(
        site, spec.model_copy(update={"training": training} if change.get("template") else change.get("strategy", {}))
    )
    data = rows(tmp_path / "data.jsonl", ["yes"])
    if "row" in change:
        data.write_text(change["row"])
    code, found = diagnosed(home, data, *change.get("more", ()), rank=change.get("rank", 4))
    check_failed(found, check, detail)
    result = asked("run", home, data, *change.get("more", ()), rank=change.get("rank", 4))
    assert (result.code, detail in result.err) == (code, True)
    assert participants(site) == 0


def test_no_second_agent_and_no_figures_without_their_package(
    site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(site, spec)
    working = WorkFolder(Path(home["FLEXLORA_HOME"]), "test")
    working.lock()
    try:
        _, found = diagnosed(home, tmp_path / "no data")
    finally:
        working.release()
    assert found["folder"]["state"] == "failed"
    assert "another agent is at work" in found["folder"]["detail"]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    _, found = diagnosed(home, tmp_path / "no data", "--track", "tensorboard")
    assert found["folder"]["state"] == "passed"
    assert "--track tensorboard needs a package" in found["options"]["detail"]


def test_the_rank_is_measured_and_packed_sequences_are_counted(
    site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path
) -> None:
    training = TrainingSpec(batch_size=2, max_length=32, packing=True)
    define(site, spec.model_copy(update={"training": training}))
    data = tmp_path / "data.jsonl"
    data.write_text(12 * (json.dumps({"text": "abcdef"}) + "\n"))
    code, found = diagnosed(home, data, rank="auto")
    assert code == Exit.OK, found
    assert found["rank-auto"]["detail"].startswith("rank 8 is the largest that fits\n")
    assert "chosen" in found["rank-auto"]["detail"]
    assert "packed sequences a second" in found["speed"]["detail"]
    assert (
        "in a round of 2 steps" in found["speed"]["detail"]
    )  # 12 texts of 8 tokens make 3 sequences of 32, not 6 batches


def test_what_each_strategy_trains_is_as_the_coordinator_says() -> None:
    for name, kinds in AGENTS_TRAIN.items():
        assert {strategy(name).trained_in(round_) for round_ in (1, 2, 3, 4)} == set(kinds)
        assert strategy(name).trained_in(1) == kinds[0]
    assert {name for name in AGENTS_TRAIN if strategy(name).takes_prefix} == MAY_HOLD_MORE


def test_what_is_held_beside_what_is_trained(site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path) -> None:
    define(site, spec, strategy="flexlora-residual")
    data = rows(tmp_path / "data.jsonl", ["yes", "no"])
    code, found = diagnosed(home, data, "--hold-rank", "8", rank=2)
    assert code == Exit.OK, found
    assert found["rank"]["detail"].startswith("2, holding 8, of ")
    assert found["trainer"]["detail"] == "trains what --hold-rank asks for: prefix"
    assert "examples a second" in found["speed"]["detail"]
    _, found = diagnosed(home, data, "--hold-rank", "2")
    check_failed(found, "rank", "--hold-rank 2 must be one of the run's ranks 2 4 8, and at least --rank 4")


def test_a_run_in_which_nothing_more_can_be_held(
    site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path
) -> None:
    define(site, spec)
    _, found = diagnosed(home, rows(tmp_path / "data.jsonl", ["yes"]), "--hold-rank", "8")
    check_failed(found, "trainer", "runs of flexlora count an update by what it is")


def test_no_room(
    site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(site, spec)
    data = rows(tmp_path / "data.jsonl", ["yes"])
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
        code, found = diagnosed(home, data)
    check_failed(found, "disk", "has 1 kB free")
    assert code == Exit.BAD_INPUT
    with monkeypatch.context() as patched:
        patched.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2, "total": 1000}))
        _, found = diagnosed(home, data)
    check_failed(found, "memory", "cpu has 1 kB in all")
    assert found["model"]["state"] == "skipped", "loading it would end in a kill"


def test_neither_run_nor_key_nor_coordinator(site: Served, home: dict[str, str], tmp_path: Path) -> None:
    data = rows(tmp_path / "data.jsonl", ["yes"])
    code, found = diagnosed(home, data)
    check_failed(found, "run", "run-not-found")
    assert code == Exit.REFUSED
    client = json.loads((Path(home["FLEXLORA_HOME"]) / "credentials.json").read_bytes())["client_id"]
    assert site.operator.call("DELETE", f"/v1/clients/{client}").status_code == 204
    code, found = diagnosed(home, data)
    check_failed(found, "key", "(unauthenticated)")
    assert code == Exit.REFUSED
    nobody = asked("doctor", {"FLEXLORA_HOME": str(tmp_path / "nobody")}, data)
    assert nobody.code == Exit.BAD_INPUT
    assert "enroll first" in nobody.err
    credentials = Path(home["FLEXLORA_HOME"]) / "credentials.json"
    credentials.write_text(credentials.read_text().replace(site.url, "http://127.0.0.1:9"))
    code, found = diagnosed(home, data)
    check_failed(found, "address", "check the address and its port")
    assert code == Exit.UNREACHABLE
    assert all(check["state"] == "skipped" for name, check in found.items() if name != "address")


def test_a_training_loop_of_ones_own_needs_no_model_of_ours(
    site: Served, spec: RunSpec, home: dict[str, str], tmp_path: Path
) -> None:
    define(site, spec.model_copy(update={"model": spec.model.model_copy(update={"id": "nowhere"})}))
    data = rows(tmp_path / "data.jsonl", ["yes"])
    code, found = diagnosed(home, data, "--trainer", "tests.support.trainers:Nudge")
    assert code == Exit.OK, found
    assert "--trainer loads what it needs" in found["model"]["detail"]
