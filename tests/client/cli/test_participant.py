"""The participant's commands against a real coordinator."""

import importlib.util
import json
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from flexlora_client import credentials
from flexlora_client.errors import Exit
from flexlora_server.adapter_files.peft_config import adapter_config
from flexlora_shared.messages.clients import Credentials
from flexlora_shared.messages.runs import RunList
from tests.support.certificates import make_authority, server_context
from tests.support.command import Result, call, start
from tests.support.kit import OPERATOR_KEY, Served
from tests.support.misbehaving import message, misbehaving

NUDGE = "tests.support.trainers:Nudge"


@pytest.fixture
def home(site: Served, tmp_path: Path) -> dict[str, str]:
    """The environment of an enrolled participant."""
    env = {"FLEXLORA_HOME": str(tmp_path / "home")}
    assert call("enroll", site.url, "--token", token(site), "--name", "site a", env=env).code == Exit.OK
    return env


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}?", "completion": f"{n}!"}) + "\n" for n in range(5)))
    return path


def token(site: Served) -> str:
    found: str = site.operator.expect(201, "POST", "/v1/enrolment-tokens", json={})["token"]
    return found


def taking_part(env: dict[str, str], data: Path, *more: str | Path, trainer: str = NUDGE, rank: int = 4) -> Result:
    return call(
        "run",
        "run",
        "--rank",
        str(rank),
        "--data",
        data,
        "--heldout-fraction",
        "0",
        "--trainer",
        trainer,
        *more,
        env=env,
    )


def events(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.out.splitlines()]


def test_enrolling_keeps_the_key_for_its_owner(site: Served, home: dict[str, str]) -> None:
    path = Path(home["FLEXLORA_HOME"]) / credentials.CREDENTIALS_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    identity = credentials.load(path.parent)
    assert (identity.url, identity.name) == (site.url, "site a")
    before = path.read_bytes()
    again = call("enroll", site.url, "--token", token(site), env=home)
    assert again.code == Exit.BAD_INPUT
    assert "--replace" in again.err
    assert path.read_bytes() == before
    assert call("enroll", site.url, "--token", token(site), "--name", "b", "--replace", env=home).code == Exit.OK
    assert credentials.load(path.parent).name == "b"


def test_enrolling_needs_a_good_token_and_name(site: Served, tmp_path: Path) -> None:
    env = {"FLEXLORA_HOME": str(tmp_path / "home")}
    refused = call("enroll", site.url, "--token", "no-token", "--name", "a", env=env)
    assert refused.code == Exit.REFUSED
    assert "(token-invalid)" in refused.err
    assert call("enroll", site.url, "--token", "t", "--name", "/", env=env).code == Exit.USAGE
    assert call("enroll", site.url, env=env).code == Exit.USAGE
    assert not credentials.is_enrolled(tmp_path / "home")
    unnamed = call("enroll", site.url, env=env | {"FLEXLORA_TOKEN": token(site)})
    assert unnamed.code == Exit.OK
    assert credentials.load(tmp_path / "home").name in unnamed.out


def test_how_tls_is_spoken_is_remembered(tmp_path: Path) -> None:
    authority, env = make_authority(tmp_path), {"FLEXLORA_HOME": str(tmp_path / "home")}
    own, moved = authority.sign("participant"), tmp_path / "moved.pem"
    issued = message(Credentials(client_id="c", name="a", api_key="k"), 201)
    context = server_context(authority.sign("localhost"), asks_for=authority.file)
    with misbehaving(issued, message(RunList(runs=())), tls=context) as server:
        given = ("--token", "t", "--name", "a", "--ca-file", authority.file, "--client-cert", own)
        assert call("enroll", server.url, *given, env=env).code == Exit.OK
        authority.file.rename(moved)
        assert call("status", env=env).code == Exit.OK
        own.rename(tmp_path / "gone.pem")
        lost = call("status", env=env)
    assert lost.code == Exit.BAD_INPUT
    assert "cannot use the client certificate" in lost.err


def test_credentials_of_an_earlier_release_still_load(home: dict[str, str]) -> None:
    path = Path(home["FLEXLORA_HOME"]) / credentials.CREDENTIALS_FILE
    assert sorted(json.loads(path.read_bytes())) == ["api_key", "client_id", "name", "url"]
    assert call("status", env=home).code == Exit.OK


def test_a_token_is_not_spent_on_a_home_that_cannot_keep_the_key(site: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    good = token(site)
    failed = call("enroll", site.url, "--token", good, "--home", tmp_path / "file")
    assert failed.code == Exit.BAD_INPUT
    assert call("enroll", site.url, "--token", good, "--home", tmp_path / "home").code == Exit.OK


def test_the_key_can_be_rotated(home: dict[str, str]) -> None:
    folder = Path(home["FLEXLORA_HOME"])
    before = credentials.load(folder)
    assert call("keys", "rotate", env=home).code == Exit.OK
    assert credentials.load(folder).api_key != before.api_key
    assert call("status", env=home).code == Exit.OK
    credentials.save(folder, before)
    assert call("status", env=home).code == Exit.REFUSED


def test_a_key_rotated_while_the_agent_runs_is_taken_over(site: Served, home: dict[str, str], data: Path) -> None:
    site.run(rounds=2)
    result = taking_part(home, data, "--json", trainer="tests.support.trainers:Rotates")
    assert result.code == Exit.OK, result.err
    assert "the home folder holds a new one" in result.err
    assert [event["event"] for event in events(result)][-1] == "completed"


def test_taking_part_until_the_end_as_people_and_programs_see_it(
    site: Served, home: dict[str, str], data: Path, tmp_path: Path
) -> None:
    site.run(rounds=2)
    track = ("--track", f"tensorboard={tmp_path / 'board'}") if importlib.util.find_spec("tensorboard") else ()
    result = taking_part(home, data, "--threads", "1", "--device", "cpu", "--max-rate", "9999", "--json", *track)
    assert result.code == Exit.OK
    assert not track or [*(tmp_path / "board" / "run").glob("events.*")]
    kinds = [event["event"] for event in events(result) if event["event"] != "waiting"]
    one = ["task", "downloaded", "training", "trained", "accepted"]
    assert kinds == ["joined", "data", "declared", *one, *one, "completed"]
    assert {event["run"] for event in events(result)} == {"run"}
    lines = result.err.splitlines()
    assert len(lines) == len(events(result))
    assert lines[-1].endswith("run: the run is complete after 2 rounds")
    again = taking_part(home, data)
    assert again.code == Exit.OK
    assert again.out == ""


def test_the_last_event_tells_how_it_ended(site: Served, home: dict[str, str], data: Path, tmp_path: Path) -> None:
    site.run()
    failed = taking_part(home, data, "--json", trainer="tests.support.trainers:Diverges")
    assert failed.code == Exit.BAD_INPUT
    [*_, before, last] = events(failed)
    assert (before["event"], before["told"]) == ("failed", True)
    assert (last["event"], last["code"], last["run"]) == ("error", Exit.BAD_INPUT, "run")
    assert failed.err.splitlines()[-1] == f"error: {last['reason']}"
    missing = taking_part(home, tmp_path / "none.jsonl", "--json")
    assert [event["event"] for event in events(missing)] == ["error"]
    unknown = taking_part({"FLEXLORA_HOME": str(tmp_path / "nobody")}, data, "--json")
    assert [(event["event"], event["code"]) for event in events(unknown)] == [("error", Exit.BAD_INPUT)]


def test_a_run_that_is_cancelled_has_an_exit_code_of_its_own(site: Served, home: dict[str, str], data: Path) -> None:
    site.run()
    site.operator.expect(200, "POST", "/v1/runs/run/cancel")
    result = taking_part(home, data)
    assert result.code == Exit.RUN_ENDED
    assert "error: run run is CANCELLED" in result.err


def test_stopping_after_some_rounds(site: Served, home: dict[str, str], data: Path) -> None:
    site.run(rounds=5)
    result = taking_part(home, data, "--max-rounds", "1", "--json")
    assert result.code == Exit.OK
    assert [event["event"] for event in events(result)][-2:] == ["accepted", "stopped"]


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        ({"rank": 3}, Exit.REFUSED, "(rank-not-allowed)"),
        ({"trainer": "nowhere:Class"}, Exit.BAD_INPUT, "does not import"),
        ({"trainer": "tests.support.trainers:Raises"}, Exit.BAD_INPUT, "ZeroDivisionError: no batches"),
        ({"trainer": "tests.support.trainers:Diverges"}, Exit.BAD_INPUT, "lower the learning rate"),
    ],
)
def test_what_ends_an_agent(
    site: Served, home: dict[str, str], data: Path, change: dict[str, Any], code: Exit, part: str
) -> None:
    site.run()
    result = taking_part(home, data, **change)
    assert result.code == code
    assert part in result.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "code", "part"),
    [
        (["--rank-pattern", "q_proj=0"], Exit.USAGE, "rank_pattern"),
        (["--device", "abacus"], Exit.BAD_INPUT, "no device"),
        (["--model", "nowhere"], Exit.BAD_INPUT, "no base model at nowhere"),
        (["--rank-pattern", "typo=4"], Exit.REFUSED, "typo"),
        (["--metric", "nowhere:share"], Exit.BAD_INPUT, "does not import"),
        (["--keep-local", "B"], Exit.USAGE, "only runs of the strategy fedavg"),
    ],
)
def test_options_that_cannot_be(
    site: Served, home: dict[str, str], data: Path, more: list[str], code: Exit, part: str
) -> None:
    site.run()
    result = taking_part(home, data, *more)
    assert result.code == code
    assert part in " ".join(result.err.split())


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--rank-pattern", "q_proj"], "MODULE=RANK"),
        (["--heldout", "h.jsonl"], "not both"),
        (["--threads", "0"], "threads"),
        (["--rank", "0"], "rank"),
        (["--max-rounds", "none"], "max-rounds"),
        (["--role", "evaluator"], "--heldout-fraction, --trainer"),
        (["--keep-local", "A"], "keep-local"),
        (["--evaluation-share", "0"], "evaluation-share"),
    ],
)
def test_options_that_mean_nothing(data: Path, more: list[str], part: str) -> None:
    result = taking_part({}, data, *more)
    assert result.code == Exit.USAGE
    assert part in " ".join(result.err.split())


def test_data_that_cannot_be_read(site: Served, home: dict[str, str], tmp_path: Path) -> None:
    site.run()
    missing = taking_part(home, tmp_path / "none.jsonl")
    assert missing.code == Exit.BAD_INPUT
    assert "none.jsonl" in missing.err
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": 1}\n')
    assert "line 1" in taking_part(home, broken).err


@pytest.mark.slow
def test_an_agent_killed_while_training_trains_again(
    site: Served, home: dict[str, str], data: Path, tmp_path: Path
) -> None:
    site.run(rounds=1)
    env = home | {"KILLED_MARK": str(tmp_path / "mark")}
    options = ["--rank", "4", "--heldout-fraction", "0", "--trainer", "tests.support.trainers:Killed"]
    with start("run", "run", "--data", data, *options, env=env) as killed:
        assert killed.wait() == -signal.SIGKILL
    assert Path(env["KILLED_MARK"]).exists()
    result = taking_part(env, data, "--json", trainer="tests.support.trainers:Killed")
    assert result.code == Exit.OK
    kinds = [event["event"] for event in events(result)]
    assert "training" in kinds
    assert kinds[-1] == "completed"
    assert site.round("run", 1)["summary"]["participants"]["accepted"] == 1


@pytest.fixture
def _not_ignoring_interrupts() -> Iterator[None]:
    """As from a terminal: a job in a shell's background ignores SIGINT, and so would the agent."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_not_ignoring_interrupts")
@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT"])
def test_a_signal_lets_a_training_loop_that_does_not_ask_finish_its_round(
    site: Served, home: dict[str, str], data: Path, tmp_path: Path, sent: str
) -> None:
    site.run(rounds=1)
    env = home | {"KILLED_MARK": str(tmp_path / "mark"), "KILLED_SIGNAL": sent}
    result = taking_part(env, data, "--json", trainer="tests.support.trainers:Killed")
    assert result.code == Exit.INTERRUPTED
    assert [event["event"] for event in events(result)][-2:] == ["stopping", "interrupted"]
    assert result.err.splitlines()[-1] == "interrupted"
    again = taking_part(env, data, "--json", trainer="tests.support.trainers:Killed")
    kinds = [event["event"] for event in events(again)]
    assert "kept" in kinds
    assert "training" not in kinds
    assert kinds[-1] == "completed"


@pytest.mark.usefixtures("_not_ignoring_interrupts")
@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_the_agent_at_once(
    site: Served, home: dict[str, str], data: Path, tmp_path: Path, sent: str
) -> None:
    site.run(rounds=1)
    env = home | {"KILLED_MARK": str(tmp_path / "mark"), "KILLED_SIGNAL": sent, "KILLED_TIMES": "2"}
    result = taking_part(env, data, trainer="tests.support.trainers:Killed")
    assert result.code == Exit.INTERRUPTED
    assert result.err.splitlines()[-1] == "interrupted"
    assert not (Path(env["FLEXLORA_HOME"]) / "runs" / "run" / "output" / "adapter_model.safetensors").exists()


def test_exporting_a_peft_folder(site: Served, home: dict[str, str], data: Path, tmp_path: Path) -> None:
    run = site.run(rounds=2)
    assert taking_part(home, data).code == Exit.OK
    output = tmp_path / "deep" / "adapter"
    asked = ("export", "run", "--rank", "8", "--rank-pattern", "q_proj=2", "--exact", "-o", output, "--json")
    assert call(*asked, env=home).code == Exit.REFUSED  # nobody has declared this pattern
    result = call(*asked, env=home | {"FLEXLORA_OPERATOR_KEY": OPERATOR_KEY, "FLEXLORA_URL": site.url})
    assert result.code == Exit.OK, result
    assert result.json["round"] == 2
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "run.json",
    ]
    assert [path.name for path in output.parent.iterdir()] == ["adapter"]
    assert json.loads((output / "adapter_config.json").read_bytes()) == adapter_config(run, 8, {"q_proj": 2})
    shapes = {key: tuple(t.shape) for key, t in load_file(output / "adapter_model.safetensors").items()}
    assert shapes["base_model.model.layers.0.q_proj.lora_A.weight"] == (2, 24)
    assert shapes["base_model.model.layers.0.up_proj.lora_B.weight"] == (32, 8)
    full = call("export", "run", "--rank", "8", "-o", output, env=home)
    assert full.code == Exit.BAD_INPUT
    assert "not an empty folder" in full.err
    first = call("export", "run", "--rank", "2", "--round", "0", "-o", tmp_path / "first", env=home)
    assert (first.code, first.out) == (Exit.OK, f"round 0 of run at rank 2 is in {tmp_path / 'first'}\n")
    operator = {"FLEXLORA_URL": site.url, "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY}
    assert call("export", "run", "--rank", "2", "-o", tmp_path / "operator", env=operator).code == Exit.OK


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--round", "7"], "(adapter-not-published)"),
        (["--rank-pattern", "typo=2"], "typo"),
        (["--rank", "3"], "(rank-not"),
    ],
)
def test_a_refused_export_leaves_nothing(
    site: Served, home: dict[str, str], tmp_path: Path, more: list[str], part: str
) -> None:
    site.run()
    result = call("export", "run", "--rank", "2", *more, "-o", tmp_path / "out" / "adapter", env=home)
    assert result.code == Exit.REFUSED
    assert part in result.err
    assert list((tmp_path / "out").iterdir()) == []
